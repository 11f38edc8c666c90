"""Filtered search: always `count` images where a filter allows so many.

Few allowed images are all ranked, without decoding: that is exact and costs less. Of many, beams
are decoded under the allowed leaves alone. Where those beams find fewer images than are wanted,
more beams are decoded; where that does not help, all allowed images are ranked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.retrieval.filtered_trie import FilteredTrie
from model.retrieval.search import SearchIndex, SearchResult, search_exact, search_paper
from schemas.records import FloatArray
from schemas.retrieval_settings import RetrievalSettings

# Numbers of embeddings that are read to rank all allowed images at most: about as long as decoding
# takes on a CPU. 8,192 images of width 512.
EXACT_NUMBERS = 1 << 22

# Images that are ranked of the nearest ones, as a multiple of those asked for, and at least.
_NEARER = 4
_LEAST_NEAR = 100

# Times the beams of the settings that are decoded before all allowed images are ranked.
MOST_WIDER = 16


@dataclass(frozen=True, slots=True)
class FilteredQuery:
    """What is asked for, texts or pictures alike."""

    decode: Callable[[SearchIndex, RetrievalSettings], list[SearchResult]]
    """Searches an index with the beams of some settings, for `count` images."""
    vectors: Callable[[], FloatArray]
    """(B, D) unit vectors of the queries"""
    count: int


def search_filtered(
    index: SearchIndex, trie: FilteredTrie, asked: FilteredQuery, settings: RetrievalSettings
) -> list[SearchResult]:
    """The `count` best allowed images of each query; all there are where they are fewer."""
    wanted = min(asked.count, trie.images)
    if not wanted or trie.images * index.encoder.width <= EXACT_NUMBERS:
        return rank_all(replace(index, trie=trie), asked.vectors(), asked.count)
    index = replace(index, trie=trie)
    wider = settings
    while wider.beams <= MOST_WIDER * settings.beams:
        results = asked.decode(index, wider)
        if _fewest(results) >= wanted:
            return results
        wider = replace(wider, beams=2 * wider.beams, candidates=2 * wider.candidates)
        index = replace(index, guidance=index.guidance.doubled())
    return rank_all(index, asked.vectors(), asked.count)


def search_paper_filtered(
    index: SearchIndex,
    trie: FilteredTrie,
    texts: Sequence[str],
    count: int,
    settings: RetrievalSettings,
) -> list[SearchResult]:
    """The same in the paper's mode, of those images that it can reach."""
    index = replace(index, trie=trie)
    wanted = min(count, trie.decodable)
    # As many images as beams are returned at most.
    wider = replace(settings, beams=max(settings.beams, wanted))
    while True:
        results = search_paper(index, texts, count, wider)
        # With a beam for each leaf nothing is left out.
        if _fewest(results) >= wanted or wider.beams >= trie.primaries.leaves:
            return results
        wider = replace(wider, beams=2 * wider.beams)


def rank_all(index: SearchIndex, queries: FloatArray, count: int) -> list[SearchResult]:
    """The `count` best of all images for (B, D) queries, on the scale of other scores.

    By similarity and hubness. Hubness is looked at of the nearest alone, since to compute it of all
    would take longer.
    """
    near = count
    if index.hubness is not None:
        near = max(_LEAST_NEAR, _NEARER * count)
    found = search_exact(index.trie, index.embeddings, queries, near)
    return [_rescored(index, result, count) for result in found]


def _rescored(index: SearchIndex, result: SearchResult, count: int) -> SearchResult:
    """The `count` best of the images that are nearest to a query."""
    if result.cosines is None:
        raise AssertionError("exact search gives cosines")
    scores = result.cosines * np.float32(index.encoder.scale)
    if index.hubness is not None:
        members = index.embeddings[result.slots].astype(np.float32)
        scores -= index.hubness.penalties(result.slots, members)
    best = np.argsort(-scores, kind="stable")[:count]
    return replace(
        result, slots=result.slots[best], scores=scores[best], cosines=result.cosines[best]
    )


def _fewest(results: Sequence[SearchResult]) -> int:
    return min((len(result.slots) for result in results), default=0)
