"""Suffix allocation: give each image the last number of its identifier, unique in its leaf.

Works concurrently and without deadlock. An image whose leaf is full spills into another leaf.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.identifiers import IdentifierShape
from schemas.records import Assignment
from workers.repository.connection import Connection, execute, fetch_rows


@dataclass(frozen=True, slots=True)
class PrimarySlot:
    """The leaf and suffix of an image's primary."""

    leaf: int
    suffix: int


@dataclass(frozen=True, slots=True)
class Allocation:
    """What an allocation gave out."""

    slots: dict[int, PrimarySlot]
    """By image key."""
    opened_leaves: int
    """Leaves that were empty before."""


@dataclass(slots=True)
class _LockedLeaf:
    """A locked leaf while suffixes are given out. Mutable, and never leaves this module."""

    next_suffix: int
    """The lowest suffix above all that were ever used."""
    live: int
    """Primaries in the leaf."""
    gaps: list[int]
    """Suffixes of the shape that deleted images left; looked up when all have been used."""

    def take(self, suffixes: int) -> int | None:
        """Take a suffix that was never used, else a gap; None if the leaf is full.

        Unused suffixes first, because finding gaps costs a query.
        """
        if self.next_suffix < suffixes:
            suffix = self.next_suffix
            self.next_suffix += 1
        elif self.gaps:
            suffix = self.gaps.pop(0)
        else:
            return None
        self.live += 1
        return suffix

    def take_beyond(self, suffixes: int) -> int:
        """Take a suffix that the shape does not have: a leaf holds any number of images.

        One that was never used, because finding gaps costs a query and these have no end.
        """
        suffix = max(self.next_suffix, suffixes)
        self.next_suffix = suffix + 1
        self.live += 1
        return suffix


class _MoreLeavesNeeded(Exception):
    """A leaf turned out to be full: its images may spill into leaves that are not locked."""

    def __init__(self, leaves: set[int]) -> None:
        super().__init__(f"{len(leaves)} more leaves")
        self.leaves = leaves


def allocate_suffixes(
    conn: Connection, generation: int, shape: IdentifierShape, assignments: Sequence[Assignment]
) -> Allocation:
    """Find a slot for the primary of each image, in the caller's transaction.

    The first candidate leaf with a free suffix takes it. When all are full, the best one takes it
    under a suffix beyond the shape: the paper's mode cannot decode that, everything else works.

    All leaves are locked in ascending order before any suffix is taken. When an image has to
    spill, the locks are released (a savepoint) and taken again, in order, together with its
    further leaves. So two workers never wait for each other in a circle.
    """
    if not assignments:
        return Allocation(slots={}, opened_leaves=0)
    # Most images fit into their best leaf, so only those are locked at first.
    wanted = {assignment.postings[0].leaf for assignment in assignments}
    while True:
        try:
            with conn.transaction():
                return _allocate_in(conn, generation, shape, assignments, wanted)
        except _MoreLeavesNeeded as more:
            # Ends, because every attempt locks more leaves and the candidates are finite.
            wanted |= more.leaves


def candidate_leaves(assignment: Assignment) -> list[int]:
    """Return the leaves that an image's primary may be in, best first, each once."""
    primary, *alternates = [posting.leaf for posting in assignment.postings]
    return list(dict.fromkeys([primary, *assignment.spill, *alternates]))


def _allocate_in(
    conn: Connection,
    generation: int,
    shape: IdentifierShape,
    assignments: Sequence[Assignment],
    wanted: set[int],
) -> Allocation:
    """One attempt with the `wanted` leaves locked; `_MoreLeavesNeeded` if they do not suffice."""
    leaves = _lock_leaves(conn, generation, shape, wanted)
    occupied_before = _occupied(leaves)
    slots: dict[int, PrimarySlot] = {}
    for assignment in assignments:
        slots[assignment.image_key] = _take_slot(assignment, leaves, shape.suffixes)
    execute(
        conn,
        "update_leaves",
        generation=generation,
        leaves=list(leaves),
        next_suffixes=[leaf.next_suffix for leaf in leaves.values()],
        lives=[leaf.live for leaf in leaves.values()],
    )
    return Allocation(slots=slots, opened_leaves=_occupied(leaves) - occupied_before)


def _lock_leaves(
    conn: Connection, generation: int, shape: IdentifierShape, wanted: set[int]
) -> dict[int, _LockedLeaf]:
    leaves: dict[int, _LockedLeaf] = {}
    used_up: list[int] = []
    for number, next_suffix, live in fetch_rows(
        conn, "lock_leaves", generation=generation, leaves=sorted(wanted)
    ):
        leaves[number] = _LockedLeaf(next_suffix=next_suffix, live=live, gaps=[])
        # All suffixes were used, but some images are gone again: with what suffix, of the shape or
        # beyond it, only the query knows.
        if next_suffix >= shape.suffixes and next_suffix > live:
            used_up.append(number)
    if used_up:
        gaps = fetch_rows(
            conn, "free_suffixes", generation=generation, leaves=used_up, suffixes=shape.suffixes
        )
        for number, suffix in gaps:
            leaves[number].gaps.append(suffix)
    return leaves


def _take_slot(
    assignment: Assignment, leaves: Mapping[int, _LockedLeaf], suffixes: int
) -> PrimarySlot:
    candidates = candidate_leaves(assignment)
    for number in candidates:
        if number not in leaves:
            # All candidates at once: another round for each full leaf would cost more.
            raise _MoreLeavesNeeded(set(candidates))
        suffix = leaves[number].take(suffixes)
        if suffix is not None:
            return PrimarySlot(leaf=number, suffix=suffix)
    best = candidates[0]
    return PrimarySlot(leaf=best, suffix=leaves[best].take_beyond(suffixes))


def _occupied(leaves: Mapping[int, _LockedLeaf]) -> int:
    return sum(leaf.live > 0 for leaf in leaves.values())
