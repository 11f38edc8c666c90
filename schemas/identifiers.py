"""The shape of identifiers `[id1,id2,id3,id4,id5]` and their packing into integers.

Source: the paper, section 3.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from schemas.errors import UsageError

# Positions that carry meaning; the fifth position is the instance suffix.
LEVELS = 4

# Identifiers that a shape has for each image it is meant for. Images crowd into few leaves: with
# 5 identifiers an image, 6% of the demo's images found their leaves full, with 2.6 a quarter.
HEADROOM = 32

# Images that a shape can be asked for.
MAX_EXPECTED = 1 << 32

# Suffixes that a shape grows to: each is a token of the model, and means nothing to it.
_MAX_SUFFIXES = 1024

# A leaf and its suffix together fit a signed 64-bit key, with a bit to spare.
_KEY_BITS = 62


@dataclass(frozen=True, slots=True)
class IdentifierShape:
    """How many codes each level has, K_1..K_4, and how many suffixes the model knows, K_5.

    A *leaf* is id1..id4 packed as one mixed-radix integer, id1 the most significant digit:
    `leaf = ((id1*K2 + id2)*K3 + id3)*K4 + id4`. All leaves below one prefix are therefore one
    contiguous range.
    """

    codes: tuple[int, int, int, int]
    suffixes: int

    def __post_init__(self) -> None:
        if len(self.codes) != LEVELS or min(*self.codes, self.suffixes) < 1:
            raise UsageError(
                f"an identifier shape must have {LEVELS} positive code counts and a positive "
                f"suffix count, got {self.codes}+{self.suffixes}; correct the counts"
            )
        if prod(self.codes) * self.suffixes >= 1 << _KEY_BITS:
            raise UsageError(
                f"an identifier shape must have fewer than 2**{_KEY_BITS} identifiers, got "
                f"{self.codes}+{self.suffixes}; lower the count of a level"
            )

    @property
    def comfortable(self) -> int:
        """Images that the shape is meant for: nearly all of them get a suffix in a leaf of theirs.

        More are taken and found all the same; see `workers.repository.suffix_allocation`.
        """
        return self.leaves * self.suffixes // HEADROOM

    def grown_for(self, images: int) -> "IdentifierShape":
        """The shape grown until it is comfortable for so many images; itself if it is already.

        Suffixes and codes are doubled in turn, so that leaves stay about as large as they were:
        the finest codes first, because they need the least data to be told apart.
        """
        if not 1 <= images <= MAX_EXPECTED:
            raise UsageError(
                f"the expected number of images must be between 1 and {MAX_EXPECTED:,}, got "
                f"{images:,}; give the number of images that the index is to hold"
            )
        shape = self
        level = LEVELS
        while shape.comfortable < images:
            if shape.suffixes < _MAX_SUFFIXES:
                shape = replace(shape, suffixes=shape.suffixes * 2)
            if shape.comfortable < images:
                shape = replace(shape, codes=_doubled(shape.codes, level))
                level = level - 1 if level > 1 else LEVELS
        return shape

    @property
    def leaves(self) -> int:
        """The number of different id1..id4."""
        return prod(self.codes)

    def prefixes(self, level: int) -> int:
        """The number of different prefixes of length `level` (0 → 1, 4 → `leaves`)."""
        return prod(self.codes[:level])

    def pack(self, codes: Sequence[int]) -> int:
        """Return the leaf of id1..id4; `UsageError` when a code is outside its level."""
        if len(codes) != LEVELS:
            raise UsageError(
                f"an identifier must have {LEVELS} codes before its suffix, got {len(codes)}; "
                "give id1 to id4"
            )
        leaf = 0
        for level, (code, count) in enumerate(zip(codes, self.codes, strict=True), start=1):
            if not 0 <= code < count:
                raise UsageError(
                    f"id{level} must be in 0..{count - 1}, got {code}; "
                    "use an identifier of this codebook"
                )
            # Codes also arrive as narrow numpy integers, in which the product would overflow.
            leaf = leaf * count + int(code)
        return leaf

    def unpack(self, leaf: int) -> tuple[int, int, int, int]:
        """Return id1..id4 of a leaf; `UsageError` when the shape has no such leaf."""
        if not 0 <= leaf < self.leaves:
            raise UsageError(
                f"a leaf must be in 0..{self.leaves - 1}, got {leaf}; use a leaf of this codebook"
            )
        _, k2, k3, k4 = self.codes
        rest, id4 = divmod(leaf, k4)
        rest, id3 = divmod(rest, k3)
        id1, id2 = divmod(rest, k2)
        return id1, id2, id3, id4

    def identifier(self, leaf: int, suffix: int) -> list[int]:
        """Return the five numbers of (leaf, suffix), as the command line and the API print them.

        A suffix may lie beyond the shape: the leaf was full, and the paper's mode, which has a
        token for each suffix, does not find the image.
        """
        return [*self.unpack(leaf), int(suffix)]


def _doubled(codes: tuple[int, int, int, int], level: int) -> tuple[int, int, int, int]:
    """The code counts with that of one level, counted from 1, twice as high."""
    k1, k2, k3, k4 = (count * (1 + (at == level)) for at, count in enumerate(codes, start=1))
    return k1, k2, k3, k4
