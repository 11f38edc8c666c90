"""Postings: append images to a generation's trie, and read where they are."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from schemas.identifiers import IdentifierShape
from schemas.records import Assignment, Posting
from workers.repository.connection import (
    Connection,
    execute,
    fetch_column,
    fetch_row,
    fetch_rows,
    join_transaction,
)
from workers.repository.counters import count_up, sum_of_hashes
from workers.repository.suffix_allocation import PrimarySlot, allocate_suffixes

# Notified, with the generation's number, when its postings changed; also named in postings.sql.
CHANNEL = "sigma_index"


class AppendStatus(StrEnum):
    """What appending did with an image."""

    INDEXED = "indexed"
    """Its primary is in the best leaf."""
    SPILLED = "spilled"
    """The best leaf is full; its primary is in another candidate leaf."""
    PRESENT = "present"
    """A replay: the generation had it already."""
    GONE = "gone"
    """It was deleted, or replaced by a newer version, meanwhile."""
    BEYOND = "beyond"
    """All its candidate leaves are full: it is in the best one, under a suffix beyond the shape."""


# What became of images that a call brought into the trie.
APPENDED = frozenset({AppendStatus.INDEXED, AppendStatus.SPILLED, AppendStatus.BEYOND})


@dataclass(frozen=True, slots=True)
class AppendOutcome:
    """What became of one image. It has a leaf, suffix and postings if it was appended."""

    image_key: int
    status: AppendStatus
    leaf: int | None = None
    """of the primary"""
    suffix: int | None = None
    """of the primary"""
    postings: tuple[Posting, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredPosting:
    """One posting of an image as the database stores it."""

    leaf: int
    suffix: int | None
    """None for an alternate"""
    weight: float


@dataclass(frozen=True, slots=True)
class LeafLoad:
    """How full a leaf is."""

    leaf: int
    primaries: int
    suffixes_used: int
    """Suffixes that were ever used, by images deleted since too."""


def append(
    conn: Connection, generation: int, shape: IdentifierShape, assignments: Sequence[Assignment]
) -> list[AppendOutcome]:
    """Append images to the trie in one transaction; return the outcomes in the order given.

    Suffixes are allocated under locks on the leaves. Where the best leaf is full, the primary goes
    to the next of `spill` and the alternates, and the full leaf becomes an alternate, because the
    model looks there first. Where all are full, the image stays in the best leaf. An image never
    gets more postings than asked.
    """
    assignment_of = {assignment.image_key: assignment for assignment in assignments}
    with join_transaction(conn):
        image_ids, outcomes = _settled(conn, generation, list(assignment_of))
        # Replays and deleted images take no suffix.
        work = [assignment for key, assignment in assignment_of.items() if key not in outcomes]
        allocation = allocate_suffixes(conn, generation, shape, work)
        for assignment in work:
            slot = allocation.slots[assignment.image_key]
            outcomes[assignment.image_key] = _outcome(assignment, slot, shape)
        added = [outcomes[key] for key in allocation.slots]
        amounts = {"leaves": allocation.opened_leaves}
        if added:
            amounts |= _write(conn, generation, assignment_of, image_ids, added)
        statuses = [outcome.status for outcome in outcomes.values()]
        amounts["beyond"] = statuses.count(AppendStatus.BEYOND)
        amounts["spilled"] = statuses.count(AppendStatus.SPILLED)
        # All counters in one statement, last: the statement locks them in one order, which a
        # second statement could break, and they are shared with other writers.
        count_up(conn, generation, amounts)
    return [outcomes[assignment.image_key] for assignment in assignments]


def present_images(conn: Connection, generation: int, image_keys: Sequence[int]) -> set[int]:
    """Return which of these images the generation has."""
    keys = [int(key) for key in image_keys]
    return set(fetch_column(conn, "present_images", generation=generation, image_keys=keys))


def postings_of(
    conn: Connection, generation: int, image_keys: Sequence[int]
) -> dict[int, list[StoredPosting]]:
    """Return each image's postings, the primary first. Images without any are left out."""
    keys = [int(key) for key in image_keys]
    postings: dict[int, list[StoredPosting]] = {}
    for key, leaf, suffix, weight in fetch_rows(
        conn, "postings_of_images", generation=generation, image_keys=keys
    ):
        postings.setdefault(key, []).append(StoredPosting(leaf, suffix, weight))
    return postings


def identifiers_of(
    conn: Connection, generation: int, shape: IdentifierShape, image_keys: Sequence[int]
) -> dict[int, list[int]]:
    """Return the five numbers of each image that the generation has."""
    identifiers = {}
    for key, postings in postings_of(conn, generation, image_keys).items():
        primary = postings[0]
        # The primary comes first; without one the image is about to be deleted.
        if primary.suffix is not None:
            identifiers[key] = shape.identifier(primary.leaf, primary.suffix)
    return identifiers


def image_at(conn: Connection, generation: int, leaf: int, suffix: int) -> int | None:
    """Return the key of the image with an identifier, or None."""
    row = fetch_row(conn, "image_at", generation=generation, leaf=leaf, suffix=suffix)
    return None if row is None else int(row[0])


def fullest_leaves(conn: Connection, generation: int, *, limit: int = 10) -> list[LeafLoad]:
    """Return the leaves with the most primaries."""
    rows = fetch_rows(conn, "fullest_leaves", generation=generation, amount=limit)
    return [LeafLoad(*columns) for columns in rows]


def _settled(
    conn: Connection, generation: int, image_keys: Sequence[int]
) -> tuple[dict[int, str], dict[int, AppendOutcome]]:
    """Lock the images; return their ids by key, and the outcomes of those that need no work."""
    keys = sorted(image_keys)
    # Until the commit no deletion can remove what is about to be written.
    existing = dict(fetch_rows(conn, "lock_images_by_key", image_keys=keys))
    # Beside other appends, but not beside an initial load, which assumes that it is alone.
    fetch_rows(conn, "share_generation", generation=generation)
    present = present_images(conn, generation, keys)
    outcomes = {}
    for key in keys:
        if key not in existing:
            outcomes[key] = AppendOutcome(key, AppendStatus.GONE)
        elif key in present:
            outcomes[key] = AppendOutcome(key, AppendStatus.PRESENT)
    return existing, outcomes


def _outcome(assignment: Assignment, slot: PrimarySlot, shape: IdentifierShape) -> AppendOutcome:
    if slot.leaf == assignment.postings[0].leaf:
        beyond = slot.suffix >= shape.suffixes
        status = AppendStatus.BEYOND if beyond else AppendStatus.INDEXED
        postings = _distinct(assignment.postings)
    else:
        status = AppendStatus.SPILLED
        postings = _spilled_postings(assignment.postings, slot.leaf)
    return AppendOutcome(
        image_key=assignment.image_key,
        status=status,
        leaf=slot.leaf,
        suffix=slot.suffix,
        postings=postings,
    )


def _spilled_postings(wanted: Sequence[Posting], leaf: int) -> tuple[Posting, ...]:
    """The postings of an image whose primary spilled into `leaf`: as many as wanted."""
    # A leaf that the model did not name is as plausible as the least plausible one it named.
    weight = min(posting.weight for posting in wanted)
    for posting in wanted:
        if posting.leaf == leaf:
            weight = posting.weight
            break
    return _distinct((Posting(leaf, weight), *wanted))[: max(1, len(wanted))]


def _distinct(postings: Sequence[Posting]) -> tuple[Posting, ...]:
    """The first posting of each leaf."""
    by_leaf: dict[int, Posting] = {}
    for posting in postings:
        by_leaf.setdefault(posting.leaf, posting)
    return tuple(by_leaf.values())


def _write(
    conn: Connection,
    generation: int,
    assignments: Mapping[int, Assignment],
    image_ids: Mapping[int, str],
    added: Sequence[AppendOutcome],
) -> dict[str, int]:
    """Write the rows of images that have a slot; return what the counters gain."""
    columns: dict[str, list[Any]] = defaultdict(list)
    # Ids and leaves of the alternates' and of the primaries' postings.
    owners: tuple[list[str], list[str]] = ([], [])
    leaves: tuple[list[int], list[int]] = ([], [])
    for outcome in added:
        placement = _placement(assignments[outcome.image_key], outcome)
        for name, value in placement.items():
            columns[name].append(value)
        for posting in outcome.postings:
            is_primary = posting.leaf == outcome.leaf
            owners[is_primary].append(image_ids[outcome.image_key])
            leaves[is_primary].append(posting.leaf)
    execute(conn, "append_placements", generation=generation, **columns)
    execute(conn, "mark_indexed", image_keys=columns["image_key"])
    fetch_rows(conn, "notify_index", generation=generation)
    checksum = sum_of_hashes(owners[True], leaves[True], is_primary=True)
    checksum += sum_of_hashes(owners[False], leaves[False], is_primary=False)
    return {
        "images": len(added),
        "postings": len(leaves[True]) + len(leaves[False]),
        "checksum": checksum,
    }


def _placement(assignment: Assignment, outcome: AppendOutcome) -> dict[str, Any]:
    """The row of an image that has a slot: the table's columns by name."""
    (primary,) = [posting for posting in outcome.postings if posting.leaf == outcome.leaf]
    alternates = [posting for posting in outcome.postings if posting is not primary]
    # Two of them have columns of their own, for an array takes twice the room.
    leaves: list[int | None] = [*(posting.leaf for posting in alternates), None, None]
    weights: list[float | None] = [*(posting.weight for posting in alternates), None, None]
    return {
        "image_key": assignment.image_key,
        "leaf": primary.leaf,
        "suffix": outcome.suffix,
        "weight": primary.weight,
        "leaf2": leaves[0],
        "weight2": weights[0],
        "leaf3": leaves[1],
        "weight3": weights[1],
        # As text: `unnest` would flatten an array of arrays.
        "more_leaves": _array([posting.leaf for posting in alternates[2:]]),
        "more_weights": _array([posting.weight for posting in alternates[2:]]),
        "embedding": _little_endian(assignment),
        "confidence": assignment.confidence,
        "trained": assignment.trained,
    }


def _array(values: Sequence[float]) -> str | None:
    """An array as PostgreSQL writes it; NULL without values."""
    return f"{{{','.join(repr(value) for value in values)}}}" if values else None


def _little_endian(assignment: Assignment) -> bytes:
    return np.ascontiguousarray(assignment.embedding, dtype="<f2").tobytes()
