"""The live generation and the one before it, compared on the same queries.

Each query is a caption of a known image, which both generations hold. The better generation places
that image nearer to the top.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from scipy.stats import binomtest

from ops.jobs.known_items import sample_known_items
from schemas.errors import SigmaError
from workers.query.engine import QueryEngine
from workers.query.query_text import MAX_QUERY_LETTERS, checked_query
from workers.query.searcher import Searcher
from workers.repository.connection import Connection
from workers.repository.generations import Generation, generations
from workers.repository.postings import postings_of
from workers.repository.stored_images import images_by_key

# Queries asked of both generations.
MAX_QUERIES = 100

# Answers looked at for each query: the cut-off of R@10.
DEPTH = 10

# Images of each answer that an example shows.
TOP_SHOWN = 3

# Examples of each kind, better and worse, that a report shows.
EXAMPLES_SHOWN = 6

# Queries decoded at once.
_BATCH = 16


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """One generation's answer to a query."""

    rank: int | None
    """Place of the known image, from 1; None when it is not among the first `DEPTH`."""
    top: tuple[str, ...]
    """Ids of the first `TOP_SHOWN` images, best first."""

    @property
    def reciprocal_rank(self) -> float:
        """1 / rank, 0 without a rank: a step near the top counts most."""
        return 1 / self.rank if self.rank else 0.0


@dataclass(frozen=True, slots=True)
class ComparedQuery:
    """A caption asked as a query, the image it was written for, and both answers."""

    query: str
    image_id: str
    before: RankedAnswer
    after: RankedAnswer

    @property
    def change(self) -> float:
        """Gain in reciprocal rank; above 0 when the live generation places the image better."""
        return self.after.reciprocal_rank - self.before.reciprocal_rank

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The known image and the first images of both answers."""
        return (self.image_id, *self.before.top, *self.after.top)

    def to_dict(self) -> dict[str, object]:
        """The JSON shape."""
        return {
            "query": self.query,
            "image_id": self.image_id,
            "rank": {"before": self.before.rank, "after": self.after.rank},
            "top": {"before": list(self.before.top), "after": list(self.after.top)},
        }


@dataclass(frozen=True, slots=True)
class GenerationComparison:
    """Two generations on the same queries."""

    before: int | None = None
    """The generation that answered before the live one."""
    after: int | None = None
    """The live generation."""
    queries: tuple[ComparedQuery, ...] = ()
    why: str | None = None
    """Why there is no comparison; None when there is one."""

    @property
    def better(self) -> list[ComparedQuery]:
        """Queries whose image is placed better now, the greatest gain first."""
        gains = [query for query in self.queries if query.change > 0]
        return sorted(gains, key=lambda query: -query.change)

    @property
    def worse(self) -> list[ComparedQuery]:
        """Queries whose image is placed worse now, the greatest loss first."""
        losses = [query for query in self.queries if query.change < 0]
        return sorted(losses, key=lambda query: query.change)

    @property
    def chance(self) -> float:
        """How often chance alone is as one-sided (two-sided sign test); 1 without differences."""
        better = len(self.better)
        worse = len(self.worse)
        # Without any difference there is nothing to test.
        if better + worse == 0:
            return 1.0
        return float(binomtest(better, better + worse).pvalue)

    @property
    def shown(self) -> list[ComparedQuery]:
        """The examples that a report shows."""
        return [*self.better[:EXAMPLES_SHOWN], *self.worse[:EXAMPLES_SHOWN]]

    @property
    def image_ids(self) -> set[str]:
        """Images of the examples that a report shows."""
        image_ids: set[str] = set()
        for query in self.shown:
            image_ids.update(query.image_ids)
        return image_ids

    def to_dict(self) -> dict[str, object]:
        """The JSON shape."""
        return {
            "why": self.why,
            "before": self.before,
            "after": self.after,
            "asked": len(self.queries),
            "better": len(self.better),
            "worse": len(self.worse),
            "chance": round(self.chance, 4),
            "examples": [query.to_dict() for query in self.shown],
        }


def compare_generations(
    conn: Connection,
    open_searcher: Callable[[Generation], Searcher[QueryEngine]],
    max_queries: int = MAX_QUERIES,
) -> GenerationComparison:
    """Ask the live generation and the one before it the same known-item queries.

    A generation that cannot be loaded makes a comparison without queries, not an error.

    Args:
        conn: connection to the database.
        open_searcher: loads a generation; the searcher is closed here.
        max_queries: queries asked at most; captions of as many random images.
    """
    pair = pair_to_compare(generations(conn))
    if isinstance(pair, str):
        return GenerationComparison(why=pair)
    before, after = pair
    try:
        known = _known_items(conn, before.id, after.id, max_queries)
        # One after the other: both models may not fit into memory together.
        old = _answers(open_searcher, before, known)
        new = _answers(open_searcher, after, known)
    except (SigmaError, OSError) as error:
        why = f"Generations {before.id} and {after.id} could not be compared: {error}."
        return GenerationComparison(before.id, after.id, why=why)
    if not known:
        why = (
            f"No image with a caption is in both generation {before.id} and generation {after.id}."
        )
        return GenerationComparison(before.id, after.id, why=why)
    queries = []
    for (text, image_id), old_answer, new_answer in zip(known, old, new, strict=True):
        queries.append(ComparedQuery(text, image_id, old_answer, new_answer))
    return GenerationComparison(before.id, after.id, tuple(queries))


def pair_to_compare(known: Sequence[Generation]) -> tuple[Generation, Generation] | str:
    """The generation that answered before the live one, and the live one.

    Returns a sentence that says why where there is no such pair.
    """
    live: Generation | None = None
    retired: dict[datetime, Generation] = {}
    for generation in known:
        if generation.state == "live":
            live = generation
        elif generation.state == "retired" and generation.ended_at is not None:
            retired[generation.ended_at] = generation
    if live is None:
        return "No generation is live, so there are no answers to compare."
    if not retired:
        return (
            f"Generation {live.id} is the only one that can answer: "
            "examples appear here after the first switch."
        )
    # The one that was live last, whatever its number: a rollback goes back to an old one.
    return retired[max(retired)], live


def _known_items(
    conn: Connection, before: int, after: int, max_queries: int
) -> list[tuple[str, str]]:
    """(caption, image id) of random images that both generations hold, each image once.

    The same images are sampled as long as the live generation's range of keys is the same.
    """
    texts = {probe.image_key: probe.text for probe in sample_known_items(conn, after, max_queries)}
    held_before = postings_of(conn, before, list(texts))
    images = images_by_key(conn, list(texts))
    items = []
    for key, text in texts.items():
        if key in held_before and key in images and text.strip():
            items.append((text, images[key].image_id))
    return items


def _answers(
    open_searcher: Callable[[Generation], Searcher[QueryEngine]],
    generation: Generation,
    known: Sequence[tuple[str, str]],
) -> list[RankedAnswer]:
    """One generation's answer to each caption of `known`, (caption, image id) pairs."""
    searcher = open_searcher(generation)
    answers: list[RankedAnswer] = []
    try:
        for start in range(0, len(known), _BATCH):
            batch = known[start : start + _BATCH]
            # A caption may be longer than a query; its beginning describes the image as well.
            texts = [checked_query(text[:MAX_QUERY_LETTERS], DEPTH) for text, _ in batch]
            results = searcher.search(texts, DEPTH)
            for (_, image_id), result in zip(batch, results, strict=True):
                answers.append(_ranked_answer(image_id, [hit.image_id for hit in result.hits]))
    finally:
        # Before the next generation is loaded.
        searcher.close()
    return answers


def _ranked_answer(image_id: str, image_ids: list[str]) -> RankedAnswer:
    rank = image_ids.index(image_id) + 1 if image_id in image_ids else None
    return RankedAnswer(rank, tuple(image_ids[:TOP_SHOWN]))
