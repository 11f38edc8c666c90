"""`sigma study explain`: what identifiers mean, level by level (figures 3 and 7 of the paper).

Later images, which no training has seen, are given identifiers by the model; the model then says a
caption of the first code, of the first two, and so on. Own captions are compared with those that
people wrote of the image, beside the caption of another image's codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.decoding.cider import CiderScorer
from model.decoding.explain import explain_all
from model.network.base import SHIPPED
from model.network.profiles import profile
from model.progress import Progress
from ops.study.paper_search import Asked, open_gallery, product_generation
from ops.study.paper_sizes import PaperSizes
from ops.study.shared_models import prepare_corpus
from ops.study.streams import Stream
from ops.study.study_table import Column, Figures, StudyTable
from schemas.identifiers import LEVELS
from schemas.records import FloatArray, IntArray, JsonObject
from schemas.retrieval_settings import RetrievalSettings

# Images of the first seed that are told with all their captions.
_EXAMPLES = 6

_COLUMNS = (
    Column("different prefixes", "prefixes", 1.0, 0),
    Column("different captions", "captions", 1.0, 0),
    Column("CIDEr-D, own codes", "own", 1.0, 2),
    Column("another image's", "other", 1.0, 2),
    Column("own one better", "better"),
    Column("cosine below a prefix", "cosine", 1.0, 2),
)

_NOTES = {
    "CIDEr-D": "0 to 10, of the caption that the model says of the codes, with all captions of the"
    " image; another image's codes are those of a later image with another prefix",
    "own one better": "in percent of the images, ties as half",
    "cosine below a prefix": "mean cosine of an image with the mean vector of the later images"
    " under its prefix; that of all later images stands in the row of no code",
}

_DEVIATIONS = (
    "rendered scenes, the profile `tiny`; captions lean to what the codes add to a caption of no"
    " identifier, the paper samples plainly",
)


def explanations(sizes: PaperSizes, models: Path, progress: Progress) -> StudyTable:
    """Train for each seed, and explain the identifiers of later images.

    `models` keeps what was trained.
    """
    rows: dict[str, list[Figures]] = {}
    examples: list[JsonObject] = []
    with progress("explanations", len(sizes.seeds)) as bar:
        for seed in sizes.seeds:
            explained = _one_seed(sizes, seed, models)
            for name, figures in explained.figures(seed).items():
                rows.setdefault(name, []).append(figures)
            examples = examples or explained.examples()
            bar.update(1)
    return StudyTable(
        "explain",
        "What identifiers mean (figures 3 and 7)",
        sizes.told_with("`tiny`"),
        sizes.seeds,
        _COLUMNS,
        rows,
        _NOTES,
        _DEVIATIONS,
        examples=examples,
        told=_told(examples, sizes.seeds[0]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Explained:
    """Later images of one seed with what the model says of their codes."""

    stream: Stream
    numbers: IntArray
    """(n,)"""
    codes: IntArray
    """(n, 4)"""
    vectors: FloatArray
    """(n, D) unit length"""
    said: Sequence[Sequence[str]]
    """Of each level, the caption of each image's first codes."""

    def figures(self, seed: int) -> dict[str, Figures]:
        """The row of each level."""
        references = []
        for number in self.numbers.tolist():
            references.append((*self.stream.captions[number], self.stream.queries[number]))
        scorer = CiderScorer(references)
        order = np.random.default_rng((seed, 11)).permutation(len(self.numbers))
        rows: dict[str, Figures] = {"no code": {"cosine": _cosine(self.vectors, [0] * len(order))}}
        for level, captions in enumerate(self.said, start=1):
            prefixes = [tuple(codes[:level]) for codes in self.codes.tolist()]
            own = scorer.scores(captions, range(len(captions)))
            others = exchanged(prefixes, order.tolist())
            other = scorer.scores([captions[row] for row in others], range(len(captions)))
            rows[_level_name(level)] = {
                "prefixes": float(len(set(prefixes))),
                "captions": float(len(set(captions))),
                "own": float(own.mean()),
                "other": float(other.mean()),
                "better": float(((own > other) + 0.5 * (own == other)).mean()),
                "cosine": _cosine(self.vectors, prefixes),
            }
        return rows

    def examples(self) -> list[JsonObject]:
        """The first images with their captions."""
        found: list[JsonObject] = []
        for place, number in enumerate(self.numbers[:_EXAMPLES].tolist()):
            levels = []
            for level, captions in enumerate(self.said, start=1):
                codes = self.codes[place, :level].tolist()
                levels.append({"codes": codes, "caption": captions[place]})
            written = [*self.stream.captions[number], self.stream.queries[number]]
            found.append({"image": number, "written": written, "said": levels})
        return found


def _one_seed(sizes: PaperSizes, seed: int, models: Path) -> _Explained:
    corpus = prepare_corpus(sizes.scenes(seed), SHIPPED, profile("tiny"))
    generation = product_generation(corpus, sizes, seed, models)
    asked = Asked.of(corpus, sizes)
    with open_gallery(generation, corpus, asked, RetrievalSettings(beams=sizes.beams)) as index:
        later = asked.splits["unseen"]
        codes = index.codes[later]
        levels = range(1, LEVELS + 1)
        prefixes = [row[:level] for level in levels for row in codes.tolist()]
        captions = explain_all(index.engine.decoder, prefixes)
    said = [captions[start : start + len(later)] for start in range(0, len(captions), len(later))]
    return _Explained(corpus.stream, later, codes, corpus.embeddings[later], said)


def exchanged(prefixes: Sequence[tuple[int, ...]], order: Sequence[int]) -> list[int]:
    """For each of n images the next one in `order` (a permutation) that has another prefix.

    Itself where all have the same.
    """
    places = {row: place for place, row in enumerate(order)}
    others = []
    for row, prefix in enumerate(prefixes):
        behind = (order[(places[row] + step) % len(order)] for step in range(1, len(order)))
        others.append(next((other for other in behind if prefixes[other] != prefix), row))
    return others


def _cosine(vectors: FloatArray, groups: Sequence[object]) -> float:
    """Mean cosine of (n, D) unit vectors with the mean vector of their group."""
    members: dict[object, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    total = 0.0
    for rows in members.values():
        mean = vectors[rows].mean(0)
        # Of unit vectors, the sum of cosines with their mean is their number times its length.
        total += len(rows) * float(np.linalg.norm(mean))
    return total / len(vectors)


def _level_name(level: int) -> str:
    return " ".join(f"id{number}" for number in range(1, level + 1))


def _told(examples: Sequence[JsonObject], seed: int) -> list[str]:
    lines = [f"Later images of seed {seed}, as they come: what was written, what the codes say."]
    for example in examples:
        lines += ["", f"- written: {'; '.join(example['written'])}"]
        for level in example["said"]:
            codes = ", ".join(map(str, level["codes"]))
            lines.append(f"  - [{codes}]: {level['caption'] or '(nothing)'}")
    return lines
