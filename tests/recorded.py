"""Two weeks of an installation's records: a new topic arrives, codes drift, recall of young images falls, a candidate is refused, a
refreshed generation goes live and recall comes back. Written through the repository, then moved to their times."""

import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from model.retrieval.recall import wilson
from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from workers.repository import job_runs as jobs
from workers.repository.connection import Connection
from workers.repository.generations import create_generation, promote, set_state

DAYS, EVERY = 14, timedelta(hours=4)
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
HOSTILE = "</table><script>console.error('escaped')</script><img src=x onerror=alert(1)> \u202e\u0007 $\\frac{1}{"
"""A text that would break the page, its direction, an XML parser or a formula, wherever it is not escaped."""

_COHORTS = {"hour": 46, "day": 71, "week": 64, "older": 58, "trained": 61}
_EXACT = {"R@1": 0.86, "R@5": 0.972, "R@10": 0.992}


def record(conn: Connection, now: datetime | None = None) -> datetime:
    """Write it all; returns the time it ends at, which is now."""
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    begin = now - timedelta(days=DAYS)
    chance = Random(5)
    _generations(conn, begin)
    moment = now - timedelta(days=DAYS, minutes=20)
    while moment <= now - timedelta(minutes=10):
        share = max(0.0, (moment - begin) / (now - begin))
        _run(conn, "recall-probe", moment, _probe(share, chance))
        _run(conn, "drift-report", moment + timedelta(minutes=7), _look(share, chance))
        moment += EVERY
    for day in range(DAYS):
        _run(
            conn,
            "prune",
            begin + timedelta(days=day, hours=3),
            {"error": HOSTILE} if day == 6 else {},
            "failed" if day == 6 else "done",
        )
    _alarms(conn, begin)
    return now


def answering(share: float) -> int:
    """The generation that is live at a share of the time: the third one comes at 0.65, the second one was refused."""
    return 3 if share >= 0.65 else 1


def strength(share: float) -> float:
    """How strong the drift is, 0 to 1: it begins at 0.3, and the refreshed generation takes most of it back."""
    return 0.12 if share >= 0.65 else 1 / (1 + math.exp(-(share - 0.45) * 28))


def _generations(conn: Connection, begin: datetime) -> None:
    verdict = {
        "passed": False,
        "reasons": ["trained images lose 4.1 points of R@10, 1.5 are allowed", HOSTILE],
        "against": 1,
        "probes": {
            "trained": {
                "queries": 200,
                "live_R@10": 0.98,
                "candidate_R@10": 0.939,
                "loss": 0.041,
                "loss_limit": 0.015,
            }
        },
        "missing": 0,
        "latency_ratio": 1.04,
        "shadow_queries": 212,
    }
    good = verdict | {
        "passed": True,
        "reasons": [],
        "probes": {"hour": {"queries": 46, "live_R@10": 0.74, "candidate_R@10": 0.95}},
    }
    configs: list[dict[str, Any]] = [
        {"mode": "full", "images": 3000, "parent": None},
        {"mode": "recluster", "images": 5200, "parent": 1, "gate": verdict},
        {"mode": "refresh", "images": 6100, "parent": 1, "gate": good},
    ]
    first, second, third = (
        create_generation(conn, SHAPE, config=GenerationConfig.from_json(one)) for one in configs
    )
    set_state(conn, first, "shadow")
    promote(conn, first)
    set_state(conn, second, "failed")
    set_state(conn, third, "shadow")
    promote(conn, third)
    for number, live, ended in ((first, -0.4, 0.65), (second, None, 0.58), (third, 0.65, None)):
        times = [
            None if share is None else begin + timedelta(days=DAYS) * share
            for share in (live, ended)
        ]
        conn.execute(
            "UPDATE generation SET live_at = %s, ended_at = %s WHERE id = %s", (*times, number)
        )


def _run(
    conn: Connection, job: str, at: datetime, figures: dict[str, Any], outcome: str = "done"
) -> None:
    number = jobs.begin_manual_run(conn, job)
    jobs.end_run(conn, number, outcome, figures)
    conn.execute(
        "UPDATE job_run SET started_at = %s, ended_at = %s WHERE id = %s",
        (at, at + timedelta(seconds=9), number),
    )


def _alarms(conn: Connection, begin: datetime) -> None:
    for monitor, level, raised, cleared in (
        ("id1", "page", 0.5, 0.66),
        ("embedding", "ticket", 0.46, 0.66),
        ("novelty", "page", 0.5, 0.66),
        ("query-score", "ticket", 0.97, None),
    ):
        times = [
            None if share is None else begin + timedelta(days=DAYS) * share
            for share in (raised, cleared)
        ]
        detail: dict[str, Any] = {"note": HOSTILE}
        if level == "page":
            detail |= {
                "recall_then": {"hits": 188, "queries": 200},
                "recall_now": {"hits": 62, "queries": 100},
            }
        conn.execute(
            "INSERT INTO alarm (generation, monitor, level, effect, effect_limit, p, p_limit, detail, raised_at, cleared_at)"
            " VALUES (%s, %s, %s, 0.31, 0.2, 0.0004, 0.001, %s, %s, %s)",
            (answering(raised), monitor, level, Jsonb(detail), *times),
        )


def _probe(share: float, chance: Random) -> dict[str, Any]:
    loss = {"hour": 0.27, "day": 0.22, "week": 0.09, "older": 0.02, "trained": 0.01}
    cohorts = {}
    for name, queries in _COHORTS.items():
        drop = loss[name] * strength(share) + 0.01 * chance.random()
        ours = {"R@1": 0.80 - 1.3 * drop, "R@5": 0.95 - 1.1 * drop, "R@10": 0.982 - drop}
        hits = {
            cutoff: sum(chance.random() < value for _ in range(queries))
            for cutoff, value in ours.items()
        }
        exact = {
            cutoff: sum(chance.random() < value for _ in range(queries)) / queries
            for cutoff, value in _EXACT.items()
        }
        cohorts[name] = {
            "queries": queries,
            "ours": {cutoff: hit / queries for cutoff, hit in hits.items()},
            "exact_dense": exact,
            "ours_R@10_95%": list(wilson(hits["R@10"], queries)),
        }
    return {"generation": answering(share), "queries": sum(_COHORTS.values()), "cohorts": cohorts}


def _look(share: float, chance: Random) -> dict[str, Any]:
    felt = {
        "id1": 1.9,
        "id2": 1.1,
        "id3": 0.5,
        "id4": 0.4,
        "embedding": 1.6,
        "novelty": 2.2,
        "confidence": 0.9,
        "query-score": 0.7,
    }
    monitors = []
    for name in MONITORS:
        effect = 0.2 * (0.25 + felt.get(name, 0.2) * strength(share) + 0.14 * chance.random())
        effect += 0.13 if name == "query-score" and share > 0.97 else 0.0
        p = 10 ** (-5 * effect / 0.2)
        alarm = effect > 0.2 and p < 0.001
        monitors.append(
            {
                "name": name,
                "effect": effect,
                "effect_limit": 0.2,
                "p": p,
                "p_limit": 0.001,
                "alarm": alarm,
            }
        )
    return {
        "generation": answering(share),
        "images": 2000,
        "first_key": 1,
        "last_key": 9000,
        "monitors": monitors,
        "histograms": {
            f"id{level}": _codes(level, codes, strength(share))
            for level, codes in enumerate(SHAPE.codes, start=1)
        },
        "leaf": {
            "gini": 0.41 + 0.2 * strength(share),
            "p99": 31 + 22 * strength(share),
            "max": 60 + 40 * strength(share),
        },
        "suffix_pressure": 0.02 + 0.2 * strength(share),
        "pages": int(0.5 <= share < 0.66),
        "tickets": sum(one["alarm"] for one in monitors),
    }


def _codes(level: int, codes: int, drift: float) -> dict[str, list[float]]:
    rng = np.random.default_rng(level)
    then = rng.dirichlet(np.full(codes, 6.0))
    topic = np.zeros(codes)
    topic[codes // 3] = 1.0
    now = (
        (1 - 0.3 * drift - 0.05) * then
        + 0.3 * drift * topic
        + 0.05 * rng.dirichlet(np.full(codes, 6.0))
    )
    return {"then": then.round(5).tolist(), "now": (now / now.sum()).round(5).tolist()}
