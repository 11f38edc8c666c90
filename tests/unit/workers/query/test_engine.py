"""The engine over a trie and a gallery: what changes do to it, also when they come twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from model.decoding.beam import TextDecodingEngine
from model.retrieval.guidance import READING_TEXTS, READING_VECTORS, Guidance
from schemas.settings import RetrievalSettings
from tests.unit.model.retrieval.test_search import (
    SHAPE as HASH_SHAPE,
)
from tests.unit.model.retrieval.test_search import (
    WIDTH,
    HashDecodingEngine,
    HashEncoder,
)
from tests.unit.workers.query.engines import SHAPE, UnitEncoder
from workers.query.gallery import Gallery
from workers.query.trie_engine import TrieEngine
from workers.repository.follower import Changes, EmbeddingRows, PostingRows


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
    vectors = np.random.default_rng(0).standard_normal((30, WIDTH))
    spread = Changes(
        PostingRows(
            leaves=np.arange(30),
            image_keys=np.arange(1, 31),
            weights=np.zeros(30, np.float32),
            suffixes=np.zeros(30, np.int64),
        ),
        EmbeddingRows(
            image_keys=np.arange(1, 31),
            embeddings=vectors.astype(np.float16),
            confidences=np.zeros(30, np.float32),
            trained=np.zeros(30, np.bool_),
        ),
        deleted=np.zeros(0, np.int64),
    )
    engine.apply(spread)
    (found,) = engine.answer(["a star"], count, RetrievalSettings(beams=1, candidates=1))
    assert len(found.image_keys) == count == len(set(found.image_keys.tolist()))
    engine.close()
