"""What a model says about one picture, for the index worker and the trainer. Imports no torch."""

from dataclasses import dataclass

from model.decoding.leaves import Leaves
from schemas.records import Assignment, HalfArray


@dataclass(frozen=True, slots=True)
class Inferred:
    """What the model says about one picture: its leaves and its (D,) float16 ranking embedding."""

    leaves: Leaves
    embedding: HalfArray

    def assignment(self, image_key: int) -> Assignment:
        """The same for the image stored under a key."""
        return Assignment(
            image_key=image_key,
            postings=self.leaves.postings,
            embedding=self.embedding,
            confidence=self.leaves.confidence,
            spill=self.leaves.spill,
        )
