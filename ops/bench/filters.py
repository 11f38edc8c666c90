"""`sigma bench filter`: queries under filters beside queries without, in one index and one run."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ops.bench.comparison import Comparison
from ops.bench.query import open_random_engine
from ops.bench.query_texts import query_texts
from schemas.filters import Filter, parse_filter
from schemas.metadata import Metadata
from schemas.records import FloatArray
from schemas.retrieval_settings import RetrievalSettings
from workers.query.model_engine import ModelEngine
from workers.repository.follower import Changes, EmbeddingRows
from workers.repository.posting_rows import PostingRows

# Images of the index.
IMAGES = 100_000

# Queries under each filter, each beside the same one without.
QUERIES = 500

# Images of each answer.
RESULTS = 10

# Share of the images that a filter allows, by the field that it asks for.
SHARES = {"of10": 0.1, "of100": 0.01, "of10000": 0.0001}

# Milliseconds of a second.
_MS = 1e3

T = TypeVar("T")


_SETTINGS = RetrievalSettings()


@dataclass(frozen=True, slots=True)
class _Asked:
    """One query, without a filter and with one."""

    plain_s: float
    allowed_s: float
    """From the filter to its images."""
    filtered_s: float
    is_full: bool
    recall: float


@dataclass(frozen=True, slots=True)
class _Measured:
    """Queries under the filters of one share."""

    full: int
    """Queries with as many images as asked for, or all that are allowed."""
    recall: float
    """Share of the images of filtered exact search that were found."""
    filtered_ms: float
    plain_ms: float
    """95th percentiles"""
    allowed_ms: float
    """median time from a filter to the images that it allows"""


def filters(seed: int) -> list[Comparison]:
    """Compare the engine with and without filters of each of `SHARES`."""
    texts = query_texts(QUERIES, seed)
    with tempfile.TemporaryDirectory() as folder:
        engine = open_random_engine(IMAGES, seed, Path(folder))
        engine.apply(_metadata_alone(IMAGES, seed))
        comparisons = []
        for field, share in SHARES.items():
            comparisons += _rows(share, _measure(engine, field, share, texts))
        engine.close()
    return comparisons


def _measure(engine: ModelEngine, field: str, share: float, texts: Sequence[str]) -> _Measured:
    """Ask each text without a filter and with one; every filter is another one than the last."""
    vectors = engine.encoder.embed_texts(texts)
    engine.answer(texts[:1], RESULTS, _SETTINGS)
    asked = []
    for number, text in enumerate(texts):
        wanted = _filter(field, number % round(1 / share))
        asked.append(_ask(engine, text, vectors[number : number + 1], wanted))
    filtered_s = [one.filtered_s for one in asked]
    plain_s = [one.plain_s for one in asked]
    return _Measured(
        sum(one.is_full for one in asked),
        float(np.mean([one.recall for one in asked])),
        float(np.percentile(filtered_s, 95)) * _MS,
        float(np.percentile(plain_s, 95)) * _MS,
        float(np.median([one.allowed_s for one in asked])) * _MS,
    )


def _ask(engine: ModelEngine, text: str, vector: FloatArray, wanted: Filter) -> _Asked:
    plain_s, _ = _seconds(lambda: engine.answer([text], RESULTS, _SETTINGS))
    allowed_s, allowed = _seconds(lambda: engine.allowed(wanted))
    filtered_s, (answer,) = _seconds(lambda: engine.answer([text], RESULTS, _SETTINGS, wanted))
    (exact,) = engine.answer_exact(vector, RESULTS, wanted)
    found = len(np.intersect1d(answer.image_keys, exact.image_keys))
    return _Asked(
        plain_s,
        allowed_s,
        # Both: whoever comes with a new filter waits for its images too.
        allowed_s + filtered_s,
        len(answer.image_keys) == min(RESULTS, allowed.images),
        found / len(exact.image_keys),
    )


def _seconds(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def _rows(share: float, measured: _Measured) -> list[Comparison]:
    name = f"{share:.2%} of {IMAGES:,} images"
    exact = "filtered exact search"
    return [
        Comparison(f"{name}, full answers", measured.full, QUERIES, "queries", "queries", QUERIES),
        Comparison(f"{name}, R@{RESULTS}", measured.recall, 1.0, exact, "share", QUERIES),
        Comparison(
            f"{name}, p95",
            measured.filtered_ms,
            measured.plain_ms,
            "without a filter",
            "ms",
            QUERIES,
        ),
        Comparison(
            f"{name}, from filter to images",
            measured.allowed_ms,
            measured.plain_ms,
            "p95 of a query",
            "ms",
            QUERIES,
        ),
    ]


def _filter(field: str, number: int) -> Filter:
    of_all = {"field": "tags", "any": ["all"]}
    return parse_filter({"and": [{"field": field, "equals": number}, of_all]})


def _metadata_alone(images: int, seed: int) -> Changes:
    """Metadata of all images, which are there already: a number for each share, and a tag."""
    rng = np.random.default_rng(seed)
    columns = {field: rng.permutation(images) % round(1 / share) for field, share in SHARES.items()}
    metadata: dict[int, Metadata] = {}
    for row in range(images):
        numbers = {field: int(values[row]) for field, values in columns.items()}
        metadata[row + 1] = {**numbers, "tags": ("all",)}
    none = np.empty(0, np.int64)
    floats = np.empty(0, np.float32)
    return Changes(
        PostingRows(none, none, floats, none),
        EmbeddingRows(none, np.empty((0, 0), np.float16), floats, np.empty(0, np.bool_)),
        none,
        metadata,
    )
