"""The gate: whether a candidate may go live. It must hold what the live generation holds, find it as well, and be as quick."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import structlog

from ops.jobs.recall_probe import DEPTH, Probe, Rank, by_cohort, ranks, sample
from schemas.errors import SigmaError, UsageError, WorkFailedError
from schemas.events import now
from schemas.generation_config import CohortComparison, GateVerdict
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import LoadAssigner, assigner_loader
from workers.generations.switching import SwitchResult
from workers.generations.switching import promote as switch
from workers.query.searcher import Searcher
from workers.repository import generations
from workers.repository.connection import Connection, row, transaction
from workers.repository.generations import Generation
from workers.repository.images import newest_image
from workers.repository.shadow_queries import shadow_summary
from workers.runtime.services import Services

LOSS = 0.02
"""R@10 that a candidate may lose in any cohort: what one retraining costs or gains by chance on the demo's corpus."""

WORST_LOSS = 0.05
"""R@10 that it may never lose, however few queries speak for it: a person would notice."""

Z = 1.645
"""One-sided 95%: a loss up to so many standard errors of the paired difference may be chance."""

PROBES = 600
"""Known-item queries asked of both: with one in ten answered differently, chance explains 2.1 points."""

LEAST = 20
"""Queries below which a cohort has no verdict of its own, for one of them is more than `WORST_LOSS`; it counts in `all`."""

LATENCY = 1.5
"""How much longer a candidate's median query may take, over at least `LATENCY_QUERIES` shadow queries."""

LATENCY_QUERIES = 50

CANDIDATES = 3.0
"""How many times more images a candidate may score for one query: what a large gallery would pay for, when a small one hides it."""

ALL = "all"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Asked:
    """How one generation answered the probes; `candidates` images were scored for one query on average."""

    ranks: list[Rank]
    candidates: float


def judge(
    services: Services, conn: Connection, candidate: Generation, live: Generation
) -> GateVerdict:
    """Let the candidate catch up, ask both generations the same probes, and record the verdict."""
    missing = _catch_up(services, conn, candidate, live)
    probes = sample(conn, live.id, PROBES)
    asked = [_ask(services, generation, probes) for generation in (live, candidate)]
    cohorts = compare(probes, asked[0].ranks, asked[1].ranks)
    shadow = shadow_summary(conn, candidate.id, live.id)
    ratio = shadow.latency_ratio if shadow.queries >= LATENCY_QUERIES else None
    scored = [one.candidates for one in asked]
    reasons = _reasons(cohorts, missing, ratio, scored)
    verdict = GateVerdict(
        passed=not reasons,
        reasons=tuple(reasons),
        against=live.id,
        cohorts=cohorts,
        missing=missing,
        latency_ratio=ratio,
        shadow_queries=shadow.queries,
        shadow=asdict(shadow),
        candidates={"live": scored[0], "candidate": scored[1]},
        checked_at=now().isoformat(),
    )
    generations.describe(conn, candidate.id, gate=verdict)
    log.info(
        "candidate judged",
        generation=candidate.id,
        against=live.id,
        passed=not reasons,
        reasons=reasons,
    )
    return verdict


def promote(
    services: Services, conn: Connection, generation: int, *, force: bool = False
) -> SwitchResult:
    """Make a generation live if the gate lets it. The first one, and a forced one, is not judged.

    `WorkFailedError` tells why the gate refuses.
    """
    live, candidate = generations.live(conn), generations.get(conn, generation)
    if candidate.state not in ("shadow", "live", "retired"):
        raise UsageError(
            f"generation {generation} is {candidate.state} and cannot become live; list them with: sigma generations list"
        )
    if live is not None and live.id != generation and not force:
        verdict = judge(services, conn, candidate, live)
        if not verdict.passed:
            raise WorkFailedError(
                f"generation {generation} is refused and {live.id} stays live: {'; '.join(verdict.reasons)}. "
                f"To make it live nevertheless: sigma generations promote {generation} --force"
            )
    return switch(conn, generation, services.store, _load_assigner(services))


def gate_job(services: Services, conn: Connection) -> dict[str, Any]:
    """The job: complete the fallback generation, judge every shadow generation, and promote one that passes where that is allowed."""
    live = generations.live(conn)
    if live is None:
        return {"judged": {}, "why": "no generation is live"}
    back = generations.find_fallback(generations.generations(conn))
    caught_up = 0 if back is None else _complete(services, conn, back)
    judged: dict[str, Any] = {}
    promoted: int | None = None
    for candidate in [one for one in generations.generations(conn) if one.state == "shadow"]:
        verdict = judge(services, conn, candidate, live)
        judged[str(candidate.id)] = verdict.to_json()
        if verdict.passed and services.settings.auto_promote and promoted is None:
            promoted = switch(
                conn, candidate.id, services.store, _load_assigner(services)
            ).generation
    return {"judged": judged, "promoted": promoted, "way_back_caught_up": caught_up}


def compare(
    probes: Sequence[Probe], live: Sequence[Rank], candidate: Sequence[Rank]
) -> dict[str, CohortComparison]:
    """The paired loss of each cohort, and of all together, beside what it may be."""
    places = dict(by_cohort(probes)) | ({ALL: list(range(len(probes)))} if probes else {})
    return {
        name: _paired([(live[at] is not None, candidate[at] is not None) for at in found])
        for name, found in places.items()
    }


def _paired(hits: Sequence[tuple[bool, bool]]) -> CohortComparison:
    """Loss: the share of queries that only the live generation answers, less the share that only the candidate does (McNemar).

    Its standard error, when both are equally good, is √(differing)/n.
    """
    lost, won = sum(a and not b for a, b in hits), sum(b and not a for a, b in hits)
    return CohortComparison(
        queries=len(hits),
        live_recall=sum(a for a, _ in hits) / len(hits),
        candidate_recall=sum(b for _, b in hits) / len(hits),
        loss=(lost - won) / len(hits),
        loss_limit=min(WORST_LOSS, max(LOSS, Z * sqrt(lost + won) / len(hits))),
    )


def _reasons(
    cohorts: dict[str, CohortComparison], missing: int, ratio: float | None, scored: Sequence[float]
) -> list[str]:
    """Why the candidate is refused; nothing when it is not."""
    reasons = []
    if not cohorts:
        reasons.append("no image has a caption, so nothing tells how well it finds them")
    if missing:
        reasons.append(f"{missing} images of the live generation are missing, 0 are allowed")
    judged = {name: one for name, one in cohorts.items() if name != ALL and one.queries >= LEAST}
    if len(judged) != 1 or len(cohorts) > 2:
        judged |= {ALL: cohorts[ALL]} if cohorts else {}
    for name, one in judged.items():
        if one.loss is not None and one.loss_limit is not None and one.loss > one.loss_limit:
            reasons.append(
                f"R@{DEPTH} of {name} falls from {one.live_recall:.1%} to {one.candidate_recall:.1%} "
                f"in {one.queries} queries, a loss of {100 * one.loss_limit:.1f} points is allowed"
            )
    if ratio is not None and ratio > LATENCY:
        reasons.append(f"a query takes {ratio:.2f} times as long, {LATENCY:g} times is allowed")
    if scored[1] > CANDIDATES * scored[0]:
        reasons.append(
            f"a query scores {scored[1]:.0f} images where it scored {scored[0]:.0f}, {CANDIDATES:g} times as many are allowed"
        )
    return reasons


def _ask(services: Services, generation: Generation, probes: Sequence[Probe]) -> _Asked:
    """Load, ask, free: only one of the two is in memory at a time."""
    searcher = Searcher(services, generation, engine="torch")
    try:
        found, scored = ranks(searcher.engine, probes, services.settings.retrieval)
    finally:
        searcher.close()
    return _Asked(found, scored)


def _catch_up(services: Services, conn: Connection, candidate: Generation, live: Generation) -> int:
    """Assign what the candidate lacks; returns how many images of the live generation it has no place for."""
    with transaction(conn):
        generations.lock_set(conn)
        ceiling = newest_image(conn)
    CatchUp(conn, candidate, services.store, _load_assigner(services)).run()
    # Later arrivals are on their way to both.
    found = row(conn, "lacking_images", candidate=candidate.id, live=live.id, ceiling=ceiling)
    return int(found[0]) if found else 0


def _complete(services: Services, conn: Connection, generation: Generation) -> int:
    try:
        return CatchUp(conn, generation, services.store, _load_assigner(services)).run()
    except SigmaError as error:
        log.error(
            "the fallback generation cannot catch up", generation=generation.id, reason=str(error)
        )
        return 0


def _load_assigner(services: Services) -> LoadAssigner:
    return assigner_loader(services.checkpoints, services.settings.retrieval.postings)
