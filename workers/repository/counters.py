"""Counters: totals that change in the transaction that changes what they count, so that nobody ever scans."""

from collections.abc import Mapping
from dataclasses import dataclass

from workers.repository.connection import Connection, row, rows

WHOLE_DATABASE = 0
"""The generation number under which counters of the whole database stand."""

_CHECKSUM_MODULUS = 1 << 64


@dataclass(frozen=True, slots=True)
class Totals:
    """A generation in numbers. `leaves` hold at least one primary; `checksum` covers (image_id, leaf, primary or alternate)."""

    images: int = 0
    postings: int = 0
    leaves: int = 0
    spilled: int = 0
    no_room: int = 0
    checksum: str = "0" * 16


@dataclass(frozen=True, slots=True)
class ImageTotals:
    """Images of the whole database that are not in a trie."""

    rejected: int = 0
    deleted: int = 0


def count_up(conn: Connection, generation: int, amounts: Mapping[str, int]) -> None:
    """Adds to counters in the running transaction."""
    changed = {name: amount for name, amount in amounts.items() if amount}
    if changed:
        rows(
            conn,
            "count_up",
            generation=generation,
            names=list(changed),
            amounts=list(changed.values()),
        )


def totals(conn: Connection, generation: int) -> Totals:
    """The counters of a generation."""
    found = {name: int(value) for name, value in rows(conn, "counters", generation=generation)}
    checksum = _checksum(found.pop("checksum", 0))
    return Totals(
        **{
            name: found.get(name, 0)
            for name in ("images", "postings", "leaves", "spilled", "no_room")
        },
        checksum=checksum,
    )


def image_totals(conn: Connection) -> ImageTotals:
    """The counters of the whole database."""
    found = {name: int(value) for name, value in rows(conn, "counters", generation=WHOLE_DATABASE)}
    return ImageTotals(rejected=found.get("rejected", 0), deleted=found.get("deleted", 0))


def recount(conn: Connection, generation: int) -> Totals:
    """The slow truth, by scanning all postings; spills are not in the postings and stay 0."""
    images, postings, leaves, checksum = row(conn, "recount", generation=generation) or (0, 0, 0, 0)
    return Totals(
        images=images, postings=postings, leaves=leaves, checksum=_checksum(int(checksum))
    )


def _checksum(total: int) -> str:
    return f"{total % _CHECKSUM_MODULUS:016x}"
