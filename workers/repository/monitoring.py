"""Monitoring: what the monitors read of a generation, in bounded work whatever its size, and what they remember of it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray, IntArray
from workers.repository.connection import Connection, row, rows, run
from workers.repository.images import newest_image

_DRAWS = 4
"""Random keys drawn for each image wanted; keys are not dense, so several may meet the same image."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """N images that a generation was not trained on, in ascending key."""

    image_keys: IntArray
    codes: IntArray
    """(N, 4) of the primary"""
    loads: IntArray
    """(N,) images in the primary leaf of each"""
    confidences: FloatArray
    embeddings: FloatArray
    """(N, D)"""

    def __len__(self) -> int:
        return len(self.image_keys)


@dataclass(frozen=True, slots=True)
class StoredReference:
    """A reference as it is kept: the monitors' document, the last key of its period, and (hits, queries) of its known items."""

    document: dict[str, Any]
    last_key: int
    recall: tuple[int, int] | None


def first_key_since(conn: Connection, moment: datetime) -> int:
    """The first key of the images accepted since a moment, or the one after the last. A few dozen look-ups, no scan."""
    low, high = 0, newest_image(conn) + 1
    while low < high:
        middle = (low + high) // 2
        found = row(conn, "image_accepted_after", key=middle)
        if found is None or found[1] >= moment:
            high = middle
        else:
            low = int(found[0]) + 1
    return low


def first_arrivals(conn: Connection, generation: int, after: int, count: int) -> list[int]:
    """Keys of the first `count` images after a key that the generation was not trained on."""
    return [
        key
        for (key,) in rows(conn, "first_arrivals", generation=generation, after=after, amount=count)
    ]


def sample_arrivals(conn: Connection, generation: int, after: int, count: int) -> list[int]:
    """Keys of `count` images drawn from all that arrived after a key, ascending; all of them when they are fewer.

    The draw depends on the range only, so that a job that is done again looks at the same images.
    """
    first = first_arrivals(conn, generation, after, _DRAWS * count)
    found = row(conn, "newest_arrival", generation=generation)
    last = int(found[0]) if found and found[0] is not None else after
    chance = random.Random(f"{generation} {after} {last}")
    if len(first) < _DRAWS * count:
        return sorted(chance.sample(first, min(count, len(first))))
    draws = [chance.randint(after + 1, last) for _ in range(_DRAWS * count)]
    drawn = sorted(
        key
        for (key,) in rows(conn, "sampled_arrivals", generation=generation, keys=draws, last=last)
    )
    # Where most keys are gaps even that many draws meet few images; then the oldest do.
    return sorted(chance.sample(drawn if len(drawn) >= count else first, count))


def arrivals(
    conn: Connection, generation: int, shape: IdentifierShape, keys: Sequence[int]
) -> Arrivals:
    """What the generation says of images."""
    found = rows(conn, "arrivals", generation=generation, keys=list(keys))
    embeddings = [np.frombuffer(one[4], "<f2") for one in found]
    return Arrivals(
        np.array([one[0] for one in found], np.int64),
        np.array([shape.unpack(one[1]) for one in found], np.int64).reshape(-1, 4),
        np.array([one[2] for one in found], np.int64),
        np.array([one[3] for one in found], np.float32),
        np.stack(embeddings).astype(np.float32) if embeddings else np.zeros((0, 0), np.float32),
    )


def stored_reference(conn: Connection, generation: int) -> StoredReference | None:
    """The reference of a generation, once there is one."""
    found = row(conn, "monitor_reference", generation=generation)
    if found is None:
        return None
    return StoredReference(
        found[0], found[1], None if found[2] is None else (found[2]["hits"], found[2]["queries"])
    )


def store_reference(conn: Connection, generation: int, reference: StoredReference) -> None:
    """Keeps a generation's reference; one that is there stays."""
    recall = (
        None
        if reference.recall is None
        else Jsonb({"hits": reference.recall[0], "queries": reference.recall[1]})
    )
    run(
        conn,
        "store_reference",
        generation=generation,
        reference=Jsonb(reference.document),
        last_key=reference.last_key,
        recall=recall,
    )


def examined_windows(
    conn: Connection, job: str, generation: int | None = None, *, limit: int = 1
) -> list[dict[str, Any]]:
    """Figures of the newest windows that the monitors saw, of one generation or of any, newest first."""
    return [
        figures
        for (figures,) in rows(
            conn, "examined_windows", job=job, generation=generation, amount=limit
        )
    ]


def newest_figures(conn: Connection, job: str) -> dict[str, Any]:
    """Figures of the newest run of a job that did its work; empty before the first."""
    found = row(conn, "newest_figures", job=job)
    return {} if found is None else dict(found[0])


@dataclass(frozen=True, slots=True)
class JobTotal:
    """How many runs of a job ended with an outcome, and when the newest one that was done ended."""

    job: str
    outcome: str
    runs: int
    last_done_s: float | None
    """Seconds since 1970; None unless the outcome is done."""


def job_totals(conn: Connection) -> list[JobTotal]:
    """Totals of every job and outcome, in that order."""
    return [JobTotal(*columns) for columns in rows(conn, "job_totals")]
