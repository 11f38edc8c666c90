"""The job `recall-probe`: how well the live generation finds what it holds, beside exact search."""

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from model.retrieval.recall import recall_at, wilson
from ops.jobs.known_items import (
    Rank,
    exact_ranks,
    positions_by_cohort,
    sample_known_items,
    search_ranks,
)
from schemas.job_results import CohortRecall, RecallProbeResult, RecallProbeSkipped
from schemas.training_record import VECTORS
from workers.repository.connection import Connection
from workers.repository.generations import live

if TYPE_CHECKING:
    from ops.jobs.known_items import OpenSearcher

QUERIES = 200
"""Known-item queries of one run: they tell the R@10 of a cohort to about 5 points."""

_CUTOFFS = (1, 5, 10)
"""k of the recalls R@k that are recorded; `schemas.job_results.RECALL_CUTOFFS` are their keys."""


def recall_probe(
    conn: Connection,
    open_searcher: "OpenSearcher",
    *,
    count: int = QUERIES,
) -> RecallProbeResult | RecallProbeSkipped:
    """Ask the live generation known-item queries; recall by cohort, with 95% intervals."""
    generation = live(conn)
    if generation is None:
        return RecallProbeSkipped("no generation is live")
    pictures = generation.config.training.reads == VECTORS
    queries = sample_known_items(conn, generation.id, count, pictures=pictures)
    with closing(open_searcher(generation)) as searcher:
        ours = search_ranks(searcher, queries)
        exact = exact_ranks(searcher, queries)
    cohorts = {}
    for cohort, positions in positions_by_cohort(queries).items():
        own_ranks = [ours.ranks[position] for position in positions]
        own_exact = [exact.ranks[position] for position in positions]
        cohorts[cohort] = cohort_recall(own_ranks, own_exact)
    by_picture = sum(not query.text for query in queries)
    return RecallProbeResult(generation.id, cohorts, ours.mean_candidates, by_picture)


def cohort_recall(ours: Sequence[Rank], exact: Sequence[Rank]) -> CohortRecall:
    """Recall of one cohort from the ranks of the same queries in both searches."""
    # Ranks end at the tenth image (`known_items.DEPTH`), so every rank is a hit of R@10.
    hits = sum(rank is not None for rank in ours)
    return CohortRecall(
        queries=len(ours),
        ours=recall_at(ours, _CUTOFFS),
        exact=recall_at(exact, _CUTOFFS),
        interval=wilson(hits, len(ours)),
    )
