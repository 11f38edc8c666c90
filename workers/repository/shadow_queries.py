"""Shadow queries: live queries that a candidate answered too, and a summary of the comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.stored_text import storable
from workers.repository.connection import Connection, columns_of, execute, fetch_row

# Comparisons that a summary looks at, the newest ones; bounds its time.
NEWEST = 10_000


@dataclass(frozen=True, slots=True)
class ShadowQuery:
    """One query, answered by both generations one after the other, each alone."""

    candidate: int
    live: int
    query: str
    live_ms: float
    candidate_ms: float
    overlap: float
    """Share of the ten images that both answers have in common."""
    live_recall: float | None
    """Share of its own exact dense top ten; None where the gallery is too large for that."""
    candidate_recall: float | None
    """The same of the candidate."""


@dataclass(frozen=True, slots=True)
class ShadowSummary:
    """Comparisons of two generations: medians of milliseconds, means of the rest.

    A value is None without any comparison.
    """

    queries: int
    live_ms: float | None
    candidate_ms: float | None
    overlap: float | None
    live_recall: float | None
    candidate_recall: float | None

    @property
    def latency_ratio(self) -> float | None:
        """The candidate's median latency divided by the live generation's."""
        if not self.live_ms or self.candidate_ms is None:
            return None
        return self.candidate_ms / self.live_ms


def record_shadow_queries(conn: Connection, comparisons: Sequence[ShadowQuery]) -> None:
    """Store comparisons."""
    if not comparisons:
        return
    columns = columns_of(
        comparisons,
        "candidate",
        "live",
        "live_ms",
        "candidate_ms",
        "overlap",
        "live_recall",
        "candidate_recall",
    )
    # Not as `query`: that is `execute`'s own parameter.
    texts = [storable(comparison.query) for comparison in comparisons]
    execute(conn, "insert_shadow_queries", texts=texts, **columns)


def shadow_summary(conn: Connection, candidate: int, live: int) -> ShadowSummary:
    """Summarise the newest comparisons of a candidate with a live generation."""
    row = fetch_row(conn, "shadow_summary", candidate=candidate, live=live, amount=NEWEST)
    return ShadowSummary(*(row or (0, None, None, None, None, None)))


def prune_shadow_queries(conn: Connection, days: int) -> int:
    """Delete comparisons older than `days`; return how many."""
    return execute(conn, "prune_shadow_queries", days=days)
