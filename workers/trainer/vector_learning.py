"""Vector learning: whether a generation reads an encoder's vectors, and the vectors it learns from.

A model that reads texts learns what words mean from the captions of its corpus. Where captions are
missing, or where the encoder knows more words than the captions have, it reads the encoder's
vectors instead.
"""

import numpy as np
import structlog
import torch

from model.network.checkpoint import Checkpoint
from model.network.encoder import Encoder
from model.network.encoders.kept import KeptEncoder
from model.network.sigma import SigmaModel
from model.network.vector_reading import VectorReading
from model.training.class_names import class_names
from model.training.vector_set import VectorSet, noise_like
from schemas.records import FloatArray, HalfArray
from workers.trainer.training_images import TrainingImages
from workers.trainer.training_run import TrainingRun

log = structlog.get_logger()

# Captions that their mean is taken from: fewer are less than the class names say of texts.
_LEAST_TEXTS = 200

# Captions of which vectors are computed at most to find their mean.
_MOST_TEXTS = 2000


def learns_vectors(run: TrainingRun, images: TrainingImages, encoder: Encoder) -> bool:
    """Whether a full training makes a generation that reads vectors.

    So it is without captions for all images: one that no text leads to would be found by luck, and
    a refresh could not learn it. And for a small model on a pretrained encoder, whose own reading
    of a few thousand captions finds hardly anything else (docs/experiments/).
    """
    small = run.profile.tiny is not None
    return not images.captioned.all() or (small and isinstance(encoder, KeptEncoder))


def add_reading(
    run: TrainingRun,
    sigma: SigmaModel,
    encoder: Encoder,
    embeddings: FloatArray,
    images: TrainingImages,
) -> None:
    """Let a model read the vectors of an encoder, in place; (N, D) are those of the images."""
    # A large vision tower sees more than a vector tells; a small one has seen nothing else.
    pictures = run.profile.tiny is not None
    seed = run.request.seed
    texts = encoder.embed_texts(typical_texts(images, seed))
    noise = noise_like(_placed(embeddings), _placed(texts), seed)
    log.info("noise chosen", noise=noise, texts=len(texts))
    reading = VectorReading(encoder.width, noise, pictures=pictures, with_text=not pictures)
    torch.manual_seed(seed)
    sigma.add_projector(reading).place(embeddings, texts)


def _placed(vectors: FloatArray) -> FloatArray:
    """Unit vectors without their mean, as a projector places them."""
    moved = vectors - vectors.mean(0)
    placed: FloatArray = moved / np.linalg.norm(moved, axis=1, keepdims=True).clip(1e-6)
    return placed


def typical_texts(images: TrainingImages, seed: int) -> list[str]:
    """Texts that show where an encoder puts texts: captions, or names of things where few are."""
    captions: list[str] = []
    for own in images.captions:
        captions += own
    if len(captions) < _LEAST_TEXTS:
        return class_names()
    chosen = np.random.default_rng((seed, 8)).permutation(len(captions))[:_MOST_TEXTS]
    return [captions[place] for place in chosen.tolist()]


def vectors_to_read(
    checkpoint: Checkpoint, embeddings: HalfArray, images: TrainingImages
) -> VectorSet | None:
    """What stages read of (N, D) images and their captions; None for a model that reads none."""
    projector = checkpoint.sigma.projector
    if projector is None:
        return None
    captions: list[str] = []
    for own in images.captions:
        captions += own
    return VectorSet.of(projector, checkpoint.encoder, embeddings.astype(np.float32), captions)
