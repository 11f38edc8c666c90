"""Posting ablations: recall if the same images were posted, or searched, in other ways."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from model.retrieval.prefix_means import PrefixMeans
from model.retrieval.recall import recall_at
from model.retrieval.trie import ALTERNATE, Trie
from ops.evaluation_queries import DEPTH, EvaluationQueries
from ops.jobs.known_items import Rank, rank_of
from schemas.records import BoolArray, IntArray, JsonObject
from schemas.retrieval_settings import RetrievalSettings
from workers.query.model_engine import ModelEngine
from workers.query.searcher import Searcher
from workers.repository.posting_rows import PostingRows


@dataclass(frozen=True, slots=True)
class AblatedRecall:
    """Recall of one split by R@1, R@5, R@10 and R@20, and images scored for one query."""

    recall: Mapping[str, float]
    mean_candidates: float

    def to_json(self) -> dict[str, float]:
        """One flat object."""
        return {**self.recall, "mean_candidates": self.mean_candidates}


@dataclass(frozen=True, slots=True)
class PostingAblations:
    """Recall by split of two other ways to post, and of one to search."""

    primary_only: Mapping[str, AblatedRecall]
    """Each image under the model's first leaf only, m = 1."""
    analytic: Mapping[str, AblatedRecall]
    """Each unseen image under the leaf that the codebook computes from its embedding."""
    unguided: Mapping[str, AblatedRecall]
    """The decoder alone chooses the beams, and all that they lead to is ranked."""
    agreement: float | None
    """Share of unseen images whose analytic leaf is the model's; None without unseen images."""

    def to_json(self) -> JsonObject:
        """`ablations` in the document of `sigma evaluate`."""
        return {
            "m=1": {name: split.to_json() for name, split in self.primary_only.items()},
            "analytic": {name: split.to_json() for name, split in self.analytic.items()},
            "unguided": {name: split.to_json() for name, split in self.unguided.items()},
            "inductive_analytic_agreement": self.agreement,
        }


def ablate_postings(
    searcher: Searcher[ModelEngine],
    splits: Mapping[str, EvaluationQueries],
    trained: Sequence[int],
) -> PostingAblations:
    """Measure both ways on the queries of each split. `trained` are the keys of seen images."""
    engine = searcher.engine
    postings = searcher.follower.load().postings
    is_primary = postings.suffixes != ALTERNATE
    is_unseen = ~np.isin(postings.image_keys, np.array(trained, np.int64))
    own_slots = engine.gallery.slots(postings.image_keys)
    embeddings = engine.gallery.embeddings.astype(np.float32)
    analytic_leaves = engine.checkpoint.codebook.leaves(embeddings)[own_slots]

    # Trained images have their leaf from the plan of their training, not from the model's decoding.
    counted = is_primary & is_unseen
    agreement = None
    if counted.any():
        agreement = float((analytic_leaves[counted] == postings.leaves[counted]).mean())

    leaves = np.where(is_unseen, analytic_leaves, postings.leaves)
    return PostingAblations(
        _recall_with(searcher, splits, _primaries(postings, postings.leaves, is_primary)),
        _recall_with(searcher, splits, _primaries(postings, leaves, is_primary)),
        _recall_unguided(searcher, splits),
        agreement,
    )


def _primaries(postings: PostingRows, leaves: IntArray, is_primary: BoolArray) -> PostingRows:
    """The primary postings only, under these leaves."""
    return PostingRows(
        leaves[is_primary],
        postings.image_keys[is_primary],
        postings.weights[is_primary],
        postings.suffixes[is_primary],
    )


def _recall_with(
    searcher: Searcher[ModelEngine],
    splits: Mapping[str, EvaluationQueries],
    postings: PostingRows,
) -> dict[str, AblatedRecall]:
    recalls = {}
    with _posted(searcher.engine, postings):
        for name, queries in splits.items():
            recalls[name] = _recall_of(searcher.engine, queries, searcher.settings)
    return recalls


def _recall_unguided(
    searcher: Searcher[ModelEngine], splits: Mapping[str, EvaluationQueries]
) -> dict[str, AblatedRecall]:
    engine = searcher.engine
    kept = engine.guidance
    engine.guidance = None
    try:
        return {
            name: _recall_of(engine, queries, searcher.settings) for name, queries in splits.items()
        }
    finally:
        engine.guidance = kept


@contextmanager
def _posted(engine: ModelEngine, postings: PostingRows) -> Iterator[None]:
    """Let the engine search a trie of these postings for as long as the block runs."""
    # The engine is this command's own: no query worker searches it meanwhile.
    index = engine.index
    kept = index.trie, index.means
    index.trie = Trie(engine.shape, engine.decoder.device)
    slots = engine.gallery.slots(postings.image_keys)
    index.trie.insert(postings.leaves, slots, postings.weights, postings.suffixes)
    if index.means is not None:
        index.means = PrefixMeans(engine.shape, engine.encoder.width, engine.decoder.device)
        index.means.add(postings.leaves, engine.gallery.embeddings[slots].astype(np.float32))
    try:
        yield
    finally:
        index.trie, index.means = kept


def _recall_of(
    engine: ModelEngine, queries: EvaluationQueries, settings: RetrievalSettings
) -> AblatedRecall:
    ranks: list[Rank] = []
    candidates: list[int] = []
    for batch in queries.batches():
        answers = engine.answer(list(batch.texts), DEPTH, settings)
        for answer, image_key in zip(answers, batch.image_keys, strict=True):
            ranks.append(rank_of(answer.image_keys, image_key))
            candidates.append(answer.candidates)
    return AblatedRecall(recall_at(ranks), float(np.mean(candidates)))
