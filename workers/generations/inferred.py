"""Inferred: what a model says about one picture. Imports no torch, so that workers start fast."""

from dataclasses import dataclass

from model.decoding.leaves import Leaves
from schemas.records import Assignment, HalfArray


@dataclass(frozen=True, slots=True)
class Inferred:
    """What a model says about one picture: its leaves and its (D,) float16 ranking embedding."""

    leaves: Leaves
    embedding: HalfArray

    def __post_init__(self) -> None:
        # Here, before anything is locked or written for this picture.
        self.assignment(image_key=0)

    def assignment(self, image_key: int) -> Assignment:
        """What to append to the trie for the image that is stored under `image_key`."""
        return Assignment(
            image_key=image_key,
            postings=self.leaves.postings,
            embedding=self.embedding,
            confidence=self.leaves.confidence,
            spill=self.leaves.spill,
        )
