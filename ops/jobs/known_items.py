"""Known items: queries whose right answer is one stored image.

They are captions of the image. One without captions is asked for by its own picture, where the
generation reads vectors: by its stored vector with the noise that stood for texts in training.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from schemas.records import IntArray
from workers.repository.connection import Connection, fetch_row
from workers.repository.generations import Generation
from workers.repository.stored_images import images_by_key

if TYPE_CHECKING:
    # Its import loads PyTorch, which the processes that only look at jobs do without.
    from workers.query.engine import QueryEngine, RankedImages
    from workers.query.searcher import Searcher

    OpenSearcher = Callable[[Generation], Searcher[QueryEngine]]
    """Loads a generation for searching, with the settings of the query worker."""

Rank = int | None
"""Place of the known image in an answer, from 1; None when it is not among the images looked at."""

DEPTH = 10
"""Images of an answer that are looked at: known items are measured by R@10."""

_BATCH = 16
"""Queries decoded together, as many as the query worker takes at once."""

_AGE_LIMITS_S = {"hour": 3600.0, "day": 86_400.0, "week": 604_800.0}
"""Age in seconds below which an image belongs to a cohort, youngest first; above, it is `older`."""


@dataclass(frozen=True, slots=True)
class KnownItemQuery:
    """A caption of one image, or the image itself, asked as a query."""

    text: str
    """Empty where the picture is asked."""
    image_key: int
    cohort: str
    """One of `schemas.job_results.COHORTS`: trained, or the age of an image not trained on."""


@dataclass(frozen=True, slots=True)
class KnownItemRanks:
    """Where a search put the image of each query, in the order of the queries."""

    ranks: tuple[Rank, ...]
    mean_candidates: float
    """Images scored for one query, on average."""


def sample_known_items(
    conn: Connection, generation: int, count: int, *, pictures: bool = False
) -> list[KnownItemQuery]:
    """At most `count` images of a generation, drawn at random keys, each once.

    With `pictures` those without captions are among them.

    The draw repeats itself for as long as the generation's oldest and newest image stay the same,
    so that two generations can be asked the same queries one after the other.
    """
    low, high = fetch_row(conn, "probe_range", generation=generation) or (0, 0)
    chance = random.Random(f"{generation} {low} {high}")
    queries: dict[int, KnownItemQuery] = {}
    for _ in range(count):
        # The next image after a random key: no scan, though images after a gap in the
        # keys are drawn more often. An image that is drawn twice counts once.
        after = chance.randint(low, high)
        sampled = fetch_row(
            conn, "probe_sample", generation=generation, after=after, pictures=pictures
        )
        if sampled is None:
            continue
        key, captions, test_captions, trained, age_s = sampled
        cohort = "trained" if trained else _age_cohort(age_s)
        # Held-out captions first: the model has read the others of trained images.
        text = (test_captions or captions or [""])[0]
        queries[key] = KnownItemQuery(text, key, cohort)
    return list(queries.values())


def known_items_of(
    conn: Connection, image_keys: Sequence[int], cohort: str, *, pictures: bool = False
) -> list[KnownItemQuery]:
    """Queries for those of the given images that have a caption, in the given order.

    With `pictures` for the others too.
    """
    stored = images_by_key(conn, list(image_keys))
    queries = []
    for key in image_keys:
        image = stored.get(key)
        if image is None:
            continue
        captions = image.test_captions or image.captions
        if captions:
            queries.append(KnownItemQuery(captions[0], key, cohort))
        elif pictures:
            queries.append(KnownItemQuery("", key, cohort))
    return queries


def search_ranks(
    searcher: "Searcher[QueryEngine]", queries: Sequence[KnownItemQuery]
) -> KnownItemRanks:
    """Ask by the search of the query worker, with its beams and fusion weight."""
    engine, settings = searcher.engine, searcher.settings

    def answer(texts: list[str], keys: list[int]) -> "list[RankedImages]":
        return engine.answer_vectors(texts, engine.query_vectors(texts, keys), DEPTH, settings)

    return _ranks(queries, answer)


def exact_ranks(
    searcher: "Searcher[QueryEngine]", queries: Sequence[KnownItemQuery]
) -> KnownItemRanks:
    """Ask by exact dense search with the same encoder: what the model's leaves cost in recall."""
    engine = searcher.engine
    return _ranks(
        queries, lambda texts, keys: engine.answer_exact(engine.query_vectors(texts, keys), DEPTH)
    )


def decoder_ranks(
    searcher: "Searcher[QueryEngine]", queries: Sequence[KnownItemQuery]
) -> KnownItemRanks:
    """Ask in the paper's mode, in which nothing but the decoder finds an image.

    All queries must have a text.
    """
    engine, settings = searcher.engine, searcher.settings
    return _ranks(queries, lambda texts, _: engine.answer_paper(texts, DEPTH, settings))


def _ranks(
    queries: Sequence[KnownItemQuery],
    answer: "Callable[[list[str], list[int]], list[RankedImages]]",
) -> KnownItemRanks:
    """Ask in batches; `answer` takes their texts and the keys of their images."""
    ranks: list[Rank] = []
    candidates = 0
    for batch in _batches(queries):
        texts = [query.text for query in batch]
        answers = answer(texts, [query.image_key for query in batch])
        for query, found in zip(batch, answers, strict=True):
            ranks.append(rank_of(found.image_keys, query.image_key))
            candidates += found.candidates
    return KnownItemRanks(tuple(ranks), candidates / max(1, len(queries)))


def rank_of(image_keys: IntArray, wanted: int) -> Rank:
    """The place of an image among the (k,) keys of an answer, from 1; None when it is not there."""
    places = np.flatnonzero(image_keys == wanted)
    return int(places[0]) + 1 if len(places) else None


def positions_by_cohort(queries: Sequence[KnownItemQuery]) -> Mapping[str, list[int]]:
    """Positions of each cohort's queries, cohorts in the order of their first query."""
    positions: dict[str, list[int]] = {}
    for position, query in enumerate(queries):
        positions.setdefault(query.cohort, []).append(position)
    return positions


def _batches(queries: Sequence[KnownItemQuery]) -> Iterator[Sequence[KnownItemQuery]]:
    for start in range(0, len(queries), _BATCH):
        yield queries[start : start + _BATCH]


def _age_cohort(age_s: float) -> str:
    for cohort, limit_s in _AGE_LIMITS_S.items():
        if age_s < limit_s:
            return cohort
    return "older"
