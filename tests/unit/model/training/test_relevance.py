"""Nonsense, and the calibration by it."""

import re
from itertools import chain

import numpy as np
import pytest

from model.network.base import SHIPPED, Base
from model.retrieval.relevance import relevances_of
from model.training.class_names import class_names
from model.training.nonsense import nonsense
from model.training.relevance import (
    LEAST_PAIRS,
    RelevanceCosines,
    calibrate,
    fit,
    measure,
    share_above,
)
from ops.scenes.corpus import CorpusConfig, Sample, samples
from schemas.relevance import BORDER

CAPTIONS = ["a small red circle on navy", "two Dogs, running", "…"]


def test_nonsense_is_of_three_kinds_and_repeats_itself() -> None:
    texts = nonsense(CAPTIONS, 20, 3)
    assert texts == nonsense(CAPTIONS, 20, 3) != nonsense(CAPTIONS, 20, 4)
    assert {kind: len(own) for kind, own in texts.items()} == {
        "shuffled": 20,
        "unknown": 20,
        "noise": 20,
    }
    known = {"a", "small", "red", "circle", "on", "navy", "two", "Dogs", "running"}
    shuffled = set(chain.from_iterable(text.split() for text in texts["shuffled"]))
    assert shuffled <= known
    # Words of more than one caption stand beside each other.
    assert any("Dogs" in text and "navy" in text for text in texts["shuffled"])
    unknown = set(chain.from_iterable(text.split() for text in texts["unknown"]))
    assert unknown.isdisjoint(word.lower() for word in known)
    assert all(len(word) >= 4 for word in unknown)
    assert all(2 <= len(text.split()) <= 6 for own in texts.values() for text in own)


def test_no_caption_has_an_unknown_word() -> None:
    # Captions that know the names of all things but some.
    told = [name.upper() for name in class_names()[:950]]
    unknown = set(chain.from_iterable(text.split() for text in nonsense(told, 50, 0)["unknown"]))
    rest = set(re.findall(r"\w+", " ".join(class_names()[950:]).lower()))
    assert len(unknown) > 5
    assert unknown <= rest
    assert "unknown" not in nonsense(class_names(), 5, 0)


def test_captions_without_a_word_give_no_nonsense() -> None:
    assert nonsense(["…", ""], 5, 0) == {}


def test_the_curve_lies_between_known_and_nonsense() -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(0.8, 0.05, 400).astype(np.float32)
    kinds = {kind: rng.normal(0.4, 0.1, 200).astype(np.float32) for kind in ("a", "b")}
    fitted = fit(RelevanceCosines(known, kinds))
    assert 0.5 < -fitted.offset / fitted.slope < 0.75
    assert share_above(fitted, known) > 0.97
    assert share_above(fitted, kinds["a"]) < 0.03


def test_a_text_side_that_knows_nothing_calls_little_relevant_and_keeps_the_order() -> None:
    same = np.random.default_rng(1).normal(0.3, 0.1, 300).astype(np.float32)
    # Nonsense is even nearer than what was meant.
    fitted = fit(RelevanceCosines(same, {"a": same + 0.1}))
    assert fitted.slope > 0
    assert share_above(fitted, same) < 0.01
    found = relevances_of(fitted, np.array([0.1, 0.2, 0.6], np.float32))
    assert (np.diff(found) >= 0).all()


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    return list(samples(CorpusConfig(320, captions=2)))


def test_scenes_are_told_from_nonsense_by_the_shipped_encoder(scenes: list[Sample]) -> None:
    encoder = Base.load(SHIPPED).encoder
    embeddings = encoder.embed_images([each.pixels(56) for each in scenes]).astype(np.float16)
    trained = slice(0, 240)
    queries = [each.test_captions[0] for each in scenes]
    captions = [each.captions for each in scenes]
    calibration = calibrate(
        encoder, queries[trained], captions[trained], embeddings[trained], seed=0
    )
    assert calibration is not None
    assert (calibration.pairs, calibration.nonsense) == (240, 360)
    # Others than it was made with: images that came later, and texts of another seed.
    later = np.arange(240, 320)
    found = measure(
        encoder,
        queries[240:],
        later,
        list(chain.from_iterable(captions)),
        embeddings,
        seed=9,
    )
    assert share_above(calibration, found.known) >= 0.9
    assert 1 - share_above(calibration, found.all_nonsense) >= 0.95
    assert calibration.known_above >= 0.9
    assert calibration.nonsense_below >= 0.95


def test_too_few_texts_calibrate_nothing(scenes: list[Sample]) -> None:
    encoder = Base.load(SHIPPED).encoder
    queries = [scene.test_captions[0] for scene in scenes[:LEAST_PAIRS]]
    vectors = encoder.embed_texts(queries).astype(np.float16)
    captions = [scene.captions for scene in scenes[:LEAST_PAIRS]]
    assert calibrate(encoder, queries, captions, vectors, 0) is not None
    assert calibrate(encoder, ["", *queries[1:]], captions, vectors, 0) is None


def test_a_text_is_calibrated_with_its_own_image_of_those_that_have_texts() -> None:
    encoder = Base.load(SHIPPED).encoder
    texts = [scene.test_captions[0] for scene in samples(CorpusConfig(64))]
    # Each image is what the text of the next but one says; every second image has no text.
    own = encoder.embed_texts(texts).astype(np.float16)
    queries = ["" if row % 2 else text for row, text in enumerate(texts)]
    calibration = calibrate(encoder, queries, [(text,) for text in texts], own, 0)
    assert calibration is not None
    assert calibration.pairs == 32
    # A text and itself: the most relevant that there is.
    assert calibration.known_above == 1.0
    assert relevances_of(calibration, np.ones(1, np.float32))[0] > BORDER
