"""The gallery: ranking embeddings of one generation in a memory-mapped file, a *slot* per image.

A row of the file is an image's key and its embedding. The slot of a deleted image is used again, so
a gallery whose images come and go stays as large as it was.
"""

import mmap
import os
import resource
import tempfile
from array import array
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from model.retrieval.shards import Int32Array
from schemas.records import HalfArray, IntArray, NamedArrays
from workers.query.slot_map import SlotMap

# Factor by which the file grows. It has holes until rows are written, so this costs no space.
_GROWTH = 1.5

# Rows of the first file: a small corpus never grows it.
_MIN_ROWS = 4096

# Keys that are remembered in the order in which they came.
MOST_NEWEST = 20_000

# Rows that are read before others, to see whether they come from the disk.
_PROBED = 32

# Keys of removed images that are remembered: changes that are read twice were read just before.
_MOST_REMOVED = 16_384


class Gallery:
    """Image key ↔ slot, and the embedding of each slot."""

    def __init__(self, file: BinaryIO) -> None:
        """Take over an empty file, open for reading and writing."""
        self._file = file
        self.clear()

    def clear(self) -> None:
        """Forget all images."""
        self._slots = SlotMap()
        self._capacity = 0
        self._table = np.zeros(0, _row(0))
        """(capacity,) the file"""
        self._mapping: mmap.mmap | None = None
        """Its mapping, None before the first image."""
        self._free = array("i")
        """Slots below `size` that no image has."""
        self._newest: IntArray = np.zeros(0, dtype=np.int64)
        """Keys of the images stored last, at most `MOST_NEWEST`."""
        self._removed: OrderedDict[int, None] = OrderedDict()
        """Keys of the images removed last, oldest first."""
        self.size = 0
        """Slots that were ever used."""

    @classmethod
    def open(cls, folder: Path) -> "Gallery":
        """Open an empty gallery on a private file in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix="embeddings-")
        file = os.fdopen(handle, "r+b")
        # Unlink at once: the space is freed when the process ends, however it ends.
        Path(name).unlink()
        return cls(file)

    @property
    def embeddings(self) -> HalfArray:
        """(size, D) float16; a view of the file. Rows without an image hold anything."""
        return self._rows[: self.size]

    @property
    def nbytes(self) -> int:
        """Bytes in memory, without those of the file."""
        return self._slots.nbytes + self._free.itemsize * len(self._free) + self._newest.nbytes

    def prefetch(self, slots: IntArray) -> None:
        """Ask the disk for the rows of (N,) slots at once, where they are not in memory.

        Otherwise whoever reads them waits for one after the other. Most files are in memory, and
        asking takes as long as reading them then: so the first few are read, to see.
        """
        if self._mapping is None or len(slots) <= _PROBED:
            return
        # Without what usually follows a page, which takes the disk longer than the page.
        self._mapping.madvise(mmap.MADV_RANDOM)
        before = _disk_reads()
        self._keys[slots[:_PROBED]].max()
        cold = _disk_reads() > before
        self._mapping.madvise(mmap.MADV_NORMAL)
        if not cold:
            return
        begins = slots * self._table.itemsize
        ends = begins + self._table.itemsize
        begins -= begins % mmap.PAGESIZE
        for begin, size in zip(begins.tolist(), (ends - begins).tolist(), strict=True):
            self._mapping.madvise(mmap.MADV_WILLNEED, begin, size)

    def cool(self) -> None:
        """Let the operating system forget the file's pages, as if it was not read for long."""
        if self._mapping is not None:
            os.fdatasync(self._file.fileno())
            self._mapping.madvise(mmap.MADV_DONTNEED)
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def add(self, keys: IntArray, embeddings: HalfArray) -> IntArray:
        """Store N images, `keys` (N,) and `embeddings` (N, D), and return their slots (N,).

        A key that is stored already keeps its slot and embedding. One that was removed does not
        come back: its slot is -1.
        """
        removed = np.fromiter((key in self._removed for key in keys.tolist()), np.bool_, len(keys))
        new = np.flatnonzero((self.slots(keys) < 0) & ~removed)
        if len(new):
            self._store(keys[new], embeddings[new])
        return self.slots(keys)

    def remove(self, keys: IntArray) -> None:
        """Forget images, whose slots later ones get; unknown keys are ignored."""
        keys = np.unique(keys)
        slots = self.slots(keys)
        known = slots >= 0
        self._slots.remove(keys[known])
        self._free.extend(slots[known].tolist())
        self._removed.update(dict.fromkeys(keys[known].tolist()))
        while len(self._removed) > _MOST_REMOVED:
            self._removed.popitem(last=False)

    def to_arrays(self) -> NamedArrays:
        """All that it holds, for `restore`."""
        return {
            "rows": self._table[: self.size],
            "free": np.array(self._free, np.int32),
            "newest": self._newest,
            "removed": np.fromiter(self._removed, np.int64, len(self._removed)),
        }

    def restore(self, arrays: NamedArrays) -> None:
        """Take over what another gallery held; this one is empty."""
        rows = arrays["rows"]
        if len(rows):
            self.size = len(rows)
            self._reserve(self.size, rows.dtype["embedding"].shape[0])
            self._table[: self.size] = rows
        taken = np.ones(self.size, np.bool_)
        taken[arrays["free"]] = False
        slots = np.flatnonzero(taken)
        self._slots.add(self._keys[slots], slots)
        self._free.extend(arrays["free"].tolist())
        self._newest = arrays["newest"].copy()
        self._removed.update(dict.fromkeys(arrays["removed"].tolist()))

    def slots(self, keys: IntArray) -> IntArray:
        """Return the (N,) slots of image keys, -1 for unknown ones."""
        return self._slots.get(keys)

    def keys(self, slots: IntArray) -> IntArray:
        """Return the (N,) image keys of slots."""
        return self._keys[slots]

    def newest(self, count: int) -> IntArray:
        """Return the keys of the `count` images stored last, at most `MOST_NEWEST`."""
        return self._newest[-count:]

    def close(self) -> None:
        """Free the file."""
        # The mapping goes first: a file with a mapping keeps its space.
        self._table, self._mapping = np.zeros(0, _row(0)), None
        self._file.close()

    def _store(self, keys: IntArray, embeddings: HalfArray) -> None:
        slots = self._take_slots(len(keys), embeddings.shape[1])
        self._rows[slots] = embeddings
        self._keys[slots] = keys
        self._slots.add(keys, slots)
        self._newest = np.concatenate([self._newest, keys])[-MOST_NEWEST:]

    def _take_slots(self, count: int, width: int) -> IntArray:
        """(N,) slots that no image has: those of deleted ones first."""
        reused = min(count, len(self._free))
        freed: Int32Array = np.array(self._free[len(self._free) - reused :], np.int32)
        del self._free[len(self._free) - reused :]
        begin = self.size
        self.size += count - reused
        self._reserve(self.size, width)
        return np.concatenate([freed.astype(np.int64), np.arange(begin, self.size)])

    def _reserve(self, rows: int, width: int) -> None:
        if rows <= self._capacity:
            return
        self._capacity = max(_MIN_ROWS, rows, int(self._capacity * _GROWTH))
        row = _row(width)
        self._file.truncate(self._capacity * row.itemsize)
        # Views of the old mapping stay valid: the file only grows, and they keep the mapping alive.
        self._mapping = mmap.mmap(self._file.fileno(), self._capacity * row.itemsize)
        self._table = np.frombuffer(self._mapping, row)

    @property
    def _keys(self) -> IntArray:
        """(capacity,) a view of the file."""
        keys: IntArray = self._table["key"]
        return keys

    @property
    def _rows(self) -> HalfArray:
        """(capacity, D) a view of the file."""
        rows: HalfArray = self._table["embedding"]
        return rows


def _disk_reads() -> int:
    """How often this thread had to wait for a page from a disk."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def _row(width: int) -> np.dtype[np.void]:
    return np.dtype([("key", np.int64), ("embedding", np.float16, (width,))])
