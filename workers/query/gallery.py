"""The gallery: ranking embeddings of one generation in a memory-mapped file, a *slot* per image.

Image keys ascend and mostly arrive in order, so they are looked up by binary search; the few that
arrive late are kept in a dictionary.
"""

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from schemas.records import HalfArray, IntArray

# Factor by which the file grows, so that adding N images copies at most a few times N keys.
_GROWTH = 1.5

# Rows of the first file: a small corpus never grows it.
_MIN_ROWS = 4096

# Bytes of a float16.
_HALF_BYTES = 2


class Gallery:
    """Image key ↔ slot, and the embedding of each slot. A slot is assigned once, never reused."""

    def __init__(self, file: BinaryIO) -> None:
        """Take over an empty file, open for reading and writing."""
        self._file = file
        self._rows: HalfArray = np.zeros((0, 0), dtype=np.float16)
        self._keys: IntArray = np.zeros(0, dtype=np.int64)
        self._sorted = 0
        """Slots from 0 whose keys ascend."""
        self._late: dict[int, int] = {}
        """Slots of all other keys."""
        self.size = 0

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
        """(size, D) float16; a view of the file."""
        return self._rows[: self.size]

    def add(self, keys: IntArray, embeddings: HalfArray) -> IntArray:
        """Store N images, `keys` (N,) and `embeddings` (N, D), and return their slots (N,).

        A key that is stored already keeps its slot and embedding.
        """
        new = np.flatnonzero(self.slots(keys) < 0)
        if len(new):
            self._append(keys[new], embeddings[new])
        return self.slots(keys)

    def slots(self, keys: IntArray) -> IntArray:
        """Return the (N,) slots of image keys, -1 for unknown ones."""
        # (S,) the keys of slots 0 to S-1, which ascend.
        ascending = self._keys[: self._sorted]
        positions = np.searchsorted(ascending, keys)
        inside = positions < len(ascending)
        slots = np.full(len(keys), -1, dtype=np.int64)
        same = ascending[positions[inside]] == keys[inside]
        slots[inside] = np.where(same, positions[inside], -1)
        if self._late:
            for row in np.flatnonzero(slots < 0):
                slots[row] = self._late.get(int(keys[row]), -1)
        return slots

    def keys(self, slots: IntArray) -> IntArray:
        """Return the (N,) image keys of slots."""
        return self._keys[slots]

    def newest(self, count: int) -> IntArray:
        """Return the keys of the `count` images stored last."""
        return self._keys[max(0, self.size - count) : self.size]

    def close(self) -> None:
        """Free the file."""
        # The mapping goes first: a file with a mapping keeps its space.
        self._rows = np.zeros((0, 0), dtype=np.float16)
        self._file.close()

    def _append(self, keys: IntArray, embeddings: HalfArray) -> None:
        begin = self.size
        end = begin + len(keys)
        self._reserve(end, embeddings.shape[1])
        self._rows[begin:end] = embeddings
        self._keys[begin:end] = keys
        continues = begin == 0 or self._keys[begin - 1] < keys[0]
        ascending = self._sorted == begin and continues and bool(np.all(np.diff(keys) > 0))
        if ascending:
            self._sorted = end
        else:
            self._late |= zip(keys.tolist(), range(begin, end), strict=True)
        self.size = end

    def _reserve(self, rows: int, width: int) -> None:
        if rows <= len(self._keys):
            return
        capacity = max(_MIN_ROWS, rows, int(len(self._keys) * _GROWTH))
        self._file.truncate(capacity * width * _HALF_BYTES)
        # Views of the old mapping stay valid: the file only grows, and they keep the mapping alive.
        self._rows = np.memmap(self._file, dtype=np.float16, mode="r+", shape=(capacity, width))
        added = np.zeros(capacity - len(self._keys), dtype=np.int64)
        self._keys = np.concatenate([self._keys, added])
