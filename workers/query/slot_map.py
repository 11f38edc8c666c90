"""The slot map: image key → slot, in memory, for keys that mostly ascend.

Keys are handed out by a sequence, so those of a page, 16,384 numbers, are mostly all there. Where
they follow each other, a page keeps the first one; where there are gaps, a bit for each number, or
the numbers if they are few. Where slots follow each other or the keys, as they do while images
arrive in order and when some of them go, it keeps the first of them, and otherwise all. A page
without keys is dropped.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.retrieval.shards import Int32Array, runs
from schemas.records import ByteArray, IntArray

# Bits of a key inside its page: a change copies a page, 66 KiB at most.
_PAGE_BITS = 14
_PAGE = 1 << _PAGE_BITS

_LOW = _PAGE - 1

# Keys of a page of which the numbers take less memory than a bit for each number.
_FEW = _PAGE // 8 // 2

LowArray = npt.NDArray[np.uint16]


class _Page(NamedTuple):
    """The n keys of one page."""

    first: int
    """The lowest, counted from the page's first number."""
    size: int
    """n"""
    bits: ByteArray | None
    """(2,048,) a bit for each number, of many keys with gaps."""
    low: LowArray | None
    """(n,) the ascending numbers of few keys with gaps; with neither, keys follow each other."""
    slots: Int32Array
    """(n,), or (1,) the first of slots that follow each other or the keys"""
    by_key: bool
    """Whether slots follow the keys, gaps and all, and not each other."""

    @classmethod
    def of(cls, low: IntArray, slots: Int32Array) -> "_Page":
        """Pack n ascending keys and their slots."""
        # A page keeps following the keys when some go, and each other when keys were never there.
        by_key = bool((slots - low == slots[0] - low[0]).all())
        follow = len(slots) > 1 and (by_key or bool((slots[1:] - slots[:-1] == 1).all()))
        bits, few = None, None
        if int(low[-1]) - int(low[0]) >= len(low):
            if len(low) < _FEW:
                few = low.astype(np.uint16)
            else:
                bits = _bits(low)
        # Copies: a view would keep all of them in memory.
        return cls(
            int(low[0]), len(low), bits, few, slots[:1].copy() if follow else slots.copy(), by_key
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.slots.nbytes + sum(
            part.nbytes for part in (self.bits, self.low) if part is not None
        )

    def places(self, low: IntArray) -> IntArray:
        """(k,) places of keys among those of the page, -1 for those that are not there."""
        if self.bits is not None:
            present = np.unpackbits(self.bits)
            return np.where(present[low], np.cumsum(present, dtype=np.int64)[low] - 1, -1)
        if self.low is not None:
            places = np.minimum(self.low.searchsorted(low), self.size - 1)
            return np.where(self.low[places] == low, places, -1)
        places = low - self.first
        return np.where((places >= 0) & (places < self.size), places, -1)

    def slots_at(self, places: IntArray) -> IntArray:
        """The (k,) slots at places."""
        if len(self.slots) == self.size:
            return self.slots[places].astype(np.int64)
        if self.by_key:
            return int(self.slots[0]) - self.first + self.every_low()[places]
        return int(self.slots[0]) + places

    def every_low(self) -> IntArray:
        """(n,) ascending."""
        if self.bits is not None:
            return np.flatnonzero(np.unpackbits(self.bits))
        if self.low is not None:
            return self.low.astype(np.int64)
        return np.arange(self.first, self.first + self.size)


def _bits(low: IntArray) -> ByteArray:
    present = np.zeros(_PAGE, np.bool_)
    present[low] = True
    return np.packbits(present)


class SlotMap:
    """Image key → slot."""

    def __init__(self) -> None:
        self._pages: dict[int, _Page] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(page.nbytes for page in self._pages.values())

    def get(self, keys: IntArray) -> IntArray:
        """The (N,) slots of keys, -1 for unknown ones."""
        slots = np.full(len(keys), -1, np.int64)
        for number, rows, low in _by_page(keys):
            page = self._pages.get(number)
            if page is None:
                continue
            places = page.places(low)
            found = places >= 0
            slots[rows[found]] = page.slots_at(places[found])
        return slots

    def add(self, keys: IntArray, slots: IntArray) -> None:
        """Add (N,) keys that are not there, each once."""
        for number, rows, low in _by_page(keys):
            added_low, added = low, slots[rows].astype(np.int32)
            page = self._pages.get(number)
            if page is not None:
                before = page.every_low()
                places = before.searchsorted(added_low)
                own = page.slots_at(np.arange(page.size)).astype(np.int32)
                added_low = np.insert(before, places, added_low)
                added = np.insert(own, places, added)
            self._pages[number] = _Page.of(added_low, added)

    def remove(self, keys: IntArray) -> None:
        """Remove (N,) keys that are there."""
        for number, _, low in _by_page(keys):
            page = self._pages.pop(number)
            kept = np.ones(page.size, np.bool_)
            kept[page.places(low)] = False
            if kept.any():
                slots = page.slots_at(np.flatnonzero(kept)).astype(np.int32)
                self._pages[number] = _Page.of(page.every_low()[kept], slots)


def _by_page(keys: IntArray) -> Iterator[tuple[int, IntArray, IntArray]]:
    """Of each page of (N,) keys: its number, and the rows and low bits of its keys, ascending."""
    if not len(keys):
        return
    order = np.argsort(keys, kind="stable")
    ascending = keys[order]
    pages = ascending >> _PAGE_BITS
    low = ascending & _LOW
    begins, counts = runs(pages)
    for begin, count in zip(begins.tolist(), counts.tolist(), strict=True):
        end = begin + count
        yield int(pages[begin]), order[begin:end], low[begin:end]
