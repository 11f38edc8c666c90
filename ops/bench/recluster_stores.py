"""Stores of the re-clustering benchmark: embeddings of the images that a codebook has to follow."""

from collections.abc import Callable
from itertools import islice

import numpy as np

from model.network.base import Base
from ops.scenes.corpus import CorpusConfig, samples
from ops.scenes.scene import Scene
from schemas.records import FloatArray

# The kinds of stores; see `ops.bench.recluster`.
CORPORA = ("stationary", "shifted")

# Words of scenes that only later images show, in the shifted corpus.
LATER_WORDS = frozenset({"star", "ring", "pink", "brown", "lavender"})

# What the `tiny` profile looks at.
_SIDE_PX = 56

# Images of the corpus to choose from, more than are ever drawn: most scenes do not fit.
_ENDLESS = 1 << 40


def embedded_stores(base: Base, images: int, seed: int) -> dict[str, FloatArray]:
    """(2 · images, D) embeddings of the store of each of `CORPORA`.

    The first `images` and the first half of the later ones are the same images in both.
    """
    half = images // 2
    usual = _embedded(base, 2 * images, seed, _is_usual)
    strange = _embedded(base, images - half, seed, _is_strange)
    shifted = np.concatenate([usual[: images + half], strange])
    return {"stationary": usual, "shifted": shifted}


def _embedded(base: Base, count: int, seed: int, fits: Callable[[Scene], bool]) -> FloatArray:
    """(count, D) embeddings of the first images whose scene fits."""
    corpus = CorpusConfig(images=_ENDLESS, seed=seed, captions=0, test_captions=0)
    # Lazily: only scenes that fit are rendered, and only as many as are wanted.
    fitting = (sample for sample in samples(corpus) if fits(sample.scene))
    pixels = [sample.pixels(_SIDE_PX) for sample in islice(fitting, count)]
    return base.encoder.embed_images(pixels)


def _is_usual(scene: Scene) -> bool:
    """Whether a scene shows nothing of the later words."""
    words = {scene.ground}
    for scene_object in scene.objects:
        words |= {scene_object.shape, scene_object.colour}
    return not words & LATER_WORDS


def _is_strange(scene: Scene) -> bool:
    """On a later ground, or showing nothing but objects of a later shape or colour."""
    if scene.ground in LATER_WORDS:
        return True
    for scene_object in scene.objects:
        if not {scene_object.shape, scene_object.colour} & LATER_WORDS:
            return False
    return True
