"""Evaluation: recall per image of our search beside three others, for seen and unseen images.

The others are the paper's own mode, exact dense search with the same encoder, and two towers:
images embedded again in single precision. Seen images are those that the generation was trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.progress import Bar, Progress, quiet
from model.retrieval.recall import CUTOFFS, recall_at, wilson
from ops.caption_evaluation import CaptionEvaluation, evaluate_captions
from ops.evaluation_queries import (
    DEPTH,
    EvaluationQueries,
    GalleryImage,
    queries_by_split,
    read_gallery,
)
from ops.jobs.known_items import Rank, rank_of
from ops.posting_ablations import PostingAblations, ablate_postings
from ops.relevance_evaluation import RelevanceEvaluation, evaluate_relevance
from schemas.errors import UsageError
from schemas.records import FloatArray, IntArray, JsonObject, ManifestEntry
from schemas.retrieval_settings import RetrievalSettings
from workers.query.engine import RankedImages
from workers.query.model_engine import ModelEngine
from workers.query.searcher import Searcher
from workers.repository.connection import Connection, fetch_rows
from workers.runtime.pictures import StoredPictures

# Pictures embedded together.
_PICTURE_BATCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationGallery:
    """What answers are checked against: the N images of a generation."""

    image_keys: IntArray
    """(N,)"""
    towers: FloatArray
    """(N, D) float32: every image embedded again, in single precision, from its stored picture."""
    occupied_leaves: IntArray
    """(L,) leaves that hold at least one image: any other is an invalid identifier."""


@dataclass(frozen=True, slots=True)
class SplitRecall:
    """Recall of one split by the keys R@1, R@5, R@10 and R@20, as shares from 0 to 1."""

    queries: int
    ours: Mapping[str, float]
    paper_mode: Mapping[str, float]
    exact_dense: Mapping[str, float]
    two_tower: Mapping[str, float]
    mean_candidates: float
    """Images that our search scored for one query."""
    interval: tuple[float, float]
    """95% Wilson interval of our R@10."""
    with_tower: Mapping[str, float] | None = None
    """Of our search with the encoder's vectors of queries, where a query head gives them else."""
    exact_with_bank: Mapping[str, float] | None = None
    """Of exact search that ranks by the generation's querybank too, where it has one."""

    def to_json(self) -> JsonObject:
        """One value of `splits` in the document of `sigma evaluate`."""
        tower = {} if self.with_tower is None else {"ours_with_tower": dict(self.with_tower)}
        bank = {}
        if self.exact_with_bank is not None:
            bank = {"exact_with_bank": dict(self.exact_with_bank)}
        return (
            tower
            | bank
            | {
                "queries": self.queries,
                "ours": dict(self.ours),
                "paper_mode": dict(self.paper_mode),
                "exact_dense": dict(self.exact_dense),
                "two_tower": dict(self.two_tower),
                "mean_candidates": self.mean_candidates,
                "ours_R@10_95%": list(self.interval),
            }
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "SplitRecall":
        """Read what `to_json` wrote."""
        low, high = document["ours_R@10_95%"]
        return cls(
            queries=document["queries"],
            ours=document["ours"],
            paper_mode=document["paper_mode"],
            exact_dense=document["exact_dense"],
            two_tower=document["two_tower"],
            mean_candidates=document["mean_candidates"],
            interval=(low, high),
            with_tower=document.get("ours_with_tower"),
            exact_with_bank=document.get("exact_with_bank"),
        )

    def to_text(self, name: str) -> list[str]:
        """The same for people, as lines of a table."""
        searches = {
            "ours": self.ours,
            "paper mode": self.paper_mode,
            "exact dense": self.exact_dense,
            "two-tower": self.two_tower,
        }
        if self.exact_with_bank is not None:
            searches["exact, querybank"] = self.exact_with_bank
        if self.with_tower is not None:
            searches["ours, text tower"] = self.with_tower
        lines = [
            f"{name}: {self.queries} queries, {self.mean_candidates:.0f} candidates scored a query"
        ]
        for label, recall in searches.items():
            cells = [f"{100 * recall[f'R@{cutoff}']:>8.1f}" for cutoff in CUTOFFS]
            lines.append(f"  {label:<20}{''.join(cells)}")
        return lines


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation of one generation."""

    generation: int
    gallery: int
    """Images of the generation."""
    settings: RetrievalSettings
    invalid_identifiers: int
    """Leaves without images, and images that are not in the generation, among the answers."""
    splits: Mapping[str, SplitRecall]
    """`seen` and `unseen`, those that have queries."""
    ablations: PostingAblations | None = None
    captions: CaptionEvaluation | None = None
    """None where no image of the manifest has a caption."""
    relevance: RelevanceEvaluation | None = None
    """None where the generation has no calibration."""

    def to_json(self) -> JsonObject:
        """The document of `sigma evaluate`."""
        # Images that were scored for a query, on average, by split.
        candidates = {name: split.mean_candidates for name, split in self.splits.items()}
        document: JsonObject = {
            "generation": self.generation,
            "gallery": self.gallery,
            "beams": self.settings.beams,
            "postings": self.settings.postings,
            "invalid_identifiers": self.invalid_identifiers,
            "candidates": candidates,
            "splits": {name: split.to_json() for name, split in self.splits.items()},
        }
        if self.ablations is not None:
            document["ablations"] = self.ablations.to_json()
        if self.captions is not None:
            document["captions"] = self.captions.to_json()
        if self.relevance is not None:
            document["relevance"] = self.relevance.to_json()
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Evaluation":
        """Read what `to_json` wrote, except the ablations."""
        splits = document["splits"].items()
        captions = document.get("captions")
        relevance = document.get("relevance")
        return cls(
            generation=document["generation"],
            gallery=document["gallery"],
            settings=RetrievalSettings(document["beams"], document["postings"]),
            invalid_identifiers=document["invalid_identifiers"],
            splits={name: SplitRecall.from_json(split) for name, split in splits},
            captions=None if captions is None else CaptionEvaluation.from_json(captions),
            relevance=None if relevance is None else RelevanceEvaluation.from_json(relevance),
        )

    def to_text(self) -> str:
        """The recall table for people."""
        lines = [f"{'':<22}" + "".join(f"{f'R@{cutoff}':>8}" for cutoff in CUTOFFS)]
        for name, split in self.splits.items():
            lines += split.to_text(name)
        lines.append(
            f"gallery {self.gallery} images · {self.settings.beams} beams · "
            f"invalid identifiers {self.invalid_identifiers}"
        )
        if self.captions is not None:
            lines += self.captions.to_text()
        if self.relevance is not None:
            lines += self.relevance.to_text()
        return "\n".join(lines)


def evaluate(
    searcher: Searcher[ModelEngine],
    conn: Connection,
    entries: Sequence[ManifestEntry],
    *,
    limit: int | None,
    seed: int,
    ablate: bool = False,
    words: bool = False,
    progress: Progress = quiet,
) -> Evaluation:
    """Ask the captions of a manifest's images, at most `limit` of each split (a seeded sample).

    With `ablate`, other ways to post the images are measured too; with `words`, the words that the
    model says of generated scenes. `UsageError` when no image of the
    manifest has a caption and is indexed.
    """
    images = read_gallery(conn, searcher.generation.id)
    splits = queries_by_split(entries, images, limit, seed)
    if not splits:
        raise UsageError(
            "none of the manifest's images with a caption is indexed in this generation; "
            "ingest them first"
        )
    gallery = EvaluationGallery(
        image_keys=np.array([image.image_key for image in images]),
        towers=_embed_again(searcher, images, progress),
        occupied_leaves=_occupied_leaves(conn, searcher.generation.id),
    )
    recalls = {}
    invalid = 0
    with progress("evaluate", sum(map(len, splits.values()))) as bar:
        for name, queries in splits.items():
            recalls[name], split_invalid = _evaluate_split(
                searcher.engine, queries, searcher.settings, gallery, bar
            )
            invalid += split_invalid
    ablations = None
    if ablate:
        trained = [image.image_key for image in images if image.trained]
        ablations = ablate_postings(searcher, splits, trained)
    captions = evaluate_captions(
        searcher, conn, entries, images, limit=limit, seed=seed, with_words=words
    )
    return Evaluation(
        searcher.generation.id,
        len(images),
        searcher.settings,
        invalid,
        recalls,
        ablations,
        captions,
        evaluate_relevance(searcher, entries, splits, seed),
    )


def _evaluate_split(
    engine: ModelEngine,
    queries: EvaluationQueries,
    settings: RetrievalSettings,
    gallery: EvaluationGallery,
    bar: Bar,
) -> tuple[SplitRecall, int]:
    """Recall of one split, and how many invalid identifiers its answers had."""
    has_query_head = engine.checkpoint.sigma.query_head is not None
    ours: list[Rank] = []
    paper: list[Rank] = []
    exact: list[Rank] = []
    two_tower: list[Rank] = []
    with_tower: list[Rank] = []
    with_bank: list[Rank] = []
    candidates: list[int] = []
    invalid = 0
    for batch in queries.batches():
        texts = list(batch.texts)
        # A query head's are our search's; the yardsticks are the encoder's.
        vectors = engine.checkpoint.encoder.embed_texts(texts)
        our_answers = engine.answer(texts, DEPTH, settings)
        paper_answers = engine.answer_paper(texts, DEPTH, settings)
        exact_answers = engine.answer_exact(vectors, DEPTH)
        banked_answers = engine.answer_all(vectors, DEPTH)
        if has_query_head:
            for answer, image_key in zip(
                engine.answer_vectors(texts, vectors, DEPTH, settings),
                batch.image_keys,
                strict=True,
            ):
                with_tower.append(rank_of(answer.image_keys, image_key))
        # Exact search has no leaves, and no constraint that could fail.
        for answer in (*our_answers, *paper_answers):
            invalid += _invalid_identifiers(answer, gallery)
        candidates += [answer.candidates for answer in our_answers]
        for position, image_key in enumerate(batch.image_keys):
            ours.append(rank_of(our_answers[position].image_keys, image_key))
            paper.append(rank_of(paper_answers[position].image_keys, image_key))
            exact.append(rank_of(exact_answers[position].image_keys, image_key))
            with_bank.append(rank_of(banked_answers[position].image_keys, image_key))
            nearest = _nearest_in_towers(vectors[position], gallery)
            two_tower.append(rank_of(nearest, image_key))
        bar.update(len(batch))
    hits_at_10 = sum(rank is not None and rank <= 10 for rank in ours)
    recall = SplitRecall(
        queries=len(queries),
        ours=recall_at(ours),
        paper_mode=recall_at(paper),
        exact_dense=recall_at(exact),
        two_tower=recall_at(two_tower),
        mean_candidates=float(np.mean(candidates)),
        interval=wilson(hits_at_10, len(ours)),
        with_tower=recall_at(with_tower) if has_query_head else None,
        exact_with_bank=None if engine.checkpoint.querybank is None else recall_at(with_bank),
    )
    return recall, invalid


def _invalid_identifiers(answer: RankedImages, gallery: EvaluationGallery) -> int:
    wrong_leaves = ~np.isin(answer.leaves, gallery.occupied_leaves)
    wrong_images = ~np.isin(answer.image_keys, gallery.image_keys)
    return int(wrong_leaves.sum()) + int(wrong_images.sum())


def _nearest_in_towers(query: FloatArray, gallery: EvaluationGallery) -> IntArray:
    """(`DEPTH`,) keys of the images most similar to a query vector (D,), best first."""
    # Stable, so that ties are broken by key in every run.
    order = np.argsort(-(gallery.towers @ query), kind="stable")
    return gallery.image_keys[order[:DEPTH]]


def _embed_again(
    searcher: Searcher[ModelEngine], images: Sequence[GalleryImage], progress: Progress
) -> FloatArray:
    """(N, D) float32; ranking embeddings are stored in half precision, which costs some recall."""
    pictures = StoredPictures(searcher.store, [image.uri for image in images])
    parts = []
    with progress("two towers", len(images)) as bar:
        for start in range(0, len(pictures), _PICTURE_BATCH):
            batch = pictures[start : start + _PICTURE_BATCH]
            parts.append(searcher.engine.checkpoint.encoder.embed_images(batch))
            bar.update(len(batch))
    return np.concatenate(parts)


def _occupied_leaves(conn: Connection, generation: int) -> IntArray:
    leaves = fetch_rows(conn, "occupied_leaves", generation=generation)
    return np.array([leaf for (leaf,) in leaves], np.int64)
