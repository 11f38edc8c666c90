"""Pending queries: queries that wait for their answer, and how they are grouped for decoding."""

from collections.abc import Collection, Hashable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from schemas.filters import Filter
from workers.query.engine import QueryPicture
from workers.query.searcher import AnsweredQuery, Mode


@dataclass(frozen=True, slots=True, eq=False)
class PendingQuery:
    """One query that waits; the future gets an `AnsweredQuery` or an error."""

    text: str
    """Empty for a picture."""
    count: int
    """Images to describe."""
    mode: Mode
    generation: int | None
    """The generation that is to answer, or None for the live one."""
    picture: QueryPicture | None = None
    """What similar images are wanted to, in place of a text."""
    depth: int = 0
    """Images to rank, where that is more than are described."""
    wanted: Filter | None = None
    """What the images must be, by their metadata."""
    least: float | None = None
    """The least relevance of an image."""
    answer: "Future[AnsweredQuery]" = field(default_factory=Future)

    def claim(self) -> bool:
        """Claim the query for answering; False when its client gave up.

        A claimed query cannot be cancelled any more, so that its result can be set.
        """
        # The future raises when it is claimed twice or claimed when done.
        if self.answer.running() or self.answer.done():
            return False
        return self.answer.set_running_or_notify_cancel()

    def resolve(self, answer: AnsweredQuery) -> None:
        """Give the answer; without effect when the client gave up or has one already."""
        # A future that is complete raises on a second completion. That ends whoever completes it,
        # which is the thread that answers everybody.
        with suppress(InvalidStateError):
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Give an error instead of an answer; without effect like `resolve`."""
        with suppress(InvalidStateError):
            self.answer.set_exception(error)


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Queries of one kind that one generation answers together, in one mode.

    All have the same filter and the same least relevance.
    """

    generation: int
    mode: Mode
    queries: list[PendingQuery]
    wanted: Filter | None = None
    least: float | None = None

    @property
    def pictures(self) -> list[QueryPicture]:
        """What is asked for by pictures; empty for a group of texts."""
        return [query.picture for query in self.queries if query.picture is not None]

    @property
    def depth(self) -> int:
        """Images to rank: as many as the deepest query wants."""
        return max(max(query.count, query.depth) for query in self.queries)

    @property
    def count(self) -> int:
        """Images to fetch: what the query with the most images wants."""
        return max(query.count for query in self.queries)


@dataclass(frozen=True, slots=True)
class GroupedQueries:
    """A batch of queries by what is to be done with them."""

    groups: list[QueryGroup]
    unserved: list[PendingQuery]
    """Queries for a generation that is not loaded."""


def group_queries(
    queries: Iterable[PendingQuery], live: int | None, loaded: Collection[int]
) -> GroupedQueries:
    """Group queries by all that a search takes of them, in the order of each group's first one.

    That is generation, mode, filter, least relevance, and whether they are texts or pictures. A
    query for more images than are described at once is a group of its own: it takes longer.

    Every query belongs to one group, so its answer comes from one generation from start to end.
    """
    groups: dict[Hashable, QueryGroup] = {}
    unserved: list[PendingQuery] = []
    for query in queries:
        generation = live if query.generation is None else query.generation
        if generation is None or generation not in loaded:
            unserved.append(query)
            continue
        alone = id(query) if query.depth > query.count else None
        is_picture = query.picture is not None
        key = (generation, query.mode, query.wanted, query.least, is_picture, alone)
        if key not in groups:
            groups[key] = QueryGroup(generation, query.mode, [], query.wanted, query.least)
        groups[key].queries.append(query)
    return GroupedQueries(list(groups.values()), unserved)
