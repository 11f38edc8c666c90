"""Search against an exhaustive one: every leaf scored and every member ranked, one at a time."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
from torch import Tensor

from model.network.sketch import Sketch
from model.retrieval import search as searching
from model.retrieval.guidance import READING_TEXTS, READING_VECTORS, Guidance, opened
from model.retrieval.prefix_means import PrefixMeans
from model.retrieval.search import (
    SearchIndex,
    SearchResult,
    search,
    search_exact,
    search_paper,
)
from model.retrieval.sketches import SketchesBySlot
from model.retrieval.trie import ALTERNATE, Trie
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import ByteArray, FloatArray
from schemas.retrieval_settings import RetrievalSettings

SHAPE = IdentifierShape(codes=(3, 2, 3, 2), suffixes=50)
WIDTH = 6

ROUNDED = 0.03
"""Most that sketches err in a cosine of this width, and in a mean of them."""

TEXTS = ["a small red circle", "two blue squares", "a star"]
Entry = tuple[int, int, float, int]
"""Leaf, slot, weight, suffix."""


class HashEncoder:
    """Texts become seeded random unit vectors."""

    width = WIDTH
    scale = 7.0

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        return unit_rows(np.stack([noise(text).standard_normal(WIDTH) for text in texts]))

    def embed_images(self, images: Sequence[ByteArray]) -> FloatArray:
        raise NotImplementedError


class HashDecodingEngine:
    """Scores tokens by a hash of the text and of the codes before them."""

    def read_texts(self, texts: Sequence[str], vectors: FloatArray | None = None) -> list[str]:
        return list(texts)

    def begin(self, prompt: list[str]) -> "HashDecodingState":
        return HashDecodingState(prompt)


class HashDecodingState:
    """The state of `HashDecodingEngine`."""

    device = torch.device("cpu")

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.batch = len(texts)

    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        rows = []
        for text, own in zip(self.texts, prefixes.tolist(), strict=True):
            rows.append(torch.stack([token_scores(text, level, prefix) for prefix in own]))
        return torch.stack(rows)


def noise(*parts: object) -> np.random.Generator:
    return np.random.default_rng(list(repr(parts).encode()))


def token_scores(text: str, level: int, prefix: int) -> Tensor:
    """(K,) log-probabilities of the tokens behind a prefix."""
    count = SHAPE.suffixes if level == LEVELS else SHAPE.codes[level]
    drawn = noise(text, level, prefix).standard_normal(count)
    return torch.log_softmax(torch.from_numpy(drawn).float(), dim=-1)


def leaf_score(text: str, leaf: int) -> float:
    """Log-probability of id1..id4, added up code by code."""
    total, prefix = 0.0, 0
    for level, code in enumerate(SHAPE.unpack(leaf)):
        total += float(token_scores(text, level, prefix)[code])
        prefix = prefix * SHAPE.codes[level] + code
    return total


def unit_rows(rows: FloatArray) -> FloatArray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_entries(seed: int, images: int = 40) -> list[Entry]:
    """Each image has a primary and up to two alternates in other leaves."""
    rng = np.random.default_rng(seed)
    entries: list[Entry] = []
    for slot in range(images):
        leaves = rng.permutation(SHAPE.leaves)[: int(rng.integers(1, 4))].tolist()
        entries.append((leaves[0], slot, 0.0, slot))
        for rank, leaf in enumerate(leaves[1:], start=1):
            entries.append((leaf, slot, -0.5 * rank, ALTERNATE))
    return entries


def index_of(entries: Sequence[Entry], images: int = 40) -> SearchIndex:
    trie = Trie(SHAPE)
    if entries:
        leaves, slots, weights, suffixes = zip(*entries, strict=True)
        trie.insert(
            np.array(leaves), np.array(slots), np.array(weights, np.float32), np.array(suffixes)
        )
    embeddings = unit_rows(np.random.default_rng(9).standard_normal((images, WIDTH)))
    return SearchIndex(HashDecodingEngine(), HashEncoder(), trie, embeddings.astype(np.float16))


def slow_search(
    index: SearchIndex, entries: Sequence[Entry], text: str, settings: RetrievalSettings
) -> list[tuple[int, float]]:
    """(slot, fused score) of every candidate, best first, by plain loops over occupied leaves."""
    occupied = sorted({leaf for leaf, _, _, _ in entries})
    best_leaves = sorted(occupied, key=lambda leaf: -leaf_score(text, leaf))[: settings.beams]
    (query,) = index.encoder.embed_texts([text])
    belief: dict[int, float] = {}
    for leaf, slot, weight, _ in entries:
        if leaf in best_leaves:
            probability = exp(leaf_score(text, leaf) + weight)
            belief[slot] = belief.get(slot, 0.0) + probability
    scored = []
    for slot, probability in belief.items():
        cosine = float(index.embeddings[slot].astype(np.float32) @ query)
        fused = index.encoder.scale * cosine + settings.fusion_weight * log(probability)
        scored.append((slot, fused))
    return sorted(scored, key=lambda pair: -pair[1])


def check(result: SearchResult, wanted: Sequence[tuple[int, float]], count: int) -> None:
    assert result.slots.tolist() == [slot for slot, _ in wanted[:count]]
    assert result.scores.tolist() == pytest.approx([score for _, score in wanted[:count]], abs=1e-4)
    assert result.candidates == len(wanted)


# Beam search is exhaustive, and so comparable, once it keeps as many beams as leaves exist.
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fusion_weight", [0.0, 0.3, 5.0])
def test_it_equals_an_exhaustive_search(seed: int, fusion_weight: float) -> None:
    entries = random_entries(seed)
    index = index_of(entries)
    settings = RetrievalSettings(beams=SHAPE.leaves, fusion_weight=fusion_weight)
    results = search(index, TEXTS, 10, settings)
    for text, result in zip(TEXTS, results, strict=True):
        check(result, slow_search(index, entries, text, settings), 10)
        by_score = sorted(result.leaves.tolist(), key=lambda leaf: -leaf_score(text, leaf))
        assert result.leaves.tolist() == by_score
        assert set(by_score) == {leaf for leaf, _, _, _ in entries}


def test_few_beams_rank_the_members_of_the_decoded_leaves_and_no_others() -> None:
    entries = random_entries(1)
    index = index_of(entries)
    for result in search(index, TEXTS, 100, RetrievalSettings(beams=3)):
        assert len(result.leaves) == 3
        members = {slot for leaf, slot, _, _ in entries if leaf in result.leaves}
        assert set(result.slots.tolist()) == members
        assert result.candidates == len(members)


def test_a_text_has_the_same_answer_alone_and_among_others() -> None:
    index = index_of(random_entries(2))
    together = search(index, TEXTS, 10, RetrievalSettings())
    for text, result in zip(TEXTS, together, strict=True):
        (alone,) = search(index, [text], 10, RetrievalSettings())
        np.testing.assert_array_equal(alone.slots, result.slots)
        np.testing.assert_array_equal(alone.scores, result.scores)


def test_fewer_leaves_than_beams_leave_no_leaf_that_does_not_exist() -> None:
    index = index_of([(4, 0, 0.0, 0), (30, 1, 0.0, 0)], images=2)
    for result in search(index, TEXTS, 10, RetrievalSettings(beams=20)):
        assert set(result.leaves.tolist()) == {4, 30}


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_mode_scores_primary_identifiers_by_their_five_tokens(seed: int) -> None:
    entries = random_entries(seed)
    index = index_of(entries)
    results = search_paper(index, TEXTS, 10, RetrievalSettings(beams=SHAPE.leaves * 2))
    for text, result in zip(TEXTS, results, strict=True):
        wanted = []
        for leaf, slot, _, suffix in entries:
            if suffix != ALTERNATE:
                last = float(token_scores(text, LEVELS, leaf)[suffix])
                wanted.append((slot, leaf_score(text, leaf) + last))
        wanted.sort(key=lambda pair: -pair[1])
        check(result, wanted, 10)


def test_the_papers_mode_has_at_most_as_many_candidates_as_beams() -> None:
    index = index_of(random_entries(0))
    for result in search_paper(index, TEXTS, 10, RetrievalSettings(beams=4)):
        assert result.candidates == len(result.slots) == 4


def test_exact_search_orders_every_searchable_image_by_its_cosine() -> None:
    index = index_of(random_entries(3))
    index.trie.delete([5, 6])
    queries = index.encoder.embed_texts(TEXTS)
    results = search_exact(index.trie, index.embeddings, queries, 8)
    for query, result in zip(queries, results, strict=True):
        wanted = []
        for slot in range(len(index.embeddings)):
            if slot not in (5, 6):
                cosine = float(index.embeddings[slot].astype(np.float32) @ query)
                wanted.append((slot, cosine))
        wanted.sort(key=lambda pair: -pair[1])
        check(result, wanted, 8)


def test_an_empty_generation_answers_with_nothing() -> None:
    index = index_of([])
    queries = index.encoder.embed_texts(TEXTS)
    results = [
        *search(index, TEXTS, 10, RetrievalSettings()),
        *search_paper(index, TEXTS, 10, RetrievalSettings()),
        *search_exact(index.trie, index.embeddings, queries, 10),
    ]
    for result in results:
        assert len(result.slots) == len(result.scores) == result.candidates == 0


def guided_index(images: int, largest: int = 1) -> SearchIndex:
    """An index that reads vectors: one posting an image, of which the first leaf has `largest`."""
    rng = np.random.default_rng(3)
    leaves = np.concatenate([np.zeros(largest, np.int64), rng.integers(1, SHAPE.leaves, images)])
    leaves = leaves[:images]
    slots = np.arange(images)
    trie = Trie(SHAPE)
    trie.insert(leaves, slots, np.zeros(images, np.float32), slots % SHAPE.suffixes)
    embeddings = unit_rows(rng.standard_normal((images, WIDTH)))
    means = PrefixMeans(SHAPE, WIDTH)
    means.add(leaves, embeddings)
    half = embeddings.astype(np.float16)
    return SearchIndex(HashDecodingEngine(), HashEncoder(), trie, half, means, READING_VECTORS)


def sketches_of(index: SearchIndex) -> SketchesBySlot:
    """Sketches of all images, in as many directions as there are."""
    sketches = SketchesBySlot(Sketch(np.eye(WIDTH, dtype=np.float32)))
    sketches.put(np.arange(len(index.embeddings)), index.embeddings.astype(np.float32))
    return sketches


@pytest.mark.parametrize("sketched", [False, True])
@pytest.mark.parametrize("candidates", [1, 15, 40])
@pytest.mark.parametrize("guidance", [READING_TEXTS, READING_VECTORS])
def test_a_guided_search_ranks_the_images_that_decoder_and_means_believe_in_most(
    candidates: int, guidance: Guidance, sketched: bool
) -> None:
    index = replace(guided_index(200), guidance=guidance)
    if sketched:
        index = replace(index, sketches=sketches_of(index))
    settings = RetrievalSettings(beams=SHAPE.leaves, candidates=candidates)
    queries = index.encoder.embed_texts(TEXTS)
    leaves, slots = index.trie.every()
    assert index.means is not None
    for text, query, result in zip(
        TEXTS, queries, search(index, TEXTS, 200, settings), strict=True
    ):
        promises = index.means.promise(
            LEVELS - 1, torch.from_numpy(leaves)[None], torch.from_numpy(query)[None]
        )
        assert promises is not None
        expected = promises[0].numpy()
        if sketched:
            # How much nearer an image is than the mean of its leaf.
            cosines = index.embeddings[slots].astype(np.float32) @ query
            means = {leaf: cosines[leaves == leaf].mean() for leaf in leaves.tolist()}
            expected = expected + cosines - np.array([means[leaf] for leaf in leaves.tolist()])
        beliefs = {
            int(slot): leaf_score(text, int(leaf)) + guidance.nearness * 7.0 * float(cosine)
            for leaf, slot, cosine in zip(leaves, slots, expected, strict=True)
        }
        if sketched:
            # Sketches are rounded: of the last ones others may be taken. Of leaves that are not
            # opened, images are not known.
            seen = slots[np.isin(leaves, result.leaves)].tolist()
            chosen = [beliefs[slot] for slot in result.slots.tolist()]
            left = [beliefs[slot] for slot in seen if slot not in result.slots]
            assert result.candidates == candidates
            assert min(chosen) > max(left) - guidance.nearness * 7.0 * ROUNDED
            continue
        wanted = sorted(beliefs, key=lambda slot: (round(-beliefs[slot], 3), slot))[:candidates]
        assert result.candidates == candidates
        assert sorted(result.slots.tolist()) == sorted(wanted)


@pytest.mark.parametrize("budget", [1, 10, 100])
def test_leaves_are_opened_best_first_until_enough_postings_are_looked_at(budget: int) -> None:
    rng = np.random.default_rng(budget)
    beliefs = rng.standard_normal(50).astype(np.float32)
    beliefs[::7] = -np.inf
    loads = rng.integers(0, 20, 50).astype(np.int32)
    chosen = opened(budget, beliefs, loads)
    assert not chosen[::7].any()
    worst = beliefs[chosen].min()
    closed = ~chosen & (beliefs > -np.inf)
    assert (beliefs[closed] < worst).all()
    # The last one began within the bound; with it there are enough, or no more leaves.
    assert loads[chosen & (beliefs > worst)].sum() < 8 * budget
    assert loads[chosen].sum() >= 8 * budget or not closed.any()


def test_the_budget_is_a_share_of_the_gallery_within_bounds() -> None:
    budget = READING_VECTORS.budget
    assert budget(200, 1000, sketched=True) == READING_VECTORS.least == 60
    assert budget(4000, 1000, sketched=True) == 80
    assert budget(10**8, 1000, sketched=True) == READING_VECTORS.most == 600
    assert budget(4000, 70, sketched=True) == 70
    # Without sketches a leaf's images are all alike, and more of them are ranked.
    assert budget(4000, 1000, sketched=False) == 160
    assert READING_VECTORS.doubled().budget(200, 1000, sketched=True) == 120


def test_of_a_leaf_larger_than_the_budget_some_images_are_ranked() -> None:
    alone = guided_index(20, largest=20)
    for result in search(alone, TEXTS, 5, settings=RetrievalSettings(candidates=5)):
        assert result.candidates == 5


@pytest.mark.parametrize("most", [1, 7, 30])
def test_an_unguided_search_scores_the_likeliest_images_and_no_more_than_its_budget(
    most: int,
) -> None:
    entries = random_entries(0)
    index = index_of(entries)
    settings = RetrievalSettings(beams=SHAPE.leaves, candidates=most)
    whole = search(index, TEXTS, 500, RetrievalSettings(beams=SHAPE.leaves))
    for bounded, free in zip(search(index, TEXTS, 500, settings), whole, strict=True):
        assert bounded.candidates == most < free.candidates
        leaf_scores = dict(zip(free.leaves.tolist(), free.leaf_scores.tolist(), strict=True))
        chances: dict[int, float] = defaultdict(float)
        for leaf, slot, weight, _ in entries:
            chances[slot] += float(np.exp(leaf_scores[leaf] + np.float16(weight)))
        wanted = sorted(chances, key=lambda slot: (-chances[slot], slot))[:most]
        assert sorted(bounded.slots.tolist()) == sorted(wanted)
        # An image that is scored is scored by all its leaves.
        scores = dict(zip(free.slots.tolist(), free.scores.tolist(), strict=True))
        assert bounded.scores == pytest.approx([scores[slot] for slot in bounded.slots], abs=1e-4)


def test_similarity_alone_ranks_what_a_guided_search_reaches() -> None:
    index = guided_index(200)
    queries = index.encoder.embed_texts(TEXTS)
    settings = RetrievalSettings(beams=SHAPE.leaves, fusion_weight=5.0)
    for query, result in zip(queries, search(index, TEXTS, 20, settings), strict=True):
        cosines = index.embeddings[result.slots].astype(np.float32) @ query
        assert result.scores.tolist() == pytest.approx((7.0 * cosines).tolist(), abs=1e-4)


def test_a_decoder_of_texts_has_a_say_in_the_score_of_a_guided_search() -> None:
    index = replace(guided_index(200), guidance=READING_TEXTS)
    settings = RetrievalSettings(beams=SHAPE.leaves, fusion_weight=5.0)
    queries = index.encoder.embed_texts(TEXTS)
    leaf_of = {int(slot): int(leaf) for leaf, slot in zip(*index.trie.every(), strict=True)}
    for text, query, result in zip(TEXTS, queries, search(index, TEXTS, 9, settings), strict=True):
        assert 9 <= result.candidates <= 2 * READING_TEXTS.least
        for slot, score in zip(result.slots.tolist(), result.scores.tolist(), strict=True):
            cosine = float(index.embeddings[slot].astype(np.float32) @ query)
            belief = READING_TEXTS.belief * leaf_score(text, leaf_of[slot])
            assert score == pytest.approx(7.0 * cosine + 5.0 * belief, abs=1e-2)


@pytest.mark.parametrize("count", [1, 4, 1000])
def test_exact_search_in_blocks_finds_what_the_whole_has(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(searching, "_BLOCK_NUMBERS", 7 * WIDTH)
    rng = np.random.default_rng(0)
    # Whole numbers: sums are exact, and many images tie.
    embeddings = rng.integers(-2, 3, (60, WIDTH)).astype(np.float16)
    queries = rng.integers(-2, 3, (3, WIDTH)).astype(np.float32)
    trie = Trie(SHAPE)
    slots = rng.permutation(60)[:50]
    leaves = rng.integers(0, SHAPE.leaves, 50)
    trie.insert(leaves, slots, np.zeros(50, np.float32), np.arange(50) % SHAPE.suffixes)
    trie.delete([int(slots[0])])
    results = search_exact(trie, embeddings, queries, count)
    for query, result in zip(queries, results, strict=True):
        scored = [(-float(embeddings[slot] @ query), slot) for slot in slots[1:].tolist()]
        expected = sorted(scored)[:count]
        assert result.slots.tolist() == [slot for _, slot in expected]
        assert result.scores.tolist() == [-score for score, _ in expected]
        assert result.candidates == 49
