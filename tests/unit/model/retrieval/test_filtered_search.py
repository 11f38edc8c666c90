"""Filtered search against the search of a trie that never held anything but the allowed images."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.retrieval import filtered_search
from model.retrieval.filtered_search import (
    FilteredQuery,
    search_paper_filtered,
)
from model.retrieval.filtered_search import search_filtered as search_any_filtered
from model.retrieval.filtered_trie import FilteredTrie, FilterTables
from model.retrieval.prefix_means import PrefixMeans
from model.retrieval.search import SearchIndex, SearchResult, search, search_exact, search_paper
from model.retrieval.trie import ALTERNATE, Trie
from schemas.identifiers import LEVELS
from schemas.records import BoolArray, IntArray
from schemas.retrieval_settings import RetrievalSettings
from tests.unit.model.retrieval.test_search import (
    SHAPE,
    TEXTS,
    WIDTH,
    Entry,
    index_of,
    random_entries,
)

IMAGES = 40
ALL_BEAMS = RetrievalSettings(beams=SHAPE.leaves * 2)


def some(seed: int, share: float = 0.4) -> BoolArray:
    return np.random.default_rng(seed).random(IMAGES) < share


def filtered(index: SearchIndex, allowed: BoolArray) -> FilteredTrie:
    assert isinstance(index.trie, Trie)
    return FilteredTrie(index.trie, slots_of(index.trie, allowed), FilterTables(SHAPE))


def search_filtered(
    index: SearchIndex,
    trie: FilteredTrie,
    texts: Sequence[str],
    count: int,
    settings: RetrievalSettings,
) -> list[SearchResult]:
    asked = FilteredQuery(
        lambda own, wider: search(own, texts, count, wider),
        lambda: index.encoder.embed_texts(texts),
        count,
    )
    return search_any_filtered(index, trie, asked, settings)


def slots_of(trie: Trie, allowed: BoolArray) -> IntArray:
    slots = trie.searchable_slots()
    return slots[allowed[slots]]


def left(entries: Sequence[Entry], allowed: BoolArray) -> list[Entry]:
    return [entry for entry in entries if allowed[entry[1]]]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ranked without decoding."""
    monkeypatch.setattr(filtered_search, "EXACT_NUMBERS", -1)


@pytest.mark.parametrize("seed", range(4))
def test_a_filtered_trie_answers_like_one_of_the_allowed_images_alone(seed: int) -> None:
    entries, allowed = random_entries(seed, images=38), some(seed)
    # An alternate alone, and a suffix that the model has no token for.
    entries += [(3, 38, 0.0, SHAPE.suffixes), (4, 39, -1.0, ALTERNATE)]
    allowed[[38, 39]] = True
    index = index_of(entries)
    assert isinstance(index.trie, Trie)
    tables = FilterTables(SHAPE)
    # The tables have shown something else before.
    assert FilteredTrie(index.trie, slots_of(index.trie, ~allowed), tables).branches.leaves
    own = FilteredTrie(index.trie, slots_of(index.trie, allowed), tables)
    plain = index_of(left(entries, allowed)).trie
    assert own.searchable_slots().tolist() == plain.searchable_slots().tolist()
    for mine, theirs in ((own.branches, plain.branches), (own.primaries, plain.primaries)):
        assert mine.leaves == theirs.leaves
        assert mine.load.tolist() == theirs.load.tolist()
        for level in range(LEVELS):
            prefixes = torch.arange(SHAPE.prefixes(level))
            assert torch.equal(mine.children(level, prefixes), theirs.children(level, prefixes))
    everywhere = np.arange(SHAPE.leaves)
    pairs = []
    for trie in (own, plain):
        reached = trie.reached(everywhere)
        pairs.append(sorted(zip(reached.source.tolist(), reached.slots.tolist(), strict=True)))
    assert pairs[0] == pairs[1]
    assert [own.suffixes(leaf) for leaf in everywhere] == [
        plain.suffixes(leaf) for leaf in everywhere
    ]


def test_images_with_higher_slots_than_any_allowed_one_are_not_reached() -> None:
    own = filtered(index_of(random_entries(0)), np.arange(IMAGES) < 4)
    assert set(own.reached(np.arange(SHAPE.leaves)).slots.tolist()) == {0, 1, 2, 3}
    nothing = filtered(index_of(random_entries(0)), np.zeros(IMAGES, np.bool_))
    assert len(nothing.reached(np.arange(SHAPE.leaves)).slots) == 0
    assert nothing.branches.leaves == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.usefixtures("decoded")
def test_decoding_under_a_filter_is_decoding_of_what_it_allows(seed: int, guided: bool) -> None:
    entries, allowed = random_entries(seed), some(seed)
    index, plain = index_of(entries), index_of(left(entries, allowed))
    if guided:
        means = PrefixMeans(SHAPE, WIDTH)
        leaves = np.array([leaf for leaf, _, _, _ in entries])
        slots = np.array([slot for _, slot, _, _ in entries])
        means.add(leaves, index.embeddings[slots].astype(np.float32))
        index, plain = replace(index, means=means), replace(plain, means=means)
    for beams in (2, 7, 100):
        settings = RetrievalSettings(beams=beams)
        wanted = search(plain, TEXTS, 3, settings)
        if min(len(one.slots) for one in wanted) == 3:
            for mine, theirs in zip(
                search_filtered(index, filtered(index, allowed), TEXTS, 3, settings),
                wanted,
                strict=True,
            ):
                np.testing.assert_array_equal(mine.slots, theirs.slots)
                np.testing.assert_array_equal(mine.scores, theirs.scores)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("beams", [1, 3, 20])
@pytest.mark.parametrize("exact_numbers", [-1, 10 * WIDTH, 1000 * WIDTH])
def test_there_are_always_as_many_as_wanted_or_all_there_are(
    share: float, beams: int, exact_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filtered_search, "EXACT_NUMBERS", exact_numbers)
    allowed = some(5, share)
    index = index_of(random_entries(5))
    own = filtered(index, allowed)
    settings = RetrievalSettings(beams=beams)
    for searching in (search_filtered, search_paper_filtered):
        for result in searching(index, own, TEXTS, 15, settings):
            assert len(set(result.slots.tolist())) == min(15, int(allowed.sum()))
            assert allowed[result.slots].all()


def test_few_allowed_images_are_ranked_as_exact_search_ranks_them() -> None:
    allowed = some(7)
    index = index_of(random_entries(7))
    own = filtered(index, allowed)
    queries = index.encoder.embed_texts(TEXTS)
    wanted = search_exact(own, index.embeddings, queries, 5)
    for mine, theirs in zip(
        search_filtered(index, own, TEXTS, 5, RetrievalSettings(beams=1)), wanted, strict=True
    ):
        np.testing.assert_array_equal(mine.slots, theirs.slots)
        assert mine.scores.tolist() == pytest.approx(7 * theirs.scores, abs=1e-5)
        best = sorted(
            np.flatnonzero(allowed).tolist(),
            key=lambda slot: -float(index.embeddings[slot] @ queries[wanted.index(theirs)]),
        )
        assert mine.slots.tolist() == best[:5]


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_mode_decodes_allowed_identifiers_alone(seed: int) -> None:
    entries, allowed = random_entries(seed), some(seed)
    index, plain = index_of(entries), index_of(left(entries, allowed))
    wanted = search_paper(plain, TEXTS, 10, ALL_BEAMS)
    for mine, theirs in zip(
        search_paper_filtered(index, filtered(index, allowed), TEXTS, 10, ALL_BEAMS),
        wanted,
        strict=True,
    ):
        np.testing.assert_array_equal(mine.slots, theirs.slots)
        np.testing.assert_array_equal(mine.scores, theirs.scores)
