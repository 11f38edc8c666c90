"""The gallery: ranking embeddings of one generation in a memory-mapped file, a row (*slot*) per image."""

import os
import tempfile
from pathlib import Path

import numpy as np

from schemas.records import HalfArray, IntArray

_GROWTH = 1.5
_LEAST_ROWS = 4096


class Gallery:
    """Image key ↔ slot, and the embedding of each slot. Slots are handed out once; the file is private and vanishes with it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix="embeddings-")
        self._file = os.fdopen(handle, "r+b")
        # Unlinked at once: the space is given back when the process ends, however it ends.
        Path(name).unlink()
        self._rows: HalfArray = np.zeros((0, 0), dtype=np.float16)
        self._keys: IntArray = np.zeros(0, dtype=np.int64)
        self._sorted = 0
        self._late: dict[int, int] = {}
        self.size = 0

    @property
    def embeddings(self) -> HalfArray:
        """(size, D) float16; a view of the file."""
        return self._rows[: self.size]

    def add(self, keys: IntArray, embeddings: HalfArray) -> IntArray:
        """Store N images and return their slots (N,). Keys that are there already keep their slot."""
        fresh = np.flatnonzero(self.slots(keys) < 0)
        if len(fresh):
            begin, end = self.size, self.size + len(fresh)
            self._reserve(end, embeddings.shape[1])
            self._rows[begin:end] = embeddings[fresh]
            self._keys[begin:end] = keys[fresh]
            ascending = self._sorted == begin and (
                begin == 0 or self._keys[begin - 1] < keys[fresh[0]]
            )
            if ascending and bool(np.all(np.diff(keys[fresh]) > 0)):
                self._sorted = end
            else:
                self._late |= zip(keys[fresh].tolist(), range(begin, end), strict=True)
            self.size = end
        return self.slots(keys)

    def slots(self, keys: IntArray) -> IntArray:
        """(N,) slots of image keys, -1 for those unknown."""
        known = self._keys[: self._sorted]
        at = np.searchsorted(known, keys)
        inside = at < len(known)
        found = np.full(len(keys), -1, dtype=np.int64)
        found[inside] = np.where(known[at[inside]] == keys[inside], at[inside], -1)
        for row in np.flatnonzero(found < 0) if self._late else ():
            found[row] = self._late.get(int(keys[row]), -1)
        return found

    def keys(self, slots: IntArray) -> IntArray:
        """(N,) image keys of slots."""
        return self._keys[slots]

    def newest(self, count: int) -> IntArray:
        """Keys of the `count` images stored last."""
        return self._keys[max(0, self.size - count) : self.size]

    def close(self) -> None:
        """Free the file."""
        self._rows = np.zeros((0, 0), dtype=np.float16)
        self._file.close()

    def _reserve(self, rows: int, width: int) -> None:
        if rows <= len(self._keys):
            return
        room = max(_LEAST_ROWS, rows, int(len(self._keys) * _GROWTH))
        self._file.truncate(room * width * 2)
        self._rows = np.memmap(self._file, dtype=np.float16, mode="r+", shape=(room, width))
        self._keys = np.concatenate([self._keys, np.zeros(room - len(self._keys), dtype=np.int64)])
