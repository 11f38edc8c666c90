"""Monitoring: what the drift monitors read of a generation, and what they remember of it.

The work is bounded, whatever the size of the generation.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from psycopg.types.json import Jsonb

from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray, IntArray, JsonObject
from workers.repository.connection import Connection, execute, fetch_column, fetch_row, fetch_rows
from workers.repository.job_runs import Figures
from workers.repository.stored_images import newest_image

# Random keys drawn for each image wanted; keys have gaps, so several draws may meet one image.
_DRAWS_PER_IMAGE = 4


@dataclass(frozen=True, slots=True)
class Arrivals:
    """N images that a generation was not trained on, in ascending key."""

    image_keys: IntArray
    """(N,)"""
    codes: IntArray
    """(N, 4) of the primary"""
    loads: IntArray
    """(N,) images in the primary leaf of each"""
    confidences: FloatArray
    """(N,) log-probability of the primary"""
    embeddings: FloatArray
    """(N, D)"""

    def __len__(self) -> int:
        return len(self.image_keys)


@dataclass(frozen=True, slots=True)
class StoredReference:
    """What the monitors compare a generation's later arrivals with."""

    document: JsonObject
    """JSON, written and read by `model.drift.monitors`"""
    last_key: int
    """The last image key of the reference period."""
    recall: tuple[int, int] | None
    """(hits, queries) of its known items."""


@dataclass(frozen=True, slots=True)
class JobTotal:
    """How many runs of a job ended with an outcome, and when the newest of them ended."""

    job: str
    outcome: str
    runs: int
    last_ended_s: float | None
    """Seconds since 1970; None while it runs."""


def first_key_since(conn: Connection, moment: datetime) -> int:
    """Return the first key of the images accepted since a moment, or the one after the last.

    A binary search of a few dozen look-ups, because keys ascend with the time of acceptance.
    """
    low = 0
    high = newest_image(conn) + 1
    while low < high:
        middle = (low + high) // 2
        # The first image at or above the middle, because keys have gaps.
        row = fetch_row(conn, "image_accepted_after", key=middle)
        if row is None or row[1] >= moment:
            high = middle
        else:
            low = int(row[0]) + 1
    return low


def first_arrivals(conn: Connection, generation: int, after: int, count: int) -> list[int]:
    """Return keys of the first `count` arrivals with a key above `after`, ascending.

    Arrivals are images that the generation was not trained on.
    """
    return fetch_column(conn, "first_arrivals", generation=generation, after=after, amount=count)


def sample_arrivals(conn: Connection, generation: int, after: int, count: int) -> list[int]:
    """Draw `count` arrivals from all with a key above `after`, all of them if they are fewer.

    Returns their keys, ascending. The draw depends only on the range of keys, so that a job that
    is repeated looks at the same images.
    """
    draw_count = _DRAWS_PER_IMAGE * count
    oldest = first_arrivals(conn, generation, after, draw_count)
    row = fetch_row(conn, "newest_arrival", generation=generation)
    last = int(row[0]) if row and row[0] is not None else after
    # A string seed: Python hashes it the same way in every process.
    generator = random.Random(f"{generation} {after} {last}")
    # Few enough to draw from all of them.
    if len(oldest) < draw_count:
        return sorted(generator.sample(oldest, min(count, len(oldest))))
    draws = [generator.randint(after + 1, last) for _ in range(draw_count)]
    drawn = fetch_column(conn, "sampled_arrivals", generation=generation, keys=draws, last=last)
    drawn.sort()
    # Where most keys are gaps, even that many draws meet few images: then draw from the oldest.
    return sorted(generator.sample(drawn if len(drawn) >= count else oldest, count))


def arrivals(
    conn: Connection, generation: int, shape: IdentifierShape, keys: Sequence[int]
) -> Arrivals:
    """Read what the generation stores of images. Those deleted meanwhile are left out."""
    rows = fetch_rows(conn, "arrivals", generation=generation, keys=list(keys))
    image_keys, codes, loads, confidences, embeddings = [], [], [], [], []
    for image_key, leaf, load, confidence, embedding in rows:
        image_keys.append(image_key)
        codes.append(shape.unpack(leaf))
        loads.append(load)
        confidences.append(confidence)
        embeddings.append(np.frombuffer(embedding, "<f2"))
    return Arrivals(
        image_keys=np.array(image_keys, np.int64),
        # Reshaped, because without images there is no second dimension.
        codes=np.array(codes, np.int64).reshape(-1, 4),
        loads=np.array(loads, np.int64),
        confidences=np.array(confidences, np.float32),
        embeddings=np.stack(embeddings).astype(np.float32)
        if embeddings
        else np.zeros((0, 0), np.float32),
    )


def stored_reference(conn: Connection, generation: int) -> StoredReference | None:
    """Return the reference of a generation; None before there is one."""
    row = fetch_row(conn, "monitor_reference", generation=generation)
    if row is None:
        return None
    document, last_key, recall = row
    pair = None if recall is None else (recall["hits"], recall["queries"])
    return StoredReference(document, last_key, pair)


def store_reference(conn: Connection, generation: int, reference: StoredReference) -> None:
    """Store a generation's reference. An existing one is not replaced."""
    recall = None
    if reference.recall is not None:
        hits, queries = reference.recall
        recall = Jsonb({"hits": hits, "queries": queries})
    execute(
        conn,
        "store_reference",
        generation=generation,
        reference=Jsonb(reference.document),
        last_key=reference.last_key,
        recall=recall,
    )


def examined_windows(
    conn: Connection, job: str, generation: int | None = None, *, limit: int = 1
) -> list[Figures]:
    """Return figures of the newest windows of arrivals that monitors examined, newest first.

    Those of one generation, or of any.
    """
    return fetch_column(conn, "examined_windows", job=job, generation=generation, amount=limit)


def newest_figures(conn: Connection, job: str) -> Figures:
    """Return figures of the newest run of a job that is done; empty before the first."""
    row = fetch_row(conn, "newest_figures", job=job)
    return {} if row is None else dict(row[0])


def job_totals(conn: Connection) -> list[JobTotal]:
    """Return the totals of every job and outcome, in that order."""
    return [JobTotal(*columns) for columns in fetch_rows(conn, "job_totals")]


def failures_in_a_row(conn: Connection) -> dict[str, int]:
    """Return how many runs of each job failed since its newest run that was done."""
    return dict(fetch_rows(conn, "failures_in_a_row"))
