"""The promotion gate: the rule that lets a candidate go live, or refuses it with reasons.

A candidate must hold every image of the live generation, find known items as well in every cohort,
and answer as quickly. The rule is pure: `ops.jobs.candidate_promotion` takes the measurements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from model.retrieval.recall import recall_at
from ops.jobs.known_items import DEPTH, KnownItemQuery, Rank, positions_by_cohort
from schemas.generation_config import CohortComparison

MAX_CHANCE_LOSS = 0.02
"""R@10, as a share, that a candidate may lose in any cohort: what one retraining gains or loses by
chance on the demo's corpus."""

MAX_LOSS = 0.05
"""R@10 that a candidate may never lose, however few queries show it: a person would notice."""

Z = 1.645
"""Standard errors of the paired difference that chance explains: one-sided 95%."""

MIN_COHORT_QUERIES = 20
"""Queries below which a cohort is not judged alone, for one query is more than `MAX_LOSS`. Its
queries count in `ALL_COHORTS`."""

MAX_LATENCY_RATIO = 1.5
"""How many times as long a candidate's median query may take."""

MIN_LATENCY_QUERIES = 50
"""Shadow queries below which the latency ratio is unknown, and not judged."""

MAX_CANDIDATES_RATIO = 3.0
"""How many times as many images a candidate may score for one query: crowded leaves that a small
gallery hides make queries slow in a large one."""

MAX_CAPTION_LOSS = 0.15
"""Share of images whose caption is likelier behind the own identifier that a candidate may lose:
three standard errors of the difference between two trainings, each measured on 100 images."""

MIN_CAPTION_WINS = 0.75
"""That share of the live generation below which it is not judged: chance alone gives a half."""

MIN_DECODER_SHARE = 0.5
"""Share of what the live generation's decoder finds by itself that a candidate's must find. A guide
and the codebook's vote find most images for a decoder that has learnt nothing."""

MIN_DECODER_RECALL = 0.2
"""R@10 of the live generation's decoder below which it is not judged."""

ALL_COHORTS = "all"
"""Name of the comparison over the queries of all cohorts."""


@dataclass(frozen=True, slots=True)
class GateMeasurements:
    """What the gate knows of a candidate beside the live generation."""

    cohorts: Mapping[str, CohortComparison]
    """Known items by cohort and `ALL_COHORTS`; empty when no image has a caption."""
    missing: int
    """Images of the live generation that the candidate has no posting of."""
    latency_ratio: float | None
    """Median latency of the candidate by that of the live one; None when too few were measured."""
    live_candidates: float
    """Images that the live generation scores for one query, on average."""
    candidate_candidates: float
    """Images that the candidate scores for one query, on average."""
    captions: Mapping[str, float] | None = None
    """Share of held-out images whose caption is likelier behind the own identifier than behind
    another's, of `live` and of `candidate`; None where one of them was not measured."""
    decoder: Mapping[str, float] | None = None
    """R@10 in the paper's mode of `live` and of `candidate`; None when too few queries are texts.
    """


def refusal_reasons(measured: GateMeasurements) -> list[str]:
    """Why a candidate is refused, one sentence for each; empty when it passes."""
    reasons = []
    if not measured.cohorts:
        reasons.append("no image has a caption, so recall cannot be compared")
    if measured.missing:
        reasons.append(
            f"{measured.missing} images of the live generation are missing, 0 are allowed"
        )
    for cohort, comparison in judged_cohorts(measured.cohorts).items():
        if _loses_too_much(comparison):
            reasons.append(_loss_reason(cohort, comparison))
    ratio = measured.latency_ratio
    if ratio is not None and ratio > MAX_LATENCY_RATIO:
        reasons.append(
            f"a query takes {ratio:.2f} times as long, {MAX_LATENCY_RATIO:g} times is allowed"
        )
    if measured.candidate_candidates > MAX_CANDIDATES_RATIO * measured.live_candidates:
        reasons.append(
            f"a query scores {measured.candidate_candidates:.0f} images where it scored "
            f"{measured.live_candidates:.0f}, {MAX_CANDIDATES_RATIO:g} times as many are allowed"
        )
    if measured.decoder is not None:
        live_found, found = measured.decoder["live"], measured.decoder["candidate"]
        if live_found >= MIN_DECODER_RECALL and found < MIN_DECODER_SHARE * live_found:
            reasons.append(
                f"the decoder alone finds {found:.0%} where it found {live_found:.0%}, half of that"
                " is asked for: it has not learnt its identifiers"
            )
    if measured.captions is not None:
        live_wins = measured.captions["live"]
        candidate_wins = measured.captions["candidate"]
        carries_language = live_wins >= MIN_CAPTION_WINS
        if carries_language and live_wins - candidate_wins > MAX_CAPTION_LOSS:
            reasons.append(
                f"identifiers say less of their images: the own one predicts its caption better "
                f"than another's in {candidate_wins:.0%} where it was {live_wins:.0%}, a loss of "
                f"{100 * MAX_CAPTION_LOSS:.0f} points is allowed"
            )
    return reasons


def decoder_recall(live: Sequence[Rank], candidate: Sequence[Rank]) -> dict[str, float] | None:
    """`GateMeasurements.decoder` of the same queries; None where they are too few."""
    if len(live) < MIN_COHORT_QUERIES:
        return None
    named = {"live": live, "candidate": candidate}
    return {name: recall_at(ranks)[f"R@{DEPTH}"] for name, ranks in named.items()}


def compare_cohorts(
    queries: Sequence[KnownItemQuery], live: Sequence[Rank], candidate: Sequence[Rank]
) -> dict[str, CohortComparison]:
    """Compare the ranks of the same queries in both generations, by cohort and over all cohorts."""
    positions = dict(positions_by_cohort(queries))
    if queries:
        positions[ALL_COHORTS] = list(range(len(queries)))
    comparisons = {}
    for cohort, own in positions.items():
        live_hits = [live[position] is not None for position in own]
        candidate_hits = [candidate[position] is not None for position in own]
        comparisons[cohort] = _compare_hits(live_hits, candidate_hits)
    return comparisons


def judged_cohorts(cohorts: Mapping[str, CohortComparison]) -> dict[str, CohortComparison]:
    """The cohorts that are large enough to be judged, and all together.

    Where a single cohort holds all queries, it is judged once, under its own name.
    """
    judged = {}
    for cohort, comparison in cohorts.items():
        # One cohort may not pay for another: users of new images feel what the average hides.
        if cohort != ALL_COHORTS and comparison.queries >= MIN_COHORT_QUERIES:
            judged[cohort] = comparison
    is_only_cohort = len(judged) == 1 and len(cohorts) <= 2
    if ALL_COHORTS in cohorts and not is_only_cohort:
        judged[ALL_COHORTS] = cohorts[ALL_COHORTS]
    return judged


def _compare_hits(live: Sequence[bool], candidate: Sequence[bool]) -> CohortComparison:
    """Paired loss of n queries, and the loss that chance explains.

    The loss is the share of queries that only the live generation answers, less the share that only
    the candidate answers. If both are equally good, its standard error is √(differing)/n (McNemar
    1947).
    """
    count = len(live)
    pairs = list(zip(live, candidate, strict=True))
    lost = pairs.count((True, False))
    won = pairs.count((False, True))
    chance_loss = Z * sqrt(lost + won) / count
    return CohortComparison(
        queries=count,
        live_recall=sum(live) / count,
        candidate_recall=sum(candidate) / count,
        loss=(lost - won) / count,
        loss_limit=min(MAX_LOSS, max(MAX_CHANCE_LOSS, chance_loss)),
    )


def _loses_too_much(comparison: CohortComparison) -> bool:
    if comparison.loss is None or comparison.loss_limit is None:
        # Read from a row of a version that did not record them.
        return False
    return comparison.loss > comparison.loss_limit


def _loss_reason(cohort: str, comparison: CohortComparison) -> str:
    limit_points = 100 * (comparison.loss_limit or 0.0)
    return (
        f"R@{DEPTH} of {cohort} falls from {comparison.live_recall:.1%} "
        f"to {comparison.candidate_recall:.1%} in {comparison.queries} queries, "
        f"a loss of {limit_points:.1f} points is allowed"
    )
