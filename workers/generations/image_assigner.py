"""The image assigner: the interface between a model and whoever appends to a trie. No torch."""

from collections.abc import Sequence
from typing import Protocol

from schemas.identifiers import IdentifierShape
from schemas.records import ByteArray
from workers.generations.inferred import Inferred


class ImageAssigner(Protocol):
    """The model of one generation, as the index worker and the sweeps of a switch use it."""

    @property
    def shape(self) -> IdentifierShape:
        """Codes of each level, and suffixes of a leaf."""
        ...

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        """Leaves and ranking embedding of each picture, (H, W, 3) uint8, in the order given."""
        ...
