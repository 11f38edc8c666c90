"""Counters: totals that change in the transaction that changes what they count.

Reading them never scans a table. `recount` scans, for tests and checks.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from workers.repository.connection import Connection, fetch_row, fetch_rows

# The generation number of counters that belong to no generation.
WHOLE_DATABASE = 0

# Checksums are sums of 64-bit hashes; the modulus makes additions and removals cancel.
_CHECKSUM_MODULUS = 1 << 64


@dataclass(frozen=True, slots=True)
class Totals:
    """A generation in numbers."""

    images: int = 0
    postings: int = 0
    leaves: int = 0
    """Leaves with at least one primary."""
    spilled: int = 0
    beyond: int = 0
    """Images whose suffix lies beyond the shape, because all their leaves were full."""
    no_room: int = 0
    """Images that an earlier version left out, because all their leaves were full."""
    checksum: str = "0" * 16
    """Covers (image_id, leaf, primary or alternate) of every posting, in any order."""


@dataclass(frozen=True, slots=True)
class ImageTotals:
    """Images of the whole database that are not in a trie."""

    rejected: int = 0
    deleted: int = 0


def count_up(conn: Connection, generation: int, amounts: Mapping[str, int]) -> None:
    """Add to counters, in the running transaction."""
    changed = {name: amount for name, amount in amounts.items() if amount}
    if changed:
        # The database adds to one of 64 shards by its backend, so that writers rarely wait.
        fetch_rows(
            conn,
            "count_up",
            generation=generation,
            names=list(changed),
            amounts=list(changed.values()),
        )


def totals(conn: Connection, generation: int) -> Totals:
    """Return the counters of a generation."""
    values = _counters(conn, generation)
    return Totals(
        images=values.get("images", 0),
        postings=values.get("postings", 0),
        leaves=values.get("leaves", 0),
        spilled=values.get("spilled", 0),
        beyond=values.get("beyond", 0),
        no_room=values.get("no_room", 0),
        checksum=_checksum(values.get("checksum", 0)),
    )


def image_totals(conn: Connection) -> ImageTotals:
    """Return the counters of the whole database."""
    values = _counters(conn, WHOLE_DATABASE)
    return ImageTotals(rejected=values.get("rejected", 0), deleted=values.get("deleted", 0))


def recount(conn: Connection, generation: int) -> Totals:
    """Scan all postings of a generation: the slow truth that the counters must equal.

    Postings do not tell which images spilled or were left out, so those two stay 0.
    """
    row = fetch_row(conn, "recount", generation=generation)
    images, postings, leaves, checksum, beyond = row or (0, 0, 0, 0, 0)
    return Totals(
        images=images,
        postings=postings,
        leaves=leaves,
        beyond=beyond,
        checksum=_checksum(int(checksum)),
    )


def sum_of_hashes(image_ids: Iterable[str], leaves: Iterable[int], *, is_primary: bool) -> int:
    """What P postings add to the checksum, all of them primary or none.

    The same as the database's function `posting_hash` gives for each.
    """
    mark = "!" if is_primary else "?"
    sha256 = hashlib.sha256
    named = zip(leaves, image_ids, strict=True)
    digests = b"".join([sha256(f"{leaf}{mark}{owner}".encode()).digest() for leaf, owner in named])
    # The first 8 of each 32 bytes, in halves: their sum does not fit into 64 bits.
    halves = np.frombuffer(digests, ">i4").reshape(-1, 8)[:, :2]
    high = int(halves[:, 0].sum(dtype=np.int64))
    low = int(halves[:, 1].view(">u4").sum(dtype=np.int64))
    return (high << 32) + low


def _counters(conn: Connection, generation: int) -> dict[str, int]:
    rows = fetch_rows(conn, "counters", generation=generation)
    return {name: int(value) for name, value in rows}


def _checksum(total: int) -> str:
    # Sums of signed hashes can be negative; the remainder is not.
    return f"{total % _CHECKSUM_MODULUS:016x}"
