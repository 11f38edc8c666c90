"""Shadow queries: live queries that a candidate answered too, and what comes of comparing them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from workers.repository.connection import Connection, row, run

NEWEST = 10_000
"""Comparisons that a summary looks at."""


@dataclass(frozen=True, slots=True)
class ShadowQuery:
    """One query, answered by both generations alone, one after the other, in milliseconds.

    `overlap` is the share of the ten images in common; the recalls are shares of each one's own exact dense top ten, None
    where the gallery is too large to ask.
    """

    candidate: int
    live: int
    query: str
    live_ms: float
    candidate_ms: float
    overlap: float
    live_recall: float | None
    candidate_recall: float | None


@dataclass(frozen=True, slots=True)
class ShadowSummary:
    """Comparisons of two generations: medians of milliseconds, means of the rest; None without any."""

    queries: int
    live_ms: float | None
    candidate_ms: float | None
    overlap: float | None
    live_recall: float | None
    candidate_recall: float | None

    @property
    def latency_ratio(self) -> float | None:
        """The candidate's median to the live one's."""
        return (
            self.candidate_ms / self.live_ms
            if self.live_ms and self.candidate_ms is not None
            else None
        )


def record_shadow_queries(conn: Connection, found: Sequence[ShadowQuery]) -> None:
    """Write comparisons."""
    if found:
        columns = {
            field.name: [getattr(one, field.name) for one in found] for field in fields(ShadowQuery)
        }
        run(conn, "insert_shadow_queries", texts=columns.pop("query"), **columns)


def shadow_summary(conn: Connection, candidate: int, live: int) -> ShadowSummary:
    """What the newest comparisons of a candidate with a live generation say."""
    found = row(conn, "shadow_summary", candidate=candidate, live=live, amount=NEWEST)
    return ShadowSummary(*(found or (0, None, None, None, None, None)))


def prune_shadow_queries(conn: Connection, days: int) -> int:
    """Forget comparisons older than so many days; returns how many."""
    return run(conn, "prune_shadow_queries", days=days)
