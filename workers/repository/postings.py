"""Postings: appending images to a generation's trie, and reading where they stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import UsageError
from schemas.identifiers import IdentifierShape
from schemas.records import Assignment, BoolArray, FloatArray, HalfArray, IntArray, Posting
from workers.repository.binary_copy import as_bytes, write_rows
from workers.repository.connection import Connection, joining, row, rows, run, transaction
from workers.repository.counters import count_up, totals
from workers.repository.suffix_allocation import Place, hand_out

Column = npt.NDArray[Any]

CHANNEL = "sigma_index"
"""Notified, with the generation's number, when its postings changed."""


class AppendStatus(StrEnum):
    """What became of an image that was to be appended."""

    INDEXED = "indexed"
    SPILLED = "spilled"
    PRESENT = "present"
    GONE = "gone"
    NO_ROOM = "no-room"


@dataclass(frozen=True, slots=True)
class AppendOutcome:
    """The fate of one image. leaf and suffix are those of its primary, None unless it was indexed or spilled.

    present: a replay, nothing to do. gone: deleted or replaced meanwhile. no-room: every leaf it may stand in is full.
    """

    image_key: int
    status: AppendStatus
    leaf: int | None = None
    suffix: int | None = None
    postings: tuple[Posting, ...] = ()


def append(
    conn: Connection, generation: int, shape: IdentifierShape, assignments: Sequence[Assignment]
) -> list[AppendOutcome]:
    """Appends images to the trie in one transaction and returns the outcome of each, in the order given.

    Suffixes are handed out under locks on the leaves. A full leaf gives way to the next of `spill` and the alternates, and
    then stays an alternate itself, for that is where the model looks first. An image never gets more postings than asked.
    """
    work = {a.image_key: a for a in assignments}
    with joining(conn):
        outcomes = _standing(conn, generation, list(work))
        given = hand_out(
            conn, generation, shape, [a for key, a in work.items() if key not in outcomes]
        )
        outcomes |= {
            key: _outcome(a, given.places.get(key))
            for key, a in work.items()
            if key not in outcomes
        }
        counts = {"leaves": given.occupied}
        if given.places:
            counts |= _write(conn, generation, work, [outcomes[key] for key in given.places])
        fates = [outcome.status for outcome in outcomes.values()]
        # All counters in one statement, last: a second one could meet another writer's in the opposite order.
        count_up(
            conn,
            generation,
            counts
            | {
                "no_room": fates.count(AppendStatus.NO_ROOM),
                "spilled": fates.count(AppendStatus.SPILLED),
            },
        )
    return [outcomes[a.image_key] for a in assignments]


@dataclass(frozen=True, slots=True)
class InitialLoad:
    """What a trained generation begins with, all or a part. P postings, N images; `suffixes` -1 marks an alternate."""

    leaves: IntArray
    """(P,)"""
    posted_keys: IntArray
    """(P,) image keys"""
    weights: FloatArray
    """(P,)"""
    suffixes: IntArray
    """(P,)"""
    image_keys: IntArray
    """(N,)"""
    embeddings: HalfArray
    """(N, D)"""
    confidences: FloatArray
    """(N,)"""
    trained: bool | BoolArray = True
    """(N,), or the same for all"""


def bulk_append(conn: Connection, generation: int, load: InitialLoad, *, more: bool = False) -> int:
    """Loads an empty generation with COPY, or `more` into one that is loaded in parts, where what a part before brought is
    left out. Images deleted meanwhile are left out too; returns how many were loaded."""
    with transaction(conn):
        living = {
            key for (key,) in rows(conn, "lock_images_by_key", image_keys=load.image_keys.tolist())
        }
        rows(conn, "own_generation", generation=generation)
        if more:
            living -= present_images(conn, generation, load.image_keys.tolist())
        elif totals(conn, generation).images:
            raise _not_empty(generation)
        kept = np.isin(load.image_keys, np.fromiter(living, np.int64, len(living)))
        posted = np.isin(load.posted_keys, load.image_keys[kept])
        _copy(conn, generation, load, kept, posted)
        primary = posted & (load.suffixes >= 0)
        opened = _open_leaves(conn, generation, load.leaves[primary], load.suffixes[primary])
        _count_loaded(conn, generation, load.image_keys[kept].tolist(), opened)
        run(conn, "mark_indexed", image_keys=load.image_keys[kept].tolist())
        rows(conn, "notify_index", generation=generation)
    return int(kept.sum())


def present_images(conn: Connection, generation: int, image_keys: Sequence[int]) -> set[int]:
    """Which of these images the generation holds."""
    return {
        key
        for (key,) in rows(
            conn,
            "present_images",
            generation=generation,
            image_keys=[int(key) for key in image_keys],
        )
    }


@dataclass(frozen=True, slots=True)
class StoredPosting:
    """One posting of an image as the database stores it. The suffix of an alternate is None."""

    leaf: int
    suffix: int | None
    weight: float


def postings_of(
    conn: Connection, generation: int, image_keys: Sequence[int]
) -> dict[int, list[StoredPosting]]:
    """Each image's postings, the primary first."""
    found: dict[int, list[StoredPosting]] = {}
    for key, leaf, suffix, weight in rows(
        conn, "postings_of_images", generation=generation, image_keys=[int(k) for k in image_keys]
    ):
        found.setdefault(key, []).append(StoredPosting(leaf, suffix, weight))
    return found


def identifiers_of(
    conn: Connection, generation: int, shape: IdentifierShape, image_keys: Sequence[int]
) -> dict[int, list[int]]:
    """The five numbers of each image that the generation holds."""
    first = {key: places[0] for key, places in postings_of(conn, generation, image_keys).items()}
    return {
        key: shape.identifier(posting.leaf, posting.suffix)
        for key, posting in first.items()
        if posting.suffix is not None
    }


def image_at(conn: Connection, generation: int, leaf: int, suffix: int) -> int | None:
    """Key of the image that has an identifier, or None."""
    found = row(conn, "image_at", generation=generation, leaf=leaf, suffix=suffix)
    return None if found is None else int(found[0])


def fullest_leaves(
    conn: Connection, generation: int, *, limit: int = 10
) -> list[tuple[int, int, int]]:
    """(leaf, primaries in it, suffixes handed out) of the leaves with the most primaries."""
    return [
        (leaf, live, next_suffix)
        for leaf, live, next_suffix in rows(
            conn, "fullest_leaves", generation=generation, amount=limit
        )
    ]


def _standing(
    conn: Connection, generation: int, image_keys: Sequence[int]
) -> dict[int, AppendOutcome]:
    """Locks the images and tells which need no work: gone ones, and those a replay finds there already."""
    keys = sorted(image_keys)
    living = {key for (key,) in rows(conn, "lock_images_by_key", image_keys=keys)}
    rows(conn, "share_generation", generation=generation)
    present = present_images(conn, generation, keys)
    fates = {
        key: AppendOutcome(image_key=key, status=AppendStatus.GONE)
        for key in keys
        if key not in living
    }
    return fates | {
        key: AppendOutcome(image_key=key, status=AppendStatus.PRESENT) for key in present & living
    }


def _outcome(assignment: Assignment, place: Place | None) -> AppendOutcome:
    if place is None:
        return AppendOutcome(image_key=assignment.image_key, status=AppendStatus.NO_ROOM)
    wanted = assignment.postings
    if place.leaf == wanted[0].leaf:
        fate, postings = AppendStatus.INDEXED, _distinct(wanted)
    else:
        fate = AppendStatus.SPILLED
        # An unknown leaf is trusted no more than the least plausible one that the model named.
        weight = next(
            (p.weight for p in wanted if p.leaf == place.leaf), min(p.weight for p in wanted)
        )
        postings = _distinct((Posting(place.leaf, weight), *wanted))[: max(1, len(wanted))]
    return AppendOutcome(
        image_key=assignment.image_key,
        status=fate,
        leaf=place.leaf,
        suffix=place.suffix,
        postings=postings,
    )


def _distinct(postings: Sequence[Posting]) -> tuple[Posting, ...]:
    first: dict[int, Posting] = {}
    for posting in postings:
        first.setdefault(posting.leaf, posting)
    return tuple(first.values())


def _write(
    conn: Connection,
    generation: int,
    assignments: Mapping[int, Assignment],
    added: Sequence[AppendOutcome],
) -> dict[str, int]:
    """Writes the rows of placed images and returns what the counters gain."""
    flat = [
        (o.image_key, p, o.suffix if p.leaf == o.leaf else None) for o in added for p in o.postings
    ]
    postings, checksum = row(
        conn,
        "append_postings",
        generation=generation,
        leaves=[p.leaf for _, p, _ in flat],
        image_keys=[key for key, _, _ in flat],
        weights=[p.weight for _, p, _ in flat],
        suffixes=[suffix for _, _, suffix in flat],
    ) or (0, 0)
    work = [assignments[o.image_key] for o in added]
    run(
        conn,
        "append_embeddings",
        generation=generation,
        image_keys=[a.image_key for a in work],
        embeddings=[np.ascontiguousarray(a.embedding, dtype="<f2").tobytes() for a in work],
        confidences=[a.confidence for a in work],
        trained=[a.trained for a in work],
    )
    run(conn, "mark_indexed", image_keys=[a.image_key for a in work])
    rows(conn, "notify_index", generation=generation)
    return {"images": len(added), "postings": postings, "checksum": int(checksum)}


def _copy(
    conn: Connection, generation: int, load: InitialLoad, kept: BoolArray, posted: BoolArray
) -> None:
    for query, rows_of in (
        ("copy_primaries", posted & (load.suffixes >= 0)),
        ("copy_alternates", posted & (load.suffixes < 0)),
    ):
        order = np.flatnonzero(rows_of)[np.argsort(load.leaves[rows_of], kind="stable")]
        columns: dict[str, tuple[str, Column]] = {
            "generation": (">i4", np.full(len(order), generation)),
            "leaf": (">i8", load.leaves[order]),
            "image_key": (">i8", load.posted_keys[order]),
            "weight": (">f4", load.weights[order]),
        }
        if query == "copy_primaries":
            columns["suffix"] = (">i4", load.suffixes[order])
        write_rows(conn, query, columns)
    embeddings = as_bytes(load.embeddings[kept])
    count = len(embeddings)
    images: dict[str, tuple[str, Column]] = {
        "generation": (">i4", np.full(count, generation)),
        "image_key": (">i8", load.image_keys[kept]),
        "embedding": (embeddings.dtype.str, embeddings),
        "confidence": (">f4", load.confidences[kept]),
        "trained": ("u1", np.broadcast_to(load.trained, len(kept))[kept]),
    }
    write_rows(conn, "copy_embeddings", images)


def _open_leaves(conn: Connection, generation: int, leaves: IntArray, suffixes: IntArray) -> int:
    """Notes suffixes that were given out beforehand; returns how many leaves had been empty."""
    occupied, where, live = np.unique(leaves, return_inverse=True, return_counts=True)
    after = np.zeros(len(occupied), dtype=np.int64)
    np.maximum.at(after, where, suffixes + 1)
    before = {
        leaf: (used, there)
        for leaf, used, there in rows(
            conn, "lock_leaves", generation=generation, leaves=occupied.tolist()
        )
    }
    run(
        conn,
        "update_leaves",
        generation=generation,
        leaves=occupied.tolist(),
        next_suffixes=[
            max(before[leaf][0], end)
            for leaf, end in zip(occupied.tolist(), after.tolist(), strict=True)
        ],
        lives=[
            before[leaf][1] + more
            for leaf, more in zip(occupied.tolist(), live.tolist(), strict=True)
        ],
    )
    return sum(there == 0 for _, there in before.values())


def _count_loaded(conn: Connection, generation: int, image_keys: list[int], leaves: int) -> None:
    images, postings, checksum = row(
        conn, "recount_images", generation=generation, image_keys=image_keys
    ) or (0, 0, 0)
    count_up(
        conn,
        generation,
        {"images": images, "postings": postings, "leaves": leaves, "checksum": int(checksum)},
    )


def _not_empty(generation: int) -> UsageError:
    return UsageError(
        f"generation {generation} holds images already, the initial load needs an empty one; create a new generation"
    )
