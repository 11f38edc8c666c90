"""String identifiers of GRACE: a number for each image, in letters that do not follow each other.

GRACE spells its numbers so, to keep neighbours from sharing a beginning.
"""

from dataclasses import dataclass
from random import Random
from string import ascii_lowercase

from model.identifiers.rivals.scheme import (
    FittedScheme,
    Identifier,
    SchemeImages,
    single,
)

_LETTERS = 6


@dataclass(frozen=True, slots=True)
class RandomString:
    """A string drawn for each image."""

    name: str = "GRACE string"
    source: str = "Li et al. 2024"
    deviation: str = "letters are drawn at random"
    later: str = "another string, which says nothing of the picture"
    writes: bool = False
    reranked: bool = False

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """Draw a string for each image."""
        rng = Random(f"strings/{seed}")

        def assign(later: SchemeImages) -> list[list[Identifier]]:
            return [[_drawn(rng)] for _ in range(len(later))]

        return FittedScheme(0, single([_drawn(rng) for _ in range(len(images))], images), assign)


def _drawn(rng: Random) -> str:
    return " ".join(rng.choices(ascii_lowercase, k=_LETTERS))
