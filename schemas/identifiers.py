"""The shape of identifiers `[id1,id2,id3,id4,id5]` and their packing into integers (paper, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from schemas.errors import UsageError

LEVELS = 4
"""Levels with meaning; the fifth position is the instance suffix."""


@dataclass(frozen=True, slots=True)
class IdentifierShape:
    """How many codes each level has, K_1..K_4, and how many suffixes one leaf can hand out, K_5.

    A *leaf* is id1..id4 packed as one mixed-radix integer, id1 the most significant digit:
    `leaf = ((id1*K2 + id2)*K3 + id3)*K4 + id4`, so that the children of a prefix are one contiguous range.
    """

    codes: tuple[int, int, int, int]
    suffixes: int

    def __post_init__(self) -> None:
        if len(self.codes) != LEVELS or min(*self.codes, self.suffixes) < 1:
            raise UsageError(
                f"identifier shape {self.codes}+{self.suffixes} is not four positive code counts and a positive suffix count"
            )
        if prod(self.codes) * self.suffixes >= 1 << 62:
            raise UsageError(
                f"identifier shape {self.codes}+{self.suffixes} does not fit a 64-bit key; lower a level's count"
            )

    @property
    def leaves(self) -> int:
        """Capacity: the number of different id1..id4."""
        return prod(self.codes)

    def prefixes(self, level: int) -> int:
        """Number of different prefixes of length `level` (0 → 1, 4 → `leaves`)."""
        return prod(self.codes[:level])

    def pack(self, codes: Sequence[int]) -> int:
        """Leaf of id1..id4; `UsageError` when a code is outside its level."""
        if len(codes) != LEVELS:
            raise UsageError(
                f"an identifier has {LEVELS} codes before its suffix, found {len(codes)}"
            )
        leaf = 0
        for level, (code, count) in enumerate(zip(codes, self.codes, strict=True), start=1):
            if not 0 <= code < count:
                raise UsageError(f"id{level} is {code}, allowed are 0..{count - 1}")
            leaf = leaf * count + int(code)
        return leaf

    def unpack(self, leaf: int) -> tuple[int, int, int, int]:
        """id1..id4 of a leaf."""
        if not 0 <= leaf < self.leaves:
            raise UsageError(f"leaf {leaf} is outside 0..{self.leaves - 1}")
        digits: list[int] = []
        for count in reversed(self.codes):
            leaf, digit = divmod(leaf, count)
            digits.append(digit)
        return digits[3], digits[2], digits[1], digits[0]

    def identifier(self, leaf: int, suffix: int) -> list[int]:
        """The five numbers of (leaf, suffix), as the command line and the API print them."""
        return [*self.unpack(leaf), int(suffix)]
