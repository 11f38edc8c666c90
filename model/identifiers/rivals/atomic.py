"""Atomic identifiers of GRACE: a token of its own for each image."""

from dataclasses import dataclass

from model.identifiers.rivals.scheme import FittedScheme, Identifier, SchemeImages, single


@dataclass(frozen=True, slots=True)
class Atomic:
    """A classifier over the training images, in one token."""

    name: str = "GRACE atomic"
    source: str = "Li et al. 2024"
    deviation: str = ""
    later: str = "nothing: a later image has no token"
    writes: bool = False
    reranked: bool = False

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """A symbol for each image."""
        numbers: list[Identifier] = [(number,) for number in range(len(images))]

        def assign(later: SchemeImages) -> list[list[Identifier]]:
            return [[] for _ in range(len(later))]

        return FittedScheme(len(images), single(numbers, images), assign)
