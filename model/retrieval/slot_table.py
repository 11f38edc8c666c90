"""The slot table: which shards hold the postings of each slot, and the suffix of its primary.

A shard's number takes 13 of the 16 bits that each of a slot's places has. The bits of the suffix
are in the other three of each, from the first place on, so that it takes no bytes of its own where
an image has as many postings as its suffix needs places.

Letters in shapes: N slots, m places of a slot, P postings.
"""

import numpy as np
import numpy.typing as npt

from model.retrieval.shards import runs
from schemas.records import BoolArray, IntArray, NamedArrays

# Bits of a shard's number, and the suffix's bits beside it.
_SHARD_BITS = 13
_SUFFIX_BITS = 16 - _SHARD_BITS

# In place of a shard: the slot has no further posting. There are fewer shards than that.
_NONE = (1 << _SHARD_BITS) - 1

# The same beside suffix 0.
_EMPTY = np.uint16(_NONE)

_LOW = np.uint16((1 << _SUFFIX_BITS) - 1)

# Slots that room is made for at a time: 384 KiB, which are cleared in 0.1 ms.
_STEP = 1 << 16


class SlotTable:
    """Shards and suffix by slot. It grows in place."""

    def __init__(self, most_suffix: int) -> None:
        """`most_suffix`: the highest suffix of any slot."""
        self._suffix_places = max(1, -(-most_suffix.bit_length() // _SUFFIX_BITS))
        self._places: npt.NDArray[np.uint16] = np.empty((0, self._suffix_places), np.uint16)

    def __len__(self) -> int:
        """N, slots that there is room for."""
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self._places.nbytes

    def to_arrays(self) -> NamedArrays:
        """All that it holds, for `restore`."""
        return {"slot_places": self._places}

    def restore(self, arrays: NamedArrays) -> None:
        """Take over what another table of this highest suffix held."""
        # A copy: it grows in place.
        self._places = arrays["slot_places"].copy()

    def grow(self, size: int) -> None:
        """Make room for slots below `size`."""
        begin, width = self._places.shape
        if size <= begin:
            return
        end = -(-size // _STEP) * _STEP
        # In place: memory of this size is moved by remapping it, not by copying. No view of it
        # leaves this class, so the check for others that may hold one is not needed.
        self._places.resize((end, width), refcheck=False)
        self._places[begin:] = _EMPTY

    def posted(self, slots: IntArray) -> BoolArray:
        """Which of (P,) slots have a posting."""
        found = np.zeros(len(slots), np.bool_)
        known = slots < len(self._places)
        found[known] = (self._places[slots[known], 0] & _NONE) != _NONE
        return found

    def every_posted(self) -> IntArray:
        """The slots that have a posting, (n,) int64 ascending."""
        return np.flatnonzero((self._places[:, 0] & _NONE) != _NONE)

    def shards(self, slot: int) -> set[int]:
        """The shards with postings of a slot."""
        return set((self._places[slot] & _NONE).tolist()) - {_NONE}

    def forget(self, slot: int) -> None:
        """A slot has no posting any more."""
        self._places[slot] = _EMPTY

    def suffixes(self, slots: IntArray) -> IntArray:
        """The suffixes (P,) of slots that have a primary."""
        places = self._places[slots, : self._suffix_places] >> _SHARD_BITS
        shifts = _SUFFIX_BITS * np.arange(self._suffix_places)
        return (places.astype(np.int64) << shifts).sum(axis=1)

    def set_suffixes(self, slots: IntArray, suffixes: IntArray) -> None:
        """Set the suffixes of (P,) slots, each once."""
        shifts = _SUFFIX_BITS * np.arange(self._suffix_places)
        parts = (suffixes[:, None] >> shifts).astype(np.uint16) & _LOW
        columns = slice(0, self._suffix_places)
        shards = self._places[slots, columns] & np.uint16(_NONE)
        self._places[slots, columns] = shards | (parts << np.uint16(_SHARD_BITS))

    def add_shards(self, slots: IntArray, shards: IntArray) -> None:
        """Note the (P,) shards that hold postings of slots; a slot may repeat."""
        order = np.argsort(slots, kind="stable")
        slots = slots[order]
        begins, counts = runs(slots)
        before = ((self._places[slots[begins]] & _NONE) != _NONE).sum(axis=1)
        columns = np.arange(len(slots)) + np.repeat(before - begins, counts)
        missing = int(columns.max()) + 1 - self._places.shape[1]
        if missing > 0:
            # Happens at the first images only: all have about as many postings.
            more = np.full((len(self._places), missing), _EMPTY, np.uint16)
            self._places = np.concatenate([self._places, more], axis=1)
        suffix = self._places[slots, columns] & ~np.uint16(_NONE)
        self._places[slots, columns] = suffix | shards[order].astype(np.uint16)
