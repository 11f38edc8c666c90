"""The slot map: image key → slot, in memory, for keys that mostly ascend.

Keys are handed out by a sequence, so those of a page, 16,384 numbers, are mostly all there. A page
keeps the keys' low bits in order, two bytes each, and their slots; where slots follow each other,
as they do while images arrive in order, only the first. A page without keys is dropped.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.retrieval.shards import Int32Array, runs
from schemas.records import IntArray

# Bits of a key inside its page: a change copies a page, 0.1 MiB at most.
_PAGE_BITS = 14

_LOW = (1 << _PAGE_BITS) - 1

LowArray = npt.NDArray[np.uint16]


class _Page(NamedTuple):
    """The keys of one page."""

    low: LowArray
    """(n,) ascending"""
    slots: Int32Array
    """(n,), or (1,) the first of slots that follow each other"""

    @classmethod
    def of(cls, low: LowArray, slots: Int32Array) -> "_Page":
        """Pack n keys and slots."""
        follow = len(slots) > 1 and bool((slots[1:] - slots[:-1] == 1).all())
        # A copy: a view would keep all of them in memory.
        return cls(low, slots[:1].copy() if follow else slots)

    def every_slot(self) -> Int32Array:
        """(n,) slots."""
        if len(self.slots) == len(self.low):
            return self.slots
        return self.slots[0] + np.arange(len(self.low), dtype=np.int32)


class SlotMap:
    """Image key → slot."""

    def __init__(self) -> None:
        self._pages: dict[int, _Page] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(page.low.nbytes + page.slots.nbytes for page in self._pages.values())

    def get(self, keys: IntArray) -> IntArray:
        """The (N,) slots of keys, -1 for unknown ones."""
        slots = np.full(len(keys), -1, np.int64)
        for number, rows, low in _by_page(keys):
            page = self._pages.get(number)
            if page is None:
                continue
            places = np.minimum(page.low.searchsorted(low), len(page.low) - 1)
            found = page.low[places] == low
            slots[rows[found]] = page.every_slot()[places[found]]
        return slots

    def add(self, keys: IntArray, slots: IntArray) -> None:
        """Add (N,) keys that are not there, each once."""
        for number, rows, low in _by_page(keys):
            added = slots[rows].astype(np.int32)
            page = self._pages.get(number)
            if page is None:
                self._pages[number] = _Page.of(low, added)
                continue
            places = page.low.searchsorted(low)
            self._pages[number] = _Page.of(
                np.insert(page.low, places, low), np.insert(page.every_slot(), places, added)
            )

    def remove(self, keys: IntArray) -> None:
        """Remove (N,) keys that are there."""
        for number, _, low in _by_page(keys):
            page = self._pages.pop(number)
            kept = np.ones(len(page.low), np.bool_)
            kept[page.low.searchsorted(low)] = False
            if kept.any():
                self._pages[number] = _Page.of(page.low[kept], page.every_slot()[kept])


def _by_page(keys: IntArray) -> Iterator[tuple[int, IntArray, LowArray]]:
    """Of each page of (N,) keys: its number, and the rows and low bits of its keys, ascending."""
    if not len(keys):
        return
    order = np.argsort(keys, kind="stable")
    ascending = keys[order]
    pages = ascending >> _PAGE_BITS
    low = (ascending & _LOW).astype(np.uint16)
    begins, counts = runs(pages)
    for begin, count in zip(begins.tolist(), counts.tolist(), strict=True):
        end = begin + count
        yield int(pages[begin]), order[begin:end], low[begin:end]
