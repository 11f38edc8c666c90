"""Appending: from pictures to postings of one generation. The index worker and the trainer's catch-up share it."""

from collections.abc import Sequence

import numpy as np

from model.decoding.assign import BeamSearchAssigner
from model.decoding.decoder import Decoder
from model.network.checkpoint import Checkpoint, load_checkpoint
from model.network.encoder import Encoder
from model.network.sigma import SigmaModel
from schemas.identifiers import IdentifierShape
from schemas.records import ByteArray
from workers.generations.inferred import Inferred
from workers.repository.generations import Generation
from workers.runtime.services import Services

__all__ = ["Appender", "Inferred", "checkpoint_of"]


class Appender:
    """Assigns pictures in one generation."""

    def __init__(self, generation: int, sigma: SigmaModel, encoder: Encoder, postings: int) -> None:
        self.generation = generation
        self.shape: IdentifierShape = sigma.profile.shape
        self.encoder = encoder
        self.assigner = BeamSearchAssigner(Decoder(sigma), postings)

    @classmethod
    def load(cls, services: Services, generation: Generation) -> "Appender":
        """The appender of a generation; refuses a checkpoint that does not belong to it."""
        checkpoint = checkpoint_of(services, generation)
        return cls(
            generation.id,
            checkpoint.sigma,
            checkpoint.encoder,
            services.settings.retrieval.postings,
        )

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        """Leaves and embeddings of a batch of pictures."""
        if not pictures:
            return []
        leaves = self.assigner.assign(pictures)
        embeddings = self.encoder.embed_images(pictures).astype(np.float16)
        return [Inferred(one, embedding) for one, embedding in zip(leaves, embeddings, strict=True)]


def checkpoint_of(services: Services, generation: Generation) -> Checkpoint:
    """A generation's checkpoint, checked against the codebook version that the database knows."""
    folder = services.checkpoints / generation.folder
    return load_checkpoint(folder, generation.codebook_version)
