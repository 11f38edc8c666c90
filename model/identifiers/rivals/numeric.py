"""Numeric identifiers of GRACE: a number for each image, spelled in digits."""

from dataclasses import dataclass

from model.identifiers.rivals.scheme import (
    FittedScheme,
    Identifier,
    SchemeImages,
    single,
)

# Digits of a number.
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Numeric:
    """Images in the order in which they came."""

    name: str = "GRACE numeric"
    source: str = "Li et al. 2024"
    deviation: str = ""
    later: str = "the next number, which says nothing of the picture"
    writes: bool = False
    reranked: bool = False

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """Number the images."""
        count = len(images)
        numbers = [_spelled(number) for number in range(count)]

        def assign(later: SchemeImages) -> list[list[Identifier]]:
            return [[_spelled(count + number)] for number in range(len(later))]

        return FittedScheme(0, single(numbers, images), assign)


def _spelled(number: int) -> str:
    return " ".join(f"{number:0{_DIGITS}d}")
