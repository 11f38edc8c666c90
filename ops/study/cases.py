"""`sigma study cases`: good and bad cases with pictures (figures 6 and 8 of the paper).

Later images are asked for by a held-out caption, among those that were trained on. Good cases are
the first images that the search puts first; bad ones those that it puts farthest back.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from model.network.base import SHIPPED
from model.network.profiles import profile
from model.progress import Progress
from ops.demo.contact_sheet import PICTURES, TILE_PX, AnsweredRow, draw_sheet
from ops.jobs.known_items import Rank, rank_of
from ops.study.paper_search import (
    DEPTH,
    QUERY_BATCH,
    Asked,
    dense_figures,
    open_gallery,
    product_generation,
    recall_figures,
)
from ops.study.paper_sizes import PaperSizes
from ops.study.shared_models import prepare_corpus
from ops.study.study_corpus import StudyCorpus
from ops.study.study_index import StudyIndex
from ops.study.study_table import Column, Figures, StudyTable
from schemas.records import IntArray, JsonObject
from schemas.retrieval_settings import RetrievalSettings

# Cases of each sort.
_CASES = 6

# Colours of a sheet: it is a fifth of the bytes, and scenes have few.
_COLOURS = 128

_COLUMNS = (
    Column("R@1", "unseen R@1"),
    Column("R@5", "unseen R@5"),
    Column("R@10", "unseen R@10"),
    Column("candidates", "candidates", 1.0, 0),
)

_DEVIATIONS = (
    "rendered scenes, the profile `tiny`, the product's search: guided beams, images ranked by"
    " cosine and log-probability",
)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One query and its answer."""

    number: int
    """Of the image that is asked for."""
    query: str
    found: IntArray
    """(k,) numbers of images, best first"""
    codes: IntArray
    """(k, 4) of those"""
    rank: Rank
    dense_rank: Rank
    """By exact search."""

    def to_json(self) -> JsonObject:
        """One of the `examples`."""
        return {
            "image": self.number,
            "query": self.query,
            "rank": self.rank,
            "rank by exact search": self.dense_rank,
            "found": self.found[:PICTURES].tolist(),
            "identifiers": self.codes[:PICTURES].tolist(),
        }


def cases(sizes: PaperSizes, models: Path, progress: Progress) -> StudyTable:
    """Train for each seed and ask; the pictures are of the first seed.

    `models` keeps what was trained.
    """
    rows: dict[str, list[Figures]] = {}
    shown: tuple[list[Case], list[Case]] | None = None
    pictures: dict[str, bytes] = {}
    with progress("cases", len(sizes.seeds)) as bar:
        for seed in sizes.seeds:
            corpus = prepare_corpus(sizes.scenes(seed), SHIPPED, profile("tiny"))
            asked = Asked.of(corpus, sizes)
            found, candidates = _ask(corpus, asked, sizes, seed, models)
            own = recall_figures("unseen", [case.rank for case in found])
            rows.setdefault("SIGMA", []).append(own | {"candidates": candidates})
            rows.setdefault("exact dense search", []).append(dense_figures(corpus, asked))
            if shown is None:
                shown = good_and_bad(found)
                pictures = {
                    f"cases-{name}.png": _sheet(own_cases, corpus)
                    for name, own_cases in zip(("good", "bad"), shown, strict=True)
                    if own_cases
                }
            bar.update(1)
    good, bad = shown or ([], [])
    return StudyTable(
        "cases",
        "Good and bad cases (figures 6 and 8)",
        sizes.told_with("`tiny`"),
        sizes.seeds,
        _COLUMNS,
        rows,
        {},
        _DEVIATIONS,
        examples=[case.to_json() for case in (*good, *bad)],
        told=_told(good, bad, sizes.seeds[0]),
        pictures=pictures,
    )


def good_and_bad(found: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """At most `_CASES` that were found first, and as many that were found last or not at all.

    Bad ones farthest back first; those that exact search finds go before those that it does not.
    """
    good = [case for case in found if case.rank == 1][:_CASES]
    missed = [case for case in found if case.rank != 1]
    missed.sort(key=lambda case: (-(case.rank or DEPTH + 1), case.dense_rank or DEPTH + 1))
    return good, missed[:_CASES]


def _ask(
    corpus: StudyCorpus, asked: Asked, sizes: PaperSizes, seed: int, models: Path
) -> tuple[list[Case], float]:
    """A case of each later image, and the images scored for one query."""
    generation = product_generation(corpus, sizes, seed, models)
    settings = RetrievalSettings(beams=sizes.beams)
    later = asked.splits["unseen"]
    matrix = corpus.embeddings[asked.gallery]
    found: list[Case] = []
    scored: list[int] = []
    with open_gallery(generation, corpus, asked, settings) as index:
        for start in range(0, len(later), QUERY_BATCH):
            keys = later[start : start + QUERY_BATCH].tolist()
            texts = [corpus.stream.queries[key] for key in keys]
            answers = index.engine.answer(texts, DEPTH, settings)
            for key, text, answer in zip(keys, texts, answers, strict=True):
                order = np.argsort(-(matrix @ corpus.query_embeddings[key]), kind="stable")
                exact = asked.gallery[order[:DEPTH]]
                found.append(_case(index, key, text, answer.image_keys, exact))
                scored.append(answer.candidates)
    return found, float(np.mean(scored))


def _case(index: StudyIndex, key: int, text: str, found: IntArray, exact: IntArray) -> Case:
    return Case(key, text, found, index.codes[found], rank_of(found, key), rank_of(exact, key))


def _sheet(own_cases: Sequence[Case], corpus: StudyCorpus) -> bytes:
    """PNG of the cases, the first images of each answer with their identifiers."""
    rows = []
    for case in own_cases:
        pictures = []
        for number in case.found[:PICTURES].tolist():
            picture = Image.fromarray(corpus.stream.pixels[number])
            pictures.append(picture.resize((TILE_PX, TILE_PX)))
        labels = [", ".join(map(str, codes)) for codes in case.codes[:PICTURES].tolist()]
        place = None if case.rank is None else case.rank - 1
        rows.append(AnsweredRow(case.query, pictures, labels, place))
    data = io.BytesIO()
    draw_sheet(rows).quantize(_COLOURS).save(data, "PNG", optimize=True)
    return data.getvalue()


def _told(good: Sequence[Case], bad: Sequence[Case], seed: int) -> list[str]:
    lines = [f"Seed {seed}; what was asked for is framed, below each picture its codes."]
    for name, own_cases in (("good", good), ("bad", bad)):
        lines += ["", f"{name.capitalize()} cases:", ""]
        if not own_cases:
            lines.append("none")
            continue
        lines += [f"![{name} cases](cases-{name}.png)", ""]
        for case in own_cases:
            lines.append(
                f"- {case.query}: {_place(case.rank)}, by exact search {_place(case.dense_rank)}"
            )
    return lines


def _place(rank: Rank) -> str:
    return f"place {rank}" if rank is not None else f"not among {DEPTH}"
