"""vLLM beside the torch engine: the same leaves with the same scores, under the same trie."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from model.decoding.beam import NEVER, Beams, search_identifiers, search_leaves
from model.decoding.decoder import Decoder
from model.decoding.export import ensure_export
from model.decoding.vllm import TokenRows, VllmDecoder, engine_arguments
from model.identifiers.codebook import CodebookConfig, fit_codebook
from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint
from model.network.parts import parts_from_base
from model.network.profiles import profile
from model.retrieval.trie import ALTERNATE, Trie
from ops.scenes.captions import caption
from ops.scenes.scene import draw_scene
from schemas.errors import RefuseToStartError
from schemas.records import FloatArray
from schemas.retrieval_settings import RetrievalSettings
from workers.query.model_engine import ModelEngine
from workers.repository.follower import Changes, EmbeddingRows
from workers.repository.posting_rows import PostingRows

TOLERANCE = 5e-5
"""Of a leaf's log-probability, in nats. Measured over 500 queries of 20 leaves: 6e-6."""

IMAGES = 3000
"""Under random leaves they fill about half of the tiny profile's."""

BEAMS = 20

TOP = 10
"""Leaves that both engines must agree on."""

QUERIES = 500

ODD_TEXTS = (
    "a",
    "ein großes Quadrat 红色的圆 🙂",
    "<id1_0> <|identifier|> <|image_pad|>",
    "a small red circle",
    "word " * 400,
    "a small red circle",
)
"""From one token to as many as a prompt may have; one twice."""


@dataclass(frozen=True)
class Engines:
    """Both engines of one model: the shipped base with identifier tokens."""

    torch: Decoder
    vllm: VllmDecoder
    checkpoint: Checkpoint

    def trie(self, images: int = IMAGES, seed: int = 0) -> Trie:
        """Images under random leaves."""
        trie = Trie(self.checkpoint.sigma.profile.shape)
        slots = np.arange(images)
        leaves = np.random.default_rng(seed).integers(0, trie.shape.leaves, images)
        trie.insert(leaves, slots, np.zeros(images, np.float32), slots % trie.shape.suffixes)
        return trie

    def torch_beams(self, texts: Sequence[str], trie: Trie, beams: int = BEAMS) -> Beams:
        """Leaves that the torch engine finds."""
        prompt = self.torch.read_texts(texts)
        return search_leaves(self.torch, prompt, trie.shape, beams, trie.branches)

    def vllm_beams(self, texts: Sequence[str], trie: Trie, beams: int = BEAMS) -> Beams:
        """Leaves that vLLM finds."""
        prompt = self.vllm.read_texts(texts)
        return search_leaves(self.vllm, prompt, trie.shape, beams, trie.branches)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Without vLLM a skip on a laptop and a failure in CI."""
    environment = dict(os.environ)
    parts = parts_from_base(Base.load(SHIPPED), profile("tiny"))
    decoder = Decoder(parts.sigma)
    folder = ensure_export(parts.sigma, tmp_path_factory.mktemp("exports"), "base")
    try:
        vllm = VllmDecoder.start(decoder, folder)
    except RefuseToStartError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, parts.encoder.width)).astype(np.float32)
    codebook = fit_codebook(vectors, CodebookConfig(parts.sigma.profile.shape))
    yield Engines(decoder, vllm, Checkpoint(parts.sigma, codebook, parts.encoder))
    vllm.close()
    for name in set(os.environ) - set(environment):
        del os.environ[name]


def queries(count: int) -> list[str]:
    """Different captions of generated scenes."""
    texts: list[str] = []
    for number in range(count):
        rng = Random(f"vllm {number}")
        described = caption(rng, draw_scene(rng, "corpus"), rng.randrange(5))
        texts.append(f"{described}, number {number}")
    return texts


def scores_by_leaf(beams: Beams, row: int) -> dict[int, float]:
    """The beams of one prompt, best first."""
    return dict(zip(beams.leaves[row].tolist(), beams.scores[row].tolist(), strict=True))


def assert_same_best(expected: Beams, found: Beams, trie: Trie, top: int) -> None:
    """The same `top` leaves with the same scores; leaves that tie with the last may be swapped."""
    for row in range(len(expected.leaves)):
        ours = scores_by_leaf(expected, row)
        theirs = scores_by_leaf(found, row)
        assert_contains_best(theirs, ours, trie, top)
        assert_contains_best(ours, theirs, trie, top)


def assert_contains_best(
    found: dict[int, float], expected: dict[int, float], trie: Trie, top: int
) -> None:
    """The `top` leaves of `expected` are among the `top` of `found`, ties counted in."""
    last = sorted(found.values(), reverse=True)[:top][-1]
    for leaf, score in list(expected.items())[:top]:
        assert trie.branches.load[leaf] > 0
        assert found[leaf] == pytest.approx(score, abs=TOLERANCE)
        assert found[leaf] >= last - TOLERANCE


def test_both_engines_find_the_same_leaves_for_500_queries(engines: Engines) -> None:
    trie = engines.trie()
    texts = queries(QUERIES)
    assert len(set(texts)) == QUERIES
    unoccupied = 0
    for start in range(0, QUERIES, 50):
        batch = texts[start : start + 50]
        found = engines.vllm_beams(batch, trie)
        assert_same_best(engines.torch_beams(batch, trie), found, trie, TOP)
        unoccupied += int((trie.branches.load[found.leaves.numpy()] == 0).sum())
    assert unoccupied == 0
    assert engines.vllm.running


def test_prompts_of_all_lengths_and_twins_are_scored_alike(engines: Engines) -> None:
    trie = engines.trie()
    found = engines.vllm_beams(ODD_TEXTS, trie)
    assert_same_best(engines.torch_beams(ODD_TEXTS, trie), found, trie, BEAMS)
    assert found.leaves[3].tolist() == found.leaves[5].tolist()
    alone = engines.vllm_beams(ODD_TEXTS[4:5], trie)
    np.testing.assert_allclose(alone.scores[0], found.scores[4], atol=TOLERANCE)


def test_each_prefix_of_a_prompt_is_sent_once(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[int]] = []
    score_rows = engines.vllm.score_rows

    def recorded(level: int, rows: TokenRows) -> FloatArray | None:
        sent.extend(rows)
        return score_rows(level, rows)

    monkeypatch.setattr(engines.vllm, "score_rows", recorded)
    engines.vllm_beams(["a star"] * 5, engines.trie())
    # The prompt itself, then at most one row of each beam at each further level.
    assert len(sent) == len(set(map(tuple, sent))) <= 1 + 3 * BEAMS


@pytest.mark.parametrize("images", [0, 1, 2, 40])
def test_only_leaves_of_the_trie_are_reached_and_all_when_the_beam_is_wide(
    engines: Engines, images: int
) -> None:
    trie = engines.trie(images, seed=images)
    found = engines.vllm_beams(ODD_TEXTS[:2], trie, beams=60)
    occupied = np.flatnonzero(trie.branches.load).tolist()
    for row in range(2):
        exists = found.scores[row] > NEVER
        assert sorted(found.leaves[row][exists].tolist()) == occupied


def test_deletes_and_inserts_show_in_the_next_search(engines: Engines) -> None:
    trie = engines.trie(300)
    best = int(engines.vllm_beams(["a star"], trie).leaves[0, 0])
    trie.delete(trie.reached(np.array([best])).slots.tolist())
    assert best not in engines.vllm_beams(["a star"], trie).leaves[0].tolist()
    trie.insert(np.array([best]), np.array([999]), np.zeros(1, np.float32), np.array([ALTERNATE]))
    assert int(engines.vllm_beams(["a star"], trie).leaves[0, 0]) == best


def test_the_papers_mode_gives_the_same_identifiers(engines: Engines) -> None:
    trie = engines.trie()
    texts = ODD_TEXTS[:4]
    expected = search_identifiers(engines.torch, engines.torch.read_texts(texts), trie, BEAMS)
    found = search_identifiers(engines.vllm, engines.vllm.read_texts(texts), trie, BEAMS)
    for ours, theirs in zip(expected, found, strict=True):
        our_scores = [identifier.score for identifier in ours]
        their_scores = [identifier.score for identifier in theirs]
        assert their_scores == pytest.approx(our_scores, abs=TOLERANCE)
        # Identifiers that tie with the last one may differ.
        tied = our_scores[-1] + 2 * TOLERANCE
        certain = {(image.leaf, image.suffix) for image in ours if image.score > tied}
        assert certain <= {(image.leaf, image.suffix) for image in theirs}
        for image in theirs:
            assert trie.suffixes(image.leaf)[image.suffix] == image.slot


def image_keys(engine: ModelEngine) -> list[list[int]]:
    """What an engine answers to four queries."""
    answers = engine.answer(ODD_TEXTS[:4], 5, RetrievalSettings())
    return [answer.image_keys.tolist() for answer in answers]


def test_the_next_engine_of_a_process_takes_over_and_the_one_before_goes_on(
    engines: Engines, tmp_path: Path
) -> None:
    trie = engines.trie()
    changes = changes_of(engines)
    plain = ModelEngine.open(1, engines.checkpoint, tmp_path, engine="torch")
    first = ModelEngine.open(1, engines.checkpoint, tmp_path, engine="vllm")
    for engine in (plain, first):
        engine.apply(changes)
    exports = list((tmp_path / "exports").iterdir())
    second = ModelEngine.open(1, engines.checkpoint, tmp_path, engine="vllm")
    second.apply(changes)
    assert list((tmp_path / "exports").iterdir()) == exports
    assert not engines.vllm.running
    # The fixture's engine was taken over from: its torch decoder answers.
    taken_over = engines.vllm_beams(ODD_TEXTS, trie)
    assert_same_best(engines.torch_beams(ODD_TEXTS, trie), taken_over, trie, BEAMS)

    answers: list[list[list[int]]] = []

    def ask_all() -> None:
        for engine in (plain, first, second):
            answers.append(image_keys(engine))

    # Engines are loaded in one thread and asked in another.
    thread = threading.Thread(target=ask_all)
    thread.start()
    thread.join()
    for engine in (first, plain):
        engine.close()
    answers.append(image_keys(second))
    second.close()
    assert len(answers) == 4
    assert all(keys == answers[0] for keys in answers)


def changes_of(engines: Engines) -> Changes:
    """Images under random leaves with random embeddings."""
    rng = np.random.default_rng(5)
    keys = np.arange(IMAGES)
    shape = engines.checkpoint.sigma.profile.shape
    vectors = rng.standard_normal((IMAGES, engines.checkpoint.encoder.width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    leaves = rng.integers(0, shape.leaves, IMAGES)
    zeros = np.zeros(IMAGES, np.float32)
    return Changes(
        PostingRows(leaves, keys, zeros, keys % shape.suffixes),
        EmbeddingRows(keys, vectors.astype(np.float16), zeros, np.ones(IMAGES, np.bool_)),
        np.empty(0, np.int64),
    )


def test_what_a_gpu_build_is_started_with_are_arguments_of_this_version(engines: Engines) -> None:
    from vllm import EngineArgs

    sigma = engines.checkpoint.sigma
    arguments = engine_arguments(sigma, Path("export"), torch.device("cuda"), 0.3)
    assert EngineArgs(**arguments).gpu_memory_utilization == 0.3
