"""Search: the one path from texts to ranked images.

Queries, gates, evaluation, probes and the study all take it. A text becomes beams of leaves under
the trie (id1..id4); the leaves' members are the candidates, and the fused score of
`model.retrieval.ranking` orders them. Two further modes share its result: the paper's own, which
decodes all five tokens and ranks nothing, and exact dense search, the yardstick.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from model.decoding.beam import (
    NEVER,
    Beams,
    Guide,
    HostBeams,
    TextDecodingEngine,
    search_identifiers,
    search_leaves,
)
from model.network.encoder import Encoder
from model.network.query_head import QueryHeadEncoder
from model.retrieval.filtered_trie import SearchableTrie
from model.retrieval.guidance import READING_TEXTS, Guidance, opened
from model.retrieval.hubness import HubnessBySlot
from model.retrieval.prefix_means import PrefixMeans
from model.retrieval.ranking import beliefs_of, rank
from model.retrieval.shards import Reached
from model.retrieval.sketches import SketchesBySlot
from schemas.errors import WorkFailedError
from schemas.records import FloatArray, HalfArray, IntArray
from schemas.retrieval_settings import RetrievalSettings

# Numbers of a block of embeddings that exact search reads as float32 at a time: 16 MiB.
_BLOCK_NUMBERS = 1 << 22

# A damaged model would otherwise answer every query with nothing, or with anything.
_NOT_FINITE = (
    "the generation's model gives NaN or infinity; restore its checkpoint from a copy, or go back"
    " with: sigma generations rollback"
)


@dataclass(frozen=True, slots=True, eq=False)
class SearchIndex:
    """What one search reads of a generation.

    Make it anew for each search: the gallery's embeddings move as they grow.
    """

    decoding: TextDecodingEngine[Any]
    encoder: Encoder
    trie: SearchableTrie
    embeddings: HalfArray
    """(N, D) unit length, the row of each slot."""
    means: PrefixMeans | None = None
    """What guides the beams; without, the decoder alone chooses, and all that it reaches is ranked.
    """
    guidance: Guidance = READING_TEXTS
    """How the beams are guided."""
    prefetch: Callable[[IntArray], None] | None = None
    """Told the (n,) slots whose embeddings are read next."""
    sketches: SketchesBySlot | None = None
    """Tell images of a leaf apart, where a guided search chooses which are ranked; None of a
    generation that has none."""
    hubness: HubnessBySlot | None = None
    """What the images of a text lose in the ranking for being near to any; None for pictures."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The best images of one query, best first."""

    slots: IntArray
    """(k,)"""
    scores: FloatArray
    """(k,)"""
    candidates: int
    """Images that were scored, k of them returned."""
    leaves: IntArray
    """(W,) leaves that were decoded, best first."""
    leaf_scores: FloatArray
    """(W,) log-probabilities of the leaves."""
    cosines: FloatArray | None
    """(k,) of each image with the query's vector; None where images are not compared by it."""


def search(
    index: SearchIndex, texts: Sequence[str], count: int, settings: RetrievalSettings
) -> list[SearchResult]:
    """The `count` best images of each text: decode leaves, then rank all members of them."""
    encoder = index.encoder
    if isinstance(encoder, QueryHeadEncoder):
        # One reading of the prompts serves both: it is most of what a query costs.
        return search_read(index, index.decoding.read_texts(texts), None, count, settings)
    return search_embedded(index, texts, encoder.embed_texts(texts), count, settings)


def search_embedded(
    index: SearchIndex,
    texts: Sequence[str],
    queries: FloatArray,
    count: int,
    settings: RetrievalSettings,
) -> list[SearchResult]:
    """The same for texts whose (B, D) vectors are known.

    A generation that reads vectors is also asked with vectors of which no text is known, under
    empty texts.
    """
    _require_finite(queries)
    prompt = index.decoding.read_texts(texts, queries)
    return search_read(index, prompt, queries, count, settings)


def search_read(
    index: SearchIndex,
    prompt: Any,
    queries: FloatArray | None,
    count: int,
    settings: RetrievalSettings,
) -> list[SearchResult]:
    """The same for a prompt that the decoding engine has, of B texts or pictures.

    Images are ranked by their cosine with the (B, D) vectors `queries`. Without them the encoder is
    a query head, which takes them from the decoder's states.
    """
    if queries is not None:
        _require_finite(queries)
    trie = index.trie
    guide = None if queries is None else _guide(index, queries)
    guidance = index.guidance
    width = settings.beams * (1 if guide is None else guidance.wider)
    beams = search_leaves(index.decoding, prompt, trie.shape, width, trie.branches, guide)
    # From here on the host waits for what a GPU has found.
    found = beams.on_host()
    if queries is None:
        queries = _own_vectors(index, beams)
        _require_finite(queries)
    _require_scores(found.scores, trie)
    fusion_weight = settings.fusion_weight * (1.0 if guide is None else guidance.belief)
    most = settings.candidates
    if guide is not None:
        most = guidance.budget(trie.images, most, sketched=index.sketches is not None)
    return [
        _ranked(index, query, reached, fusion_weight, most, count)
        for query, reached in zip(queries, _reached(index, found, guide, most), strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _ReachedLeaves:
    """The W leaves of one query whose images may be ranked."""

    leaves: IntArray
    """(W,)"""
    scores: FloatArray
    """(W,) log-probabilities"""
    beliefs: FloatArray
    """(W,) nats, of decoder and guide together: by these images are chosen."""


def _reached(
    index: SearchIndex, found: HostBeams, guide: Guide | None, most: int
) -> Iterator[_ReachedLeaves]:
    """The leaves of each query; with a guide so many that `most` images can be chosen of them."""
    beliefs = found.scores
    if found.promises is not None:
        beliefs = found.scores + _nearness(index) * found.promises
    for leaves, scores, own in zip(found.leaves, found.scores, beliefs, strict=True):
        # A trie with fewer leaves than beams fills the rest with leaves of score -inf.
        kept = scores > NEVER
        if guide is not None:
            loads = index.trie.branches.load[leaves]
            kept = opened(most, np.where(kept, own, -np.inf), loads)
        yield _ReachedLeaves(leaves[kept], scores[kept], own[kept])


def _ranked(
    index: SearchIndex,
    query: FloatArray,
    found: _ReachedLeaves,
    fusion_weight: float,
    most: int,
    count: int,
) -> SearchResult:
    """The `count` best of at most `most` images for a (D,) query."""
    reached = index.trie.reached(found.leaves)
    if len(reached.slots) > most:
        reached = likeliest(reached, _posting_beliefs(index, query, reached, found), most)
    if index.prefetch is not None:
        index.prefetch(reached.slots)
    ranked = rank(
        query,
        reached,
        found.scores,
        index.embeddings,
        index.encoder.scale,
        fusion_weight,
        count,
        index.hubness,
    )
    return SearchResult(
        ranked.slots,
        ranked.scores,
        ranked.candidates,
        found.leaves,
        found.scores,
        ranked.cosines,
    )


def _own_vectors(index: SearchIndex, beams: Beams) -> FloatArray:
    """(B, D) vectors of queries by the generation's own head."""
    if not isinstance(index.encoder, QueryHeadEncoder) or beams.states is None:
        raise AssertionError("a search without vectors needs a query head, and states for it")
    return index.encoder.of_states(beams.states)


def _nearness(index: SearchIndex) -> np.float32:
    """Nats of a cosine where images are chosen."""
    return np.float32(index.guidance.nearness * index.encoder.scale)


def _posting_beliefs(
    index: SearchIndex, query: FloatArray, reached: Reached, found: _ReachedLeaves
) -> FloatArray:
    """(P,) nats of reached postings: what is believed of a leaf, and of the image in it."""
    beliefs = found.beliefs[reached.source]
    if index.means is None or index.sketches is None:
        return beliefs
    return beliefs + _nearness(index) * index.sketches.deviations(query, reached)


def likeliest(reached: Reached, beliefs: FloatArray, most: int) -> Reached:
    """The postings of at most `most` images: no query scores more, however full leaves are.

    Those that are believed in most, by all leaves that they are posted under; of equal ones those
    of lower slots. `beliefs` (P,) nats of the postings, without their weights.
    """
    slots, beliefs = beliefs_of(reached, beliefs)
    kept = slots[np.argsort(-beliefs, kind="stable")[:most]]
    return reached.only(np.isin(reached.slots, kept))


def _guide(index: SearchIndex, queries: FloatArray) -> Guide | None:
    if index.means is None:
        return None
    weight = index.guidance.weight * index.encoder.scale
    return Guide(index.means, torch.from_numpy(queries), weight)


def search_paper(
    index: SearchIndex, texts: Sequence[str], count: int, settings: RetrievalSettings
) -> list[SearchResult]:
    """The paper's own mode: five tokens decoded over primary identifiers.

    An image's score is the log-probability of its five tokens. At most `settings.beams` images are
    candidates; embeddings and the fusion weight play no part.
    """
    is_own = isinstance(index.encoder, QueryHeadEncoder)
    vectors = None if is_own else index.encoder.embed_texts(texts)
    prompt = index.decoding.read_texts(texts, vectors)
    results = []
    for identified in search_identifiers(index.decoding, prompt, index.trie, settings.beams):
        best = identified[:count]
        slots = np.array([image.slot for image in best], dtype=np.int64)
        scores = np.array([image.score for image in best], dtype=np.float32)
        _require_finite(scores)
        leaves = np.array([image.leaf for image in identified], dtype=np.int64)
        leaf_scores = np.array([image.score for image in identified], dtype=np.float32)
        results.append(SearchResult(slots, scores, len(identified), leaves, leaf_scores, None))
    return results


def search_exact(
    trie: SearchableTrie, embeddings: HalfArray, queries: FloatArray, count: int
) -> list[SearchResult]:
    """Exact dense search over every searchable image, the yardstick; no leaves are decoded.

    `embeddings` (N, D) float16 by slot, `queries` (B, D) float32, both of unit length. Embeddings
    are read in blocks, so that memory does not grow with them. Ties go to the lower slot.
    """
    slots = trie.searchable_slots()
    best_slots: list[IntArray] = [np.empty(0, np.int64)] * len(queries)
    best_scores: list[FloatArray] = [np.empty(0, np.float32)] * len(queries)
    step = max(1, _BLOCK_NUMBERS // max(1, queries.shape[1]))
    for begin in range(0, len(slots), step):
        own = slots[begin : begin + step]
        scores = queries @ embeddings[own].astype(np.float32).T
        for row in range(len(queries)):
            # Those of earlier blocks, lower slots, go first: ties go to them.
            merged = np.concatenate([best_scores[row], scores[row]])
            best = _highest(merged, count)
            best_slots[row] = np.concatenate([best_slots[row], own])[best]
            best_scores[row] = merged[best]
    no_leaves, no_scores = np.empty(0, np.int64), np.empty(0, np.float32)
    results = []
    for found, own_scores in zip(best_slots, best_scores, strict=True):
        results.append(
            SearchResult(found, own_scores, len(slots), no_leaves, no_scores, own_scores)
        )
    return results


def _highest(scores: FloatArray, count: int) -> IntArray:
    """Rows of the `count` highest of (N,) scores, highest first; of equal ones the first."""
    rows = np.arange(len(scores))
    if len(scores) > count > 0:
        # All that tie with the last one stay, so that the sort decides between them.
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        rows = np.flatnonzero(scores >= least)
    return rows[np.argsort(-scores[rows], kind="stable")[:count]]


def _require_scores(leaf_scores: FloatArray, trie: SearchableTrie) -> None:
    """Refuse (B, W) scores with NaN, and beams that all died though there are leaves to reach."""
    died = trie.branches.leaves > 0 and not (leaf_scores > NEVER).any(axis=1).all()
    if died or np.isnan(leaf_scores).any() or np.isposinf(leaf_scores).any():
        raise WorkFailedError(_NOT_FINITE)


def _require_finite(values: FloatArray) -> None:
    if not np.isfinite(values).all():
        raise WorkFailedError(_NOT_FINITE)
