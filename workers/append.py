"""Appending: from pictures to postings of one generation. The index worker and the trainer's catch-up share it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.assign import Assigner, Leaves
from model.checkpoint import Checkpoint, load_checkpoint
from model.decoder import Decoder
from model.encoder import Encoder
from model.sigma import SigmaModel
from schemas.identifiers import IdentifierShape
from schemas.records import Assignment, ByteArray, HalfArray
from workers.repository.generations import Generation
from workers.services import Services


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


class Appender:
    """Assigns pictures in one generation."""

    def __init__(self, generation: int, sigma: SigmaModel, encoder: Encoder, postings: int) -> None:
        self.generation = generation
        self.shape: IdentifierShape = sigma.profile.shape
        self.encoder = encoder
        self.assigner = Assigner(Decoder(sigma), postings)

    @classmethod
    def load(cls, services: Services, generation: Generation) -> "Appender":
        """The appender of a generation; refuses a checkpoint that does not belong to it."""
        checkpoint = checkpoint_of(services, generation)
        return cls(generation.id, checkpoint.sigma, checkpoint.encoder, services.settings.postings)

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        """Leaves and embeddings of a batch of pictures."""
        if not pictures:
            return []
        leaves = self.assigner.assign(pictures)
        embeddings = self.encoder.embed_images(pictures).astype(np.float16)
        return [Inferred(one, embedding) for one, embedding in zip(leaves, embeddings, strict=True)]


def checkpoint_of(services: Services, generation: Generation) -> Checkpoint:
    """A generation's checkpoint, checked against the codebook version that the database knows."""
    folder = services.generations / (generation.checkpoint_path or f"g{generation.id}")
    return load_checkpoint(folder, generation.codebook_version)
