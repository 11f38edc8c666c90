"""The engine over a trie and a gallery: what changes do to it, also when they come twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from model.decoding.beam import TextDecodingEngine
from model.network.querybank import Querybank
from model.retrieval.guidance import READING_TEXTS, READING_VECTORS, Guidance
from schemas.filters import parse_filter
from schemas.retrieval_settings import RetrievalSettings
from tests.unit.model.retrieval.test_search import (
    SHAPE as HASH_SHAPE,
)
from tests.unit.model.retrieval.test_search import (
    WIDTH,
    HashDecodingEngine,
    HashEncoder,
    unit_rows,
)
from tests.unit.workers.query.engines import SHAPE, UnitEncoder
from workers.query.engine import QueryPicture
from workers.query.gallery import Gallery
from workers.query.trie_engine import TrieEngine
from workers.repository.follower import Changes, EmbeddingRows
from workers.repository.posting_rows import PostingRows


def changes(keys: list[int], deleted: list[int]) -> Changes:
    """Images with a primary and an alternate each, and keys that are gone."""
    both = np.repeat(np.array(keys, np.int64), 2)
    return Changes(
        PostingRows(
            leaves=np.tile(np.array([1, 2], np.int64), len(keys)),
            image_keys=both,
            weights=np.zeros(len(both), np.float32),
            suffixes=np.where(np.arange(len(both)) % 2, -1, both),
        ),
        EmbeddingRows(
            image_keys=np.array(keys, np.int64),
            embeddings=np.tile(np.array([[1, 0]], np.float16), (len(keys), 1)),
            confidences=np.zeros(len(keys), np.float32),
            trained=np.zeros(len(keys), np.bool_),
        ),
        deleted=np.array(deleted, np.int64),
    )


def spread_images(count: int, first_key: int = 1) -> Changes:
    """Images with keys from `first_key` on, each alone under its leaf, with random embeddings."""
    vectors = np.random.default_rng(first_key).standard_normal((count, WIDTH))
    keys = np.arange(first_key, first_key + count)
    return Changes(
        PostingRows(
            leaves=np.arange(count),
            image_keys=keys,
            weights=np.zeros(count, np.float32),
            suffixes=np.zeros(count, np.int64),
        ),
        EmbeddingRows(
            image_keys=keys,
            embeddings=unit_rows(vectors).astype(np.float16),
            confidences=np.zeros(count, np.float32),
            trained=np.zeros(count, np.bool_),
        ),
        deleted=np.zeros(0, np.int64),
    )


def test_changes_that_are_read_twice_count_once(tmp_path: Path) -> None:
    decoding = cast(TextDecodingEngine[Any], None)
    engine = TrieEngine(1, SHAPE, UnitEncoder(), decoding, Gallery.open(tmp_path))
    for _ in range(3):
        engine.apply(changes([1, 2, 3], []))
        assert engine.images == 3
        assert engine.trie.branches.load.tolist()[:3] == [0, 3, 3]
    for _ in range(2):
        engine.apply(changes([4], [2]))
        assert engine.images == 3
    # A key that is gone never comes back, whatever is read again.
    engine.apply(changes([1, 2, 3, 4], []))
    assert engine.images == 3
    assert len(engine.trie.reached(np.arange(SHAPE.leaves)).slots) == 6
    engine.close()


def test_deleted_images_do_not_guide_beams_any_more(tmp_path: Path) -> None:
    decoding = cast(TextDecodingEngine[Any], None)
    engine = TrieEngine(
        1, SHAPE, UnitEncoder(), decoding, Gallery.open(tmp_path), guidance=READING_VECTORS
    )
    engine.apply(changes([1, 2, 3], []))
    means = engine.index.means
    assert means is not None
    prefixes, query = torch.tensor([[1, 2]]), torch.tensor([[1.0, 0.0]])
    assert cast(torch.Tensor, means.promise(3, prefixes, query)).tolist() == [[1.0, 1.0]]
    for deleted in ([1, 2], [2, 3], [3]):
        engine.apply(changes([], deleted))
    assert cast(torch.Tensor, means.promise(3, prefixes, query)).tolist() == [[0.0, 0.0]]
    engine.close()


@pytest.mark.parametrize("guidance", [None, READING_TEXTS, READING_VECTORS])
def test_an_index_without_images_answers_nothing_until_one_comes(
    tmp_path: Path, guidance: Guidance | None
) -> None:
    engine = TrieEngine(
        1,
        HASH_SHAPE,
        HashEncoder(),
        HashDecodingEngine(),
        Gallery.open(tmp_path),
        guidance=guidance,
    )
    settings = RetrievalSettings()
    for empty in (changes([], []), changes([], [7])):
        # As a database without rows gives them.
        engine.apply(replace(empty, embeddings=empty.embeddings.without(np.zeros(0, np.int64))))
        assert [each.image_keys.tolist() for each in engine.answer(["a", "b"], 3, settings)] == [
            [],
            [],
        ]
        vectors = engine.encoder.embed_texts(["a"])
        for answers in (
            engine.answer_exact(vectors, 3),
            engine.answer_paper(["a"], 3, settings),
            engine.answer_vectors(["a"], vectors, 3, settings),
        ):
            assert [each.image_keys.tolist() for each in answers] == [[]]
    engine.close()


@pytest.mark.parametrize("guidance", [None, READING_TEXTS, READING_VECTORS])
@pytest.mark.parametrize("count", [1, 7, 30])
def test_as_many_images_are_found_as_are_asked_for_however_few_a_leaf_has(
    tmp_path: Path, guidance: Guidance | None, count: int
) -> None:
    engine = TrieEngine(
        1,
        HASH_SHAPE,
        HashEncoder(),
        HashDecodingEngine(),
        Gallery.open(tmp_path),
        guidance=None if guidance is None else replace(guidance, least=1),
    )
    engine.apply(spread_images(30))
    (found,) = engine.answer(["a star"], count, RetrievalSettings(beams=1, candidates=1))
    assert len(found.image_keys) == count == len(set(found.image_keys.tolist()))
    engine.close()


BANK = Querybank(
    HashEncoder().embed_texts([f"text {number}" for number in range(20)]), 0.7, weight=5.0
)


def engine_with(bank: Querybank | None, folder: Path) -> TrieEngine:
    """An engine in which 30 images are posted."""
    engine = TrieEngine(
        1, HASH_SHAPE, HashEncoder(), HashDecodingEngine(), Gallery.open(folder), querybank=bank
    )
    engine.apply(spread_images(30))
    return engine


@pytest.mark.parametrize("filtered", [False, True])
def test_images_near_to_any_text_lose_in_answers(tmp_path: Path, filtered: bool) -> None:
    settings = RetrievalSettings(beams=64)
    plain, banked = engine_with(None, tmp_path / "plain"), engine_with(BANK, tmp_path / "banked")
    wanted = parse_filter({"not": {"field": "a", "exists": True}}) if filtered else None
    (before,) = plain.answer(["a"], 30, settings, wanted)
    (after,) = banked.answer(["a"], 30, settings, wanted)
    keys = before.image_keys.tolist()
    assert sorted(after.image_keys.tolist()) == sorted(keys) == list(range(1, 31))
    slots = plain.gallery.slots(before.image_keys)
    members = plain.gallery.embeddings[slots].astype(np.float32)
    lost = BANK.weight * BANK.hubness(members, HashEncoder.scale)
    expected = dict(zip(keys, (before.scores - lost).tolist(), strict=True))
    found = dict(zip(after.image_keys.tolist(), after.scores.tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-4)
    assert after.image_keys.tolist() == sorted(keys, key=lambda key: -expected[key])
    assert after.image_keys.tolist() != keys
    # How near images are to a picture, and to a text by exact search, no bank changes.
    vectors = HashEncoder().embed_texts(["a"])
    for engine in (plain, banked):
        (exact,) = engine.answer_exact(vectors, 30)
        nearest = sorted((members @ vectors[0]).tolist(), reverse=True)
        assert exact.scores.tolist() == pytest.approx(nearest, abs=1e-6)
    pictures = [QueryPicture(image_key=3, pixels=None)]
    (first,) = plain.answer_pictures(pictures, 30, settings, wanted)
    (second,) = banked.answer_pictures(pictures, 30, settings, wanted)
    assert first.scores.tolist() == second.scores.tolist()
    plain.close()
    banked.close()


def test_a_slot_that_is_used_again_loses_what_its_new_image_loses(tmp_path: Path) -> None:
    settings = RetrievalSettings(beams=64)
    used, fresh = (engine_with(BANK, tmp_path / name) for name in ("used", "fresh"))
    used.answer(["a"], 30, settings)
    for engine in (used, fresh):
        engine.apply(changes([], list(range(1, 31))))
        engine.apply(spread_images(30, first_key=31))
    (again,) = used.answer(["a"], 30, settings)
    (anew,) = fresh.answer(["a"], 30, settings)
    assert again.image_keys.tolist() == anew.image_keys.tolist()
    assert again.scores.tolist() == anew.scores.tolist()
    used.index.clear()
    used.apply(spread_images(30))
    (third,) = used.answer(["a"], 30, settings)
    cleared = engine_with(BANK, tmp_path / "cleared")
    (wanted,) = cleared.answer(["a"], 30, settings)
    assert third.scores.tolist() == wanted.scores.tolist()
    for engine in (used, fresh, cleared):
        engine.close()
