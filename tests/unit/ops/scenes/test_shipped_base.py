"""The shipped base sees grounds, colours and shapes, and codes of its vectors tell them."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from model.identifiers.caption_directions import caption_directions
from model.identifiers.codebook import CodebookConfig, fit_codebook
from model.network.base import SHIPPED, Base
from model.network.profiles import profile
from ops.scenes.caption_words import right_kinds, true_attributes
from ops.scenes.corpus import CorpusConfig, Sample, samples
from ops.scenes.vocabulary import COLOURS, GROUNDS, SHAPES
from schemas.records import FloatArray

# Scenes to fit and to judge.
FITTED = 1100
JUDGED = 300

WORDS: dict[str, Sequence[str]] = {
    "ground": tuple(GROUNDS),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
}


@cache
def scenes() -> list[Sample]:
    return list(samples(CorpusConfig(FITTED + JUDGED, seed=7, captions=4, side_px=56)))


@cache
def vectors() -> tuple[FloatArray, FloatArray]:
    """Of all scenes, and of the captions of those to fit, (4·FITTED, D)."""
    encoder = Base.load(SHIPPED).encoder
    texts = [caption for scene in scenes()[:FITTED] for caption in scene.captions]
    pictures = [scene.pixels(56) for scene in scenes()]
    return encoder.embed_images(pictures), encoder.embed_texts(texts)


@pytest.mark.parametrize(("kind", "least"), [("ground", 0.7), ("colour", 0.6), ("shape", 0.55)])
def test_the_nearest_caption_of_other_scenes_is_mostly_right(kind: str, least: float) -> None:
    images, captions = vectors()
    texts = [caption for scene in scenes()[:FITTED] for caption in scene.captions]
    right: list[bool] = []
    for scene, nearest in zip(
        scenes()[FITTED:], (images[FITTED:] @ captions.T).argmax(1).tolist(), strict=True
    ):
        right.append(right_kinds(texts[nearest], scene.scene)[kind])
    assert np.mean(right) >= least


@pytest.mark.parametrize(("kind", "least"), [("ground", 0.7), ("colour", 0.6), ("shape", 0.5)])
def test_codes_tell_the_likeliest_word_of_each_kind(kind: str, least: float) -> None:
    images, captions = vectors()
    means = captions.reshape(FITTED, 4, -1).mean(1)
    directions = caption_directions(images[:FITTED], means, 0)
    shape = profile("tiny").shape
    codes = fit_codebook(images[:FITTED], CodebookConfig(shape), directions=directions).encode(
        images
    )
    told = [np.eye(count)[codes[:, level]] for level, count in enumerate(shape.codes)]
    joint = codes[:, :1] * max(shape.codes[1:]) + codes[:, 1:]
    told += [np.eye(shape.codes[0] * max(shape.codes[1:]))[joint[:, level]] for level in range(3)]
    known = np.concatenate(told, axis=1)
    is_true = np.array(
        [
            [word in true_attributes(scene.scene).words[kind] for word in WORDS[kind]]
            for scene in scenes()
        ]
    )
    fitted = known[:FITTED]
    weights = np.linalg.solve(
        fitted.T @ fitted + 3 * np.eye(known.shape[1]),
        fitted.T @ (is_true[:FITTED] - is_true[:FITTED].mean(0)),
    )
    likeliest = (known[FITTED:] @ weights + is_true[:FITTED].mean(0)).argmax(1)
    assert is_true[FITTED:][np.arange(JUDGED), likeliest].mean() >= least
