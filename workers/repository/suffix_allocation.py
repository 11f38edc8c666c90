"""Suffixes: handing out the fifth number of an identifier, concurrently, without deadlock, spilling from full leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.identifiers import IdentifierShape
from schemas.records import Assignment
from workers.repository.connection import Connection, rows, run


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image's primary stands."""

    leaf: int
    suffix: int


@dataclass(slots=True)
class _Leaf:
    """A locked leaf while suffixes are handed out. Mutable, and never leaves this module."""

    next_suffix: int
    live: int
    gaps: list[int]

    def take(self, suffixes: int) -> int | None:
        """A suffix never used, else one that a deleted image left, else None."""
        if self.next_suffix < suffixes:
            self.next_suffix += 1
            self.live += 1
            return self.next_suffix - 1
        if self.gaps:
            self.live += 1
            return self.gaps.pop(0)
        return None


@dataclass(frozen=True, slots=True)
class HandedOut:
    """Places by image key; images without room anywhere are missing. `occupied` leaves had been empty before."""

    places: dict[int, Place]
    occupied: int


class _MoreLeavesNeeded(Exception):
    """A leaf turned out to be full: its images may spill into leaves that are not locked yet."""

    def __init__(self, leaves: set[int]) -> None:
        super().__init__(f"{len(leaves)} more leaves")
        self.leaves = leaves


def hand_out(
    conn: Connection, generation: int, shape: IdentifierShape, assignments: Sequence[Assignment]
) -> HandedOut:
    """Finds a place for each image, in the caller's transaction.

    All leaves are locked in ascending order before any suffix is taken. When an image has to spill, the locks are given
    back (a savepoint) and taken again, in order, together with its further leaves: so two workers never wait in a circle.
    """
    if not assignments:
        return HandedOut(places={}, occupied=0)
    wanted = {a.postings[0].leaf for a in assignments}
    while True:
        try:
            with conn.transaction():
                return _attempt(conn, generation, shape, assignments, wanted)
        except _MoreLeavesNeeded as more:
            wanted |= more.leaves


def candidates(assignment: Assignment) -> list[int]:
    """Leaves that an image's primary may stand in, best first."""
    return list(
        dict.fromkeys(
            [
                assignment.postings[0].leaf,
                *assignment.spill,
                *(p.leaf for p in assignment.postings[1:]),
            ]
        )
    )


def _attempt(
    conn: Connection,
    generation: int,
    shape: IdentifierShape,
    assignments: Sequence[Assignment],
    wanted: set[int],
) -> HandedOut:
    leaves = _lock(conn, generation, shape, wanted)
    occupied = sum(leaf.live > 0 for leaf in leaves.values())
    places: dict[int, Place] = {}
    for assignment in assignments:
        place = _place(assignment, leaves, shape.suffixes)
        if place is not None:
            places[assignment.image_key] = place
    run(
        conn,
        "update_leaves",
        generation=generation,
        leaves=list(leaves),
        next_suffixes=[leaf.next_suffix for leaf in leaves.values()],
        lives=[leaf.live for leaf in leaves.values()],
    )
    return HandedOut(
        places=places, occupied=sum(leaf.live > 0 for leaf in leaves.values()) - occupied
    )


def _lock(
    conn: Connection, generation: int, shape: IdentifierShape, wanted: set[int]
) -> dict[int, _Leaf]:
    found = rows(conn, "lock_leaves", generation=generation, leaves=sorted(wanted))
    leaves = {
        leaf: _Leaf(next_suffix=next_suffix, live=live, gaps=[])
        for leaf, next_suffix, live in found
    }
    holed = [
        number for number, leaf in leaves.items() if leaf.next_suffix >= shape.suffixes > leaf.live
    ]
    if holed:
        for leaf, suffix in rows(
            conn, "free_suffixes", generation=generation, leaves=holed, suffixes=shape.suffixes
        ):
            leaves[leaf].gaps.append(suffix)
    return leaves


def _place(assignment: Assignment, leaves: Mapping[int, _Leaf], suffixes: int) -> Place | None:
    for leaf in candidates(assignment):
        if leaf not in leaves:
            raise _MoreLeavesNeeded(set(candidates(assignment)))
        suffix = leaves[leaf].take(suffixes)
        if suffix is not None:
            return Place(leaf=leaf, suffix=suffix)
    return None
