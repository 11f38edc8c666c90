"""vLLM beside the torch engine: the same leaves with the same scores, under the same trie."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest

from model.decoding.beam import NEVER, Beams, search_identifiers, search_leaves
from model.decoding.decoder import Decoder
from model.decoding.export import ensure_export
from model.decoding.vllm import TokenRows, VllmDecoder
from model.identifiers.codebook import CodebookConfig, fit_codebook
from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint
from model.network.parts import parts_from_base
from model.network.profiles import profile
from model.retrieval.trie import ALTERNATE, Trie
from ops.scenes.scenes import caption, draw_scene
from schemas.errors import RefuseToStartError
from schemas.records import FloatArray
from schemas.settings import RetrievalSettings
from workers.query.engine import ModelEngine
from workers.repository.follower import Changes, EmbeddingRows, PostingRows

TOLERANCE = 5e-5
"""Of a leaf's log-probability. Measured over 500 queries of 20 leaves: 6e-6."""

IMAGES, BEAMS, TOP, QUERIES = 3000, 20, 10, 500

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
    """Both engines of one model, the shipped base with identifier tokens, and a trie that fills half of its leaves."""

    torch: Decoder
    vllm: VllmDecoder
    checkpoint: Checkpoint

    def trie(self, images: int = IMAGES, seed: int = 0) -> Trie:
        """Images under random leaves."""
        trie = Trie(self.checkpoint.sigma.profile.shape)
        leaves = np.random.default_rng(seed).integers(0, trie.shape.leaves, images)
        trie.insert(
            leaves,
            np.arange(images),
            np.zeros(images, np.float32),
            np.arange(images) % trie.shape.suffixes,
        )
        return trie

    def both(self, texts: Sequence[str], trie: Trie, beams: int = BEAMS) -> tuple[Beams, Beams]:
        """Leaves that the torch engine finds, and those that vLLM finds."""
        return (
            search_leaves(
                self.torch, self.torch.read_texts(texts), trie.shape, beams, trie.branches
            ),
            search_leaves(self.vllm, self.vllm.read_texts(texts), trie.shape, beams, trie.branches),
        )


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Without vLLM a skip on a laptop and a failure in CI."""
    before = dict(os.environ)
    parts = parts_from_base(Base.load(SHIPPED), profile("tiny"))
    decoder = Decoder(parts.sigma)
    try:
        scorer = VllmDecoder(
            decoder, ensure_export(parts.sigma, tmp_path_factory.mktemp("exports"), "base")
        )
    except RefuseToStartError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    rows = np.random.default_rng(0).standard_normal((400, parts.encoder.width)).astype(np.float32)
    codebook = fit_codebook(rows, CodebookConfig(parts.sigma.profile.shape))
    yield Engines(decoder, scorer, Checkpoint(parts.sigma, codebook, parts.encoder))
    scorer.close()
    for name in set(os.environ) - set(before):
        del os.environ[name]


def queries(count: int) -> list[str]:
    """Different captions of generated scenes."""
    found: dict[str, None] = {}
    while len(found) < count:
        rng = Random(f"vllm {len(found)}")
        found[
            f"{caption(rng, draw_scene(rng, 'corpus'), rng.randrange(5))}, number {len(found)}"
        ] = None
    return list(found)


def assert_same_best(wanted: Beams, found: Beams, trie: Trie, top: int) -> None:
    """The same `top` leaves with the same scores; leaves that tie with the last of them may stand for each other."""
    for row in range(len(wanted.leaves)):
        sides = [
            dict(zip(one.leaves[row].tolist(), one.scores[row].tolist(), strict=True))
            for one in (wanted, found)
        ]
        for ours, theirs in (sides, sides[::-1]):
            last = sorted(theirs.values(), reverse=True)[:top][-1]
            for leaf, score in list(ours.items())[:top]:
                assert trie.branches.load[leaf] > 0
                assert theirs[leaf] == pytest.approx(score, abs=TOLERANCE)
                assert theirs[leaf] >= last - TOLERANCE


def test_both_engines_find_the_same_leaves_for_500_queries(engines: Engines) -> None:
    trie, texts = engines.trie(), queries(QUERIES)
    invalid = 0
    for begin in range(0, QUERIES, 50):
        wanted, found = engines.both(texts[begin : begin + 50], trie)
        assert_same_best(wanted, found, trie, TOP)
        invalid += int((trie.branches.load[found.leaves.numpy()] == 0).sum())
    assert invalid == 0
    assert engines.vllm.running


def test_prompts_of_all_lengths_and_twins_are_scored_alike(engines: Engines) -> None:
    trie = engines.trie()
    wanted, found = engines.both(ODD_TEXTS, trie)
    assert_same_best(wanted, found, trie, BEAMS)
    assert found.leaves[3].tolist() == found.leaves[5].tolist()
    alone = engines.both(ODD_TEXTS[4:5], trie)[1]
    np.testing.assert_allclose(alone.scores[0], found.scores[4], atol=TOLERANCE)


def test_each_prefix_of_a_prompt_is_sent_once(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[int]] = []
    score = engines.vllm.score_rows

    def counted(level: int, rows: TokenRows) -> FloatArray | None:
        sent.extend(rows)
        return score(level, rows)

    monkeypatch.setattr(engines.vllm, "score_rows", counted)
    engines.both(["a star"] * 5, engines.trie())
    assert len(sent) == len(set(map(tuple, sent))) <= 1 + 3 * BEAMS


@pytest.mark.parametrize("images", [0, 1, 2, 40])
def test_only_leaves_of_the_trie_are_reached_and_all_when_the_beam_is_wide(
    engines: Engines, images: int
) -> None:
    trie = engines.trie(images, seed=images)
    found = engines.both(ODD_TEXTS[:2], trie, beams=60)[1]
    for row in range(2):
        real = found.scores[row] > NEVER
        assert (
            sorted(found.leaves[row][real].tolist()) == np.flatnonzero(trie.branches.load).tolist()
        )


def test_deletes_and_inserts_show_in_the_next_search(engines: Engines) -> None:
    trie = engines.trie(300)
    best = int(engines.both(["a star"], trie)[1].leaves[0, 0])
    trie.delete(trie.reached(np.array([best])).slots.tolist())
    assert best not in engines.both(["a star"], trie)[1].leaves[0].tolist()
    trie.insert(np.array([best]), np.array([999]), np.zeros(1, np.float32), np.array([ALTERNATE]))
    assert int(engines.both(["a star"], trie)[1].leaves[0, 0]) == best


def test_the_papers_mode_gives_the_same_identifiers(engines: Engines) -> None:
    trie, texts = engines.trie(), ODD_TEXTS[:4]
    wanted = search_identifiers(engines.torch, engines.torch.read_texts(texts), trie, BEAMS)
    found = search_identifiers(engines.vllm, engines.vllm.read_texts(texts), trie, BEAMS)
    for ours, theirs in zip(wanted, found, strict=True):
        assert [one.score for one in theirs] == pytest.approx(
            [one.score for one in ours], abs=TOLERANCE
        )
        last = ours[-1].score + 2 * TOLERANCE
        assert {(one.leaf, one.suffix) for one in ours if one.score > last} <= {
            (one.leaf, one.suffix) for one in theirs
        }
        assert all(trie.suffixes(one.leaf)[one.suffix] == one.slot for one in theirs)


def test_the_next_engine_of_a_process_takes_over_and_the_one_before_goes_on(
    engines: Engines, tmp_path: Path
) -> None:
    trie, changes = engines.trie(), changes_of(engines)
    plain, first = (
        ModelEngine.open(1, engines.checkpoint, tmp_path, engine=name) for name in ("torch", "vllm")
    )
    for engine in (plain, first):
        engine.apply(changes)
    made = list((tmp_path / "exports").iterdir())
    second = ModelEngine.open(1, engines.checkpoint, tmp_path, engine="vllm")
    second.apply(changes)
    assert list((tmp_path / "exports").iterdir()) == made
    assert not engines.vllm.running
    assert_same_best(*engines.both(ODD_TEXTS, trie), trie, BEAMS)
    answers: list[list[list[int]]] = []

    def ask() -> None:
        for engine in (plain, first, second):
            answers.append(
                [
                    answer.image_keys.tolist()
                    for answer in engine.answer(ODD_TEXTS[:4], 5, RetrievalSettings())
                ]
            )

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    for engine in (first, plain):
        engine.close()
    answers.append(
        [
            answer.image_keys.tolist()
            for answer in second.answer(ODD_TEXTS[:4], 5, RetrievalSettings())
        ]
    )
    second.close()
    assert len(answers) == 4
    assert all(one == answers[0] for one in answers)


def changes_of(engines: Engines) -> Changes:
    """Images under random leaves with random embeddings."""
    rng, keys = np.random.default_rng(5), np.arange(IMAGES)
    shape, width = engines.checkpoint.sigma.profile.shape, engines.checkpoint.encoder.width
    vectors = rng.standard_normal((IMAGES, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nothing = np.zeros(IMAGES, np.float32)
    return Changes(
        PostingRows(rng.integers(0, shape.leaves, IMAGES), keys, nothing, keys % shape.suffixes),
        EmbeddingRows(keys, vectors.astype(np.float16), nothing, np.ones(IMAGES, np.bool_)),
        np.empty(0, np.int64),
    )
