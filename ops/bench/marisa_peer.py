"""marisa-trie as a peer of the live trie: the smallest of the tries of the registry.

It holds strings and is frozen. Identifiers become strings of four characters, and each posting is a
record of its slot. It has no list of children: the codes that may follow a prefix are those of all
keys below it.
"""

import importlib
import importlib.util
from typing import Any

import numpy as np

from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import BoolArray, IntArray

_MODULE = "marisa_trie"

# Added to a code: no character of a key is the zero byte, which ends strings in C.
_FIRST = 1


def has_marisa() -> bool:
    """Whether it is installed, by the extra `bench`."""
    return importlib.util.find_spec(_MODULE) is not None


class MarisaTrie:
    """Leaves and the slots posted under each."""

    def __init__(self, shape: IdentifierShape, leaves: IntArray, slots: IntArray) -> None:
        """Build it from (P,) postings."""
        self._shape = shape
        library: Any = importlib.import_module(_MODULE)
        keys = self._keys(leaves, LEVELS)
        records = ((slot,) for slot in slots.tolist())
        self._postings = library.RecordTrie("<i", zip(keys, records, strict=True))
        self._leaves = library.Trie(set(keys))

    @property
    def nbytes(self) -> int:
        """Bytes of the postings; the trie of leaves alone is not counted."""
        return len(self._postings.tobytes())

    def slots(self, leaf: int) -> list[int]:
        """Slots posted under a leaf."""
        (key,) = self._keys(np.array([leaf]), LEVELS)
        return [slot for (slot,) in self._postings.get(key, [])]

    def children(self, level: int, prefixes: IntArray) -> BoolArray:
        """Which codes may follow (B,) prefixes of `level` codes: (B, K)."""
        allowed = np.zeros((len(prefixes), self._shape.codes[level]), np.bool_)
        for row, prefix in enumerate(self._keys(prefixes, level)):
            following = {ord(key[level]) - _FIRST for key in self._leaves.keys(prefix)}
            allowed[row, list(following)] = True
        return allowed

    def _keys(self, prefixes: IntArray, level: int) -> list[str]:
        """Strings of (P,) prefixes of `level` codes."""
        codes = np.empty((len(prefixes), level), np.uint32)
        rest = prefixes
        for place in range(level - 1, -1, -1):
            rest, codes[:, place] = np.divmod(rest, self._shape.codes[place])
        text = (codes + _FIRST).astype("<u4").tobytes().decode("utf-32-le")
        return [text[begin : begin + level] for begin in range(0, len(text), level)]
