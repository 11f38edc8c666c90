"""Two weeks of an installation's records, written through the repository and moved in time.

A new topic arrives, codes drift, recall of young images falls, a candidate is refused, a refreshed
generation goes live, and recall recovers.
"""

import math
from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np
from psycopg.types.json import Jsonb

from model.retrieval.recall import wilson
from schemas.generation_config import CohortComparison, GateVerdict, GenerationConfig
from schemas.identifiers import IdentifierShape
from schemas.job_results import (
    CodeShares,
    CohortRecall,
    DriftReportResult,
    JobFailure,
    LeafLoads,
    MonitorReading,
    RecallProbeResult,
)
from schemas.training_record import TrainingRecord
from workers.repository import job_runs
from workers.repository.connection import Connection
from workers.repository.generations import create_generation, promote, set_state

DAYS = 14
EVERY = timedelta(hours=4)
"""Between two runs of `recall-probe`, and between two of `drift-report`."""

SHAPE = IdentifierShape(codes=(24, 16, 8, 16), suffixes=64)
MONITORS = (
    "id1",
    "id2",
    "id3",
    "id4",
    "embedding",
    "novelty",
    "confidence",
    "agreement",
    "leaf-load",
    "suffix-pressure",
    "query-score",
)
HOSTILE = (
    "</table><script>console.error('escaped')</script><img src=x onerror=alert(1)> "
    "\u202e\u0007 $\\frac{1}{"
)
"""A text that would break the page, its direction, an XML parser or a formula if not escaped."""

_REFRESHED_AT = 0.65
"""When the refreshed generation goes live, as a share of the two weeks."""

_COHORT_QUERIES = {"hour": 46, "day": 71, "week": 64, "older": 58, "trained": 61}
_COHORT_LOSSES = {"hour": 0.27, "day": 0.22, "week": 0.09, "older": 0.02, "trained": 0.01}
"""R@10 that the images of each age lose at full drift."""

_EXACT_RECALL = {"R@1": 0.86, "R@5": 0.972, "R@10": 0.992}

_EFFECT_LIMIT = 0.2
_P_LIMIT = 0.001
_SENSITIVITY = {
    "id1": 1.9,
    "id2": 1.1,
    "id3": 0.5,
    "id4": 0.4,
    "embedding": 1.6,
    "novelty": 2.2,
    "confidence": 0.9,
    "query-score": 0.7,
}
"""Effect of full drift on a monitor, in units of its limit; 0.2 for the others."""


def record(conn: Connection, now: datetime | None = None) -> datetime:
    """Write all records. Returns the time at which they end, which is now by default."""
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    begin = now - timedelta(days=DAYS)
    random = Random(5)
    _record_generations(conn, begin)
    at = begin - timedelta(minutes=20)
    while at <= now - timedelta(minutes=10):
        share = max(0.0, (at - begin) / (now - begin))
        _record_run(conn, "recall-probe", at, _probe(share, random).to_json())
        drift = _drift_report(share, random)
        _record_run(conn, "drift-report", at + timedelta(minutes=7), drift.to_json())
        at += EVERY
    for day in range(DAYS):
        _record_prune(conn, begin + timedelta(days=day, hours=3), failed=day == 6)
    _record_alarms(conn, begin)
    return now


def answering(share: float) -> int:
    """The generation that is live at a share of the time: 1, then 3. Generation 2 was refused."""
    return 3 if share >= _REFRESHED_AT else 1


def strength(share: float) -> float:
    """How strong the drift is at a share of the time, 0 to 1.

    It begins at 0.3; the refreshed generation takes most of it back.
    """
    return 0.12 if share >= _REFRESHED_AT else 1 / (1 + math.exp(-(share - 0.45) * 28))


def _record_generations(conn: Connection, begin: datetime) -> None:
    refused = GateVerdict(
        passed=False,
        reasons=("trained images lose 4.1 points of R@10, 1.5 are allowed", HOSTILE),
        against=1,
        cohorts={"trained": CohortComparison(200, 0.98, 0.939, loss=0.041, loss_limit=0.015)},
        missing=0,
        latency_ratio=1.04,
        shadow_queries=212,
    )
    passed = GateVerdict(
        passed=True,
        against=1,
        cohorts={"hour": CohortComparison(46, 0.74, 0.95)},
        missing=0,
        latency_ratio=1.04,
        shadow_queries=212,
    )
    first = create_generation(
        conn, SHAPE, config=GenerationConfig(TrainingRecord(mode="full", images=3000))
    )
    recluster = TrainingRecord(mode="recluster", images=5200, parent=first)
    second = create_generation(conn, SHAPE, config=GenerationConfig(recluster, gate=refused))
    refresh = TrainingRecord(mode="refresh", images=6100, parent=first)
    third = create_generation(conn, SHAPE, config=GenerationConfig(refresh, gate=passed))
    set_state(conn, first, "shadow")
    promote(conn, first)
    set_state(conn, second, "failed")
    set_state(conn, third, "shadow")
    promote(conn, third)
    _move_generation(conn, first, _at(begin, -0.4), _at(begin, _REFRESHED_AT))
    _move_generation(conn, second, None, _at(begin, 0.58))
    _move_generation(conn, third, _at(begin, _REFRESHED_AT), None)


def _move_generation(
    conn: Connection, number: int, live_at: datetime | None, ended_at: datetime | None
) -> None:
    conn.execute(
        "UPDATE generation SET live_at = %s, ended_at = %s WHERE id = %s",
        (live_at, ended_at, number),
    )


def _record_run(
    conn: Connection,
    job: str,
    at: datetime,
    figures: dict[str, object],
    outcome: str = "done",
) -> None:
    number = job_runs.begin_manual_run(conn, job)
    job_runs.end_run(conn, number, outcome, figures)
    conn.execute(
        "UPDATE job_run SET started_at = %s, ended_at = %s WHERE id = %s",
        (at, at + timedelta(seconds=9), number),
    )


def _record_prune(conn: Connection, at: datetime, *, failed: bool) -> None:
    if failed:
        _record_run(conn, "prune", at, JobFailure(HOSTILE).to_json(), "failed")
    else:
        _record_run(conn, "prune", at, {})


def _record_alarms(conn: Connection, begin: datetime) -> None:
    _record_alarm(conn, begin, "id1", "page", 0.5, 0.66)
    _record_alarm(conn, begin, "embedding", "ticket", 0.46, 0.66)
    _record_alarm(conn, begin, "novelty", "page", 0.5, 0.66)
    _record_alarm(conn, begin, "query-score", "ticket", 0.97, None)


def _record_alarm(
    conn: Connection,
    begin: datetime,
    monitor: str,
    level: str,
    raised: float,
    cleared: float | None,
) -> None:
    """`raised` and `cleared` are shares of the two weeks."""
    detail: dict[str, object] = {"note": HOSTILE}
    if level == "page":
        detail["recall_then"] = {"hits": 188, "queries": 200}
        detail["recall_now"] = {"hits": 62, "queries": 100}
    conn.execute(
        "INSERT INTO alarm (generation, monitor, level, effect, effect_limit, p, p_limit, detail,"
        " raised_at, cleared_at) VALUES (%s, %s, %s, 0.31, 0.2, 0.0004, 0.001, %s, %s, %s)",
        (
            answering(raised),
            monitor,
            level,
            Jsonb(detail),
            _at(begin, raised),
            None if cleared is None else _at(begin, cleared),
        ),
    )


def _at(begin: datetime, share: float) -> datetime:
    return begin + timedelta(days=DAYS) * share


def _probe(share: float, random: Random) -> RecallProbeResult:
    cohorts = {}
    for name, queries in _COHORT_QUERIES.items():
        loss = _COHORT_LOSSES[name] * strength(share) + 0.01 * random.random()
        expected = {"R@1": 0.80 - 1.3 * loss, "R@5": 0.95 - 1.1 * loss, "R@10": 0.982 - loss}
        ours = _sampled(expected, queries, random)
        exact = _sampled(_EXACT_RECALL, queries, random)
        interval = wilson(round(ours["R@10"] * queries), queries)
        cohorts[name] = CohortRecall(queries, ours, exact, interval)
    return RecallProbeResult(answering(share), cohorts)


def _sampled(expected: dict[str, float], queries: int, random: Random) -> dict[str, float]:
    """Recall of a sample of queries by cut-off."""
    recalls = {}
    for cutoff, recall in expected.items():
        hits = sum(random.random() < recall for _ in range(queries))
        recalls[cutoff] = hits / queries
    return recalls


def _drift_report(share: float, random: Random) -> DriftReportResult:
    drift = strength(share)
    monitors = tuple(_reading(name, share, random) for name in MONITORS)
    histograms = {}
    for level, codes in enumerate(SHAPE.codes, start=1):
        histograms[f"id{level}"] = _histogram(level, codes, drift)
    return DriftReportResult(
        generation=answering(share),
        images=2000,
        monitors=monitors,
        first_key=1,
        last_key=9000,
        histograms=histograms,
        leaf=LeafLoads(gini=0.41 + 0.2 * drift, p99=31 + 22 * drift, max=60 + 40 * drift),
        suffix_pressure=0.02 + 0.2 * drift,
        pages=int(0.5 <= share < 0.66),
        tickets=sum(reading.alarm for reading in monitors),
    )


def _reading(name: str, share: float, random: Random) -> MonitorReading:
    sensitivity = _SENSITIVITY.get(name, 0.2)
    effect = _EFFECT_LIMIT * (0.25 + sensitivity * strength(share) + 0.14 * random.random())
    if name == "query-score" and share > 0.97:
        effect += 0.13
    p = 10 ** (-5 * effect / _EFFECT_LIMIT)
    alarm = effect > _EFFECT_LIMIT and p < _P_LIMIT
    return MonitorReading(name, effect, _EFFECT_LIMIT, p, _P_LIMIT, alarm)


def _histogram(level: int, codes: int, drift: float) -> CodeShares:
    """A reference, and the same with a new topic that has one code."""
    rng = np.random.default_rng(level)
    then = rng.dirichlet(np.full(codes, 6.0))
    topic = np.zeros(codes)
    topic[codes // 3] = 1.0
    noise = rng.dirichlet(np.full(codes, 6.0))
    now = (1 - 0.3 * drift - 0.05) * then + 0.3 * drift * topic + 0.05 * noise
    now /= now.sum()
    return CodeShares(tuple(then.round(5).tolist()), tuple(now.round(5).tolist()))
