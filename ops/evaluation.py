"""Evaluation: recall per image of our search, the paper's mode, exact dense search and the two towers, seen and unseen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.progress import Progress, quiet
from model.retrieval.recall import CUTOFFS, recall_at, wilson
from model.retrieval.trie import ALTERNATE, Trie
from schemas.errors import UsageError
from schemas.records import FloatArray, IntArray, ManifestEntry
from schemas.settings import RetrievalSettings
from workers.query.engine import ModelEngine, RankedImages
from workers.query.searcher import Searcher
from workers.repository.connection import Connection, fetch_rows
from workers.repository.follower import PostingRows
from workers.runtime.pictures import StoredPictures

_BATCH = 16
_DEPTH = max(CUTOFFS)


@dataclass(frozen=True, slots=True)
class Asked:
    """Queries with the key of the image that each is about."""

    texts: list[str]
    keys: list[int]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """One image of the generation."""

    image_key: int
    image_id: str
    uri: str
    trained: bool


def evaluate(
    searcher: Searcher[ModelEngine],
    entries: Sequence[ManifestEntry],
    *,
    limit: int | None,
    seed: int,
    ablate: bool = False,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """The JSON document of `sigma evaluate`. `limit` samples at most so many queries of each split (seeded)."""
    gallery = list(_gallery(searcher.conn, searcher.generation.id))
    splits = queries_of(entries, gallery, limit, seed)
    if not any(len(asked) for asked in splits.values()):
        raise UsageError(
            "none of the manifest's images with a caption is indexed in this generation; ingest them first"
        )
    valid = np.array(
        [
            leaf
            for (leaf,) in fetch_rows(
                searcher.conn, "occupied_leaves", generation=searcher.generation.id
            )
        ],
        np.int64,
    )
    towers = _float_gallery(searcher, gallery, progress)
    settings = searcher.settings
    total = sum(len(asked) for asked in splits.values())
    document: dict[str, Any] = {
        "generation": searcher.generation.id,
        "gallery": len(gallery),
        "beams": settings.beams,
        "postings": settings.postings,
        "invalid_identifiers": 0,
        "splits": {},
    }
    with progress("evaluate", total) as bar:
        for split, asked in splits.items():
            if len(asked):
                figures, invalid = _split(
                    searcher.engine, asked, settings, gallery, towers, valid, bar.update
                )
                document["splits"][split] = figures
                document["invalid_identifiers"] += invalid
    if ablate:
        document["ablations"] = ablations(searcher, splits, settings, gallery)
    return document


def queries_of(
    entries: Sequence[ManifestEntry], gallery: Sequence[GalleryRow], limit: int | None, seed: int
) -> dict[str, Asked]:
    """Queries of each split: `test_captions`, or `captions` for unseen images without any."""
    known = {row.image_id: row for row in gallery}
    splits = {"seen": Asked([], []), "unseen": Asked([], [])}
    for entry in entries:
        row = known.get(entry.image_id)
        if row is None:
            continue
        asked = splits["seen" if row.trained else "unseen"]
        for text in entry.test_captions if row.trained else entry.queries:
            if text.strip():
                asked.texts.append(text)
                asked.keys.append(row.image_key)
    rng = np.random.default_rng(seed)
    for name, asked in splits.items():
        if limit is not None and len(asked) > limit:
            chosen = sorted(rng.permutation(len(asked))[:limit].tolist())
            splits[name] = Asked(
                [asked.texts[at] for at in chosen], [asked.keys[at] for at in chosen]
            )
    return splits


def _split(
    engine: ModelEngine,
    asked: Asked,
    settings: RetrievalSettings,
    gallery: Sequence[GalleryRow],
    towers: FloatArray,
    valid: IntArray,
    tick: Any,
) -> tuple[dict[str, Any], int]:
    ours, paper, exact, two = [], [], [], []
    candidates, invalid = [], 0
    keys = np.array([row.image_key for row in gallery])
    present = set(keys.tolist())
    for start in range(0, len(asked), _BATCH):
        texts = asked.texts[start : start + _BATCH]
        vectors = engine.encoder.embed_texts(texts)
        fused, five = (
            engine.answer(texts, _DEPTH, settings),
            engine.answer_paper(texts, _DEPTH, settings),
        )
        dense = engine.answer_exact(vectors, _DEPTH)
        for answer in (*fused, *five):
            invalid += int((~np.isin(answer.leaves, valid)).sum()) + sum(
                key not in present for key in answer.image_keys.tolist()
            )
        candidates += [answer.candidates for answer in fused]
        for at, (text_vector, key) in enumerate(
            zip(vectors, asked.keys[start : start + _BATCH], strict=True)
        ):
            ours.append(_rank(fused[at], key))
            paper.append(_rank(five[at], key))
            exact.append(_rank(dense[at], key))
            best = keys[np.argsort(-(towers @ text_vector), kind="stable")[:_DEPTH]]
            two.append(_position(best, key))
        tick(len(texts))
    hits = sum(rank is not None and rank <= 10 for rank in ours)
    figures: dict[str, Any] = {
        "queries": len(asked),
        "ours": recall_at(ours),
        "paper_mode": recall_at(paper),
        "exact_dense": recall_at(exact),
        "two_tower": recall_at(two),
        "mean_candidates": float(np.mean(candidates)),
        "ours_R@10_95%": list(wilson(hits, len(ours))),
    }
    return figures, invalid


def ablations(
    searcher: Searcher[ModelEngine],
    splits: dict[str, Asked],
    settings: RetrievalSettings,
    gallery: Sequence[GalleryRow],
) -> dict[str, Any]:
    """Recall of other ways to post the same images: the model's first leaf only (m = 1), and the codebook's analytic leaf."""
    engine = searcher.engine
    held = searcher.follower.load().postings
    primary = held.suffixes != ALTERNATE
    trained = {row.image_key for row in gallery if row.trained}
    slots = engine.gallery.slots(held.image_keys)
    first = _subset(held, primary)
    analytic_leaves = engine.checkpoint.codebook.leaves(
        engine.gallery.embeddings.astype(np.float32)
    )
    unseen = ~np.isin(held.image_keys, np.fromiter(trained, np.int64, len(trained)))
    leaves = np.where(unseen, analytic_leaves[slots], held.leaves)
    analytic = _subset(PostingRows(leaves, held.image_keys, held.weights, held.suffixes), primary)
    agreement = (
        float((analytic_leaves[slots[primary & unseen]] == held.leaves[primary & unseen]).mean())
        if (primary & unseen).any()
        else None
    )
    kept, found = engine.trie, {}
    for name, postings in (("m=1", first), ("analytic", analytic)):
        engine.trie = Trie(engine.shape, engine.decoder.device)
        engine.trie.insert(
            postings.leaves,
            engine.gallery.slots(postings.image_keys),
            postings.weights,
            postings.suffixes,
        )
        found[name] = {
            split: _fused(engine, asked, settings) for split, asked in splits.items() if len(asked)
        }
    engine.trie = kept
    return {**found, "inductive_analytic_agreement": agreement}


def _fused(engine: ModelEngine, asked: Asked, settings: RetrievalSettings) -> dict[str, float]:
    ranks, candidates = [], []
    for start in range(0, len(asked), _BATCH):
        answers = engine.answer(asked.texts[start : start + _BATCH], _DEPTH, settings)
        ranks += [
            _rank(answer, key)
            for answer, key in zip(answers, asked.keys[start : start + _BATCH], strict=True)
        ]
        candidates += [answer.candidates for answer in answers]
    return recall_at(ranks) | {"mean_candidates": float(np.mean(candidates))}


def _subset(held: PostingRows, kept: Any) -> PostingRows:
    return PostingRows(
        held.leaves[kept], held.image_keys[kept], held.weights[kept], held.suffixes[kept]
    )


def _rank(answer: RankedImages, key: int) -> int | None:
    return _position(answer.image_keys, key)


def _position(keys: IntArray, key: int) -> int | None:
    at = np.flatnonzero(keys == key)
    return int(at[0]) + 1 if len(at) else None


def _gallery(conn: Connection, generation: int) -> Iterator[GalleryRow]:
    after = 0
    while found := fetch_rows(conn, "image_page", generation=generation, after=after, amount=1000):
        after = found[-1][0]
        yield from (GalleryRow(*one) for one in found)


def _float_gallery(
    searcher: Searcher[ModelEngine], gallery: Sequence[GalleryRow], progress: Progress
) -> FloatArray:
    """(N, D) float32: every image embedded again, in single precision, from its stored picture."""
    pictures = StoredPictures(searcher.store, [row.uri for row in gallery])
    parts = []
    with progress("two towers", len(gallery)) as bar:
        for start in range(0, len(pictures), 64):
            parts.append(searcher.engine.encoder.embed_images(pictures[start : start + 64]))
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


def table(document: dict[str, Any]) -> str:
    """The recall table for people."""
    lines = [f"{'':<22}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'R@20':>8}"]
    names = {
        "ours": "ours",
        "paper_mode": "paper mode",
        "exact_dense": "exact dense",
        "two_tower": "two-tower",
    }
    for split, figures in document["splits"].items():
        lines.append(
            f"{split}: {figures['queries']} queries, {figures['mean_candidates']:.0f} candidates scored a query"
        )
        for name, label in names.items():
            lines.append(
                f"  {label:<20}"
                + "".join(f"{100 * figures[name][f'R@{k}']:>8.1f}" for k in CUTOFFS)
            )
    lines.append(
        f"gallery {document['gallery']} images · {document['beams']} beams · invalid identifiers {document['invalid_identifiers']}"
    )
    return "\n".join(lines)
