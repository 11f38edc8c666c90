"""The codebook of a full training, fitted to what the captions of its images tell."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from model.identifiers.caption_directions import LEAST_IMAGES_A_DIMENSION, caption_directions
from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook
from model.network.encoder import Encoder
from model.network.profiles import Profile
from model.progress import Progress
from schemas.records import FloatArray

# Captioned images whose captions are embedded at most: several for each dimension of an encoder.
_MOST_CAPTIONED = 20_000

# Images whose captions are embedded together.
_BATCH = 64


def fit_run_codebook(
    profile: Profile,
    seed: int,
    captions: Sequence[Sequence[str]],
    encoder: Encoder,
    embeddings: FloatArray,
    progress: Progress,
) -> Codebook:
    """Fit a codebook to the (N, D) embeddings of N images with their captions.

    In the directions of the captions where the profile wants that and enough images have any; else
    to the embeddings as they are.
    """
    directions = None
    rows = np.flatnonzero([bool(own) for own in captions])
    # Captions are embedded only where they are many enough.
    if profile.caption_directions and len(rows) >= LEAST_IMAGES_A_DIMENSION * encoder.width:
        chosen = np.random.default_rng((seed, 10)).permutation(len(rows))[:_MOST_CAPTIONED]
        rows = rows[np.sort(chosen)]
        told = _caption_vectors(encoder, [captions[row] for row in rows.tolist()], progress)
        directions = caption_directions(embeddings[rows], told, seed)
    # `fit_codebook` ticks once for each id1 cluster and once for the quantiser.
    with progress("codebook", profile.shape.codes[0] + 1) as bar:
        config = CodebookConfig(
            profile.shape, profile.subspaces, seed, centred=profile.centred_components
        )
        return fit_codebook(embeddings, config, bar.update, directions)


def _caption_vectors(
    encoder: Encoder, captions: Sequence[Sequence[str]], progress: Progress
) -> FloatArray:
    """(N, D) float32 mean vector of each image's captions."""
    parts: list[FloatArray] = []
    with progress("embed captions", len(captions)) as bar:
        for start in range(0, len(captions), _BATCH):
            batch = captions[start : start + _BATCH]
            vectors = encoder.embed_texts(list(chain.from_iterable(batch)))
            ends = np.cumsum([len(own) for own in batch])
            parts += [own.mean(0) for own in np.split(vectors, ends[:-1])]
            bar.update(len(batch))
    return np.stack(parts)
