"""The scheme: how one paper turns images into identifiers.

An identifier is a text, which the model's own tokenizer spells, or numbers of symbols, each of
which becomes a token of its own. Letters in shapes: N images, D embedding width, R regions of an
image, H width of a region.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from schemas.records import FloatArray, IntArray

Identifier = str | tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SchemeImages:
    """What a scheme may look at."""

    vectors: FloatArray
    """(N, D) unit vectors of the encoder"""
    regions: FloatArray
    """(N, R, H) states of the vision tower, of the quarters of each picture"""
    captions: Sequence[Sequence[str]] = ()
    """Training captions of each image; images that come later have none."""
    caption_vectors: Sequence[FloatArray] = ()
    """(M, D) the encoder's of the captions of each image"""

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, slots=True)
class Identified:
    """The identifiers of one image: what its picture, and what each of its captions stands for."""

    picture: Identifier
    captions: tuple[Identifier, ...]

    @property
    def different(self) -> list[Identifier]:
        """All of them, each once."""
        return list(dict.fromkeys((self.picture, *self.captions)))


# Identifiers of N images that came after the training; each image has one or several.
Assign = Callable[[SchemeImages], list[list[Identifier]]]


@dataclass(frozen=True, slots=True)
class FittedScheme:
    """A scheme that has seen the training images."""

    symbols: int
    """Symbols that need tokens; 0 where identifiers are texts."""
    trained: tuple[Identified, ...]
    assign: Assign | None
    """What gives later images identifiers without training; None where only the model could."""


class Scheme(Protocol):
    """One rival."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    @property
    def source(self) -> str:
        """The papers that use it."""
        ...

    @property
    def deviation(self) -> str:
        """What is not as in them."""
        ...

    @property
    def later(self) -> str:
        """What it can do for images that come after the training."""
        ...

    @property
    def writes(self) -> bool:
        """Whether the trained model writes the identifiers of later images from their pictures."""
        ...

    @property
    def reranked(self) -> bool:
        """Whether the encoder's vectors order the images that were found."""
        ...

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """Give the training images identifiers."""
        ...


def single(identifiers: Sequence[Identifier], images: SchemeImages) -> tuple[Identified, ...]:
    """One identifier an image, which its captions stand for too."""
    identified: list[Identified] = []
    for own, captions in zip(identifiers, images.captions, strict=True):
        identified.append(Identified(own, (own,) * len(captions)))
    return tuple(identified)


def as_symbols(codes: IntArray, counts: Sequence[int]) -> list[tuple[int, ...]]:
    """(N, L) codes of levels with so many codes each as symbols: every level has its own."""
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    return [tuple(row) for row in (codes + starts).tolist()]
