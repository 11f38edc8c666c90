"""The model assigner: a generation's trained model and encoder, as an `ImageAssigner`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.decoding.assign import BeamSearchAssigner
from model.decoding.decoder import Decoder
from model.identifiers.codebook import Codebook
from model.network.checkpoint import Checkpoint, load_checkpoint, load_sigma
from model.network.encoder import Encoder
from model.network.sigma import SigmaModel
from schemas.identifiers import IdentifierShape
from schemas.records import ByteArray
from schemas.retrieval_settings import RetrievalSettings
from workers.generations.inferred import Inferred
from workers.repository.generations import Generation


class ModelAssigner:
    """An `ImageAssigner` that runs a trained model; the `codebook` has a vote."""

    def __init__(
        self,
        sigma: SigmaModel,
        encoder: Encoder,
        settings: RetrievalSettings,
        codebook: Codebook | None = None,
    ) -> None:
        """Without a `codebook` the model alone says all leaves."""
        self.shape: IdentifierShape = sigma.profile.shape
        self.encoder = encoder
        self.beam_search = BeamSearchAssigner(
            Decoder(sigma), settings.postings, codebook, settings.codebook_vote
        )

    @classmethod
    def load(
        cls, checkpoints: Path, generation: Generation, settings: RetrievalSettings
    ) -> "ModelAssigner":
        """Load a generation's model from the folder of all generations' checkpoints."""
        checkpoint = load_generation_checkpoint(checkpoints, generation)
        return cls(checkpoint.sigma, checkpoint.encoder, settings, checkpoint.codebook)

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        """Leaves and (D,) float16 embedding of each picture, (H, W, 3) uint8, in their order."""
        if not pictures:
            return []
        vectors = self.encoder.embed_images(pictures)
        assigned = self.beam_search.assign(pictures, vectors)
        embeddings = vectors.astype(np.float16)
        return [
            Inferred(leaves, embedding)
            for leaves, embedding in zip(assigned, embeddings, strict=True)
        ]


def load_generation_checkpoint(
    checkpoints: Path,
    generation: Generation,
    *,
    answering: bool = True,
    for_queries: bool = False,
) -> Checkpoint:
    """Read a generation's checkpoint below the folder `checkpoints`.

    Not `answering`: its weights are to be trained further. `for_queries`: see `load_checkpoint`.
    `RefuseToStartError` when it cannot be read, or its codebook is not the recorded one.
    """
    return load_checkpoint(
        checkpoints / generation.folder,
        generation.codebook_version,
        answering=answering,
        for_queries=for_queries,
    )


def load_generation_model(checkpoints: Path, generation: Generation) -> SigmaModel:
    """Likewise its model alone, to answer, without the encoder, which may be larger."""
    return load_sigma(checkpoints / generation.folder, generation.codebook_version, answering=True)
