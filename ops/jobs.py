"""The jobs: what the scheduler runs, and what a person can run by name. Each is idempotent and returns figures for its record."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from model.recall import recall_at, wilson
from ops.drift import drift_report
from schemas.errors import SigmaError, UsageError
from stream.topics import TOPICS
from workers.repository import jobs as repository
from workers.repository.connection import Connection, row, run
from workers.services import Services

Figures = dict[str, Any]

_PROBES, _DEPTH, _BATCH = 200, 10, 16
_AGES = (("hour", 3600.0), ("day", 86_400.0), ("week", 604_800.0), ("older", float("inf")))
_CONSUMED = ("sigma.images.arrived", "sigma.images.accepted", "sigma.images.deleted")


@dataclass(frozen=True, slots=True)
class Job:
    """A named piece of work and how often it is due."""

    name: str
    every_s: float
    about: str
    work: Callable[[Services, Connection], Figures]


def recall_probe(services: Services, conn: Connection) -> Figures:
    """Known-item queries sampled by the age of their image: our recall beside exact dense search, with intervals."""
    from workers.repository.generations import live
    from workers.searcher import Searcher, retrieval_of

    generation = live(conn)
    if generation is None:
        return {"queries": 0, "why": "no generation is live"}
    probes = _sample(conn, generation.id)
    searcher = Searcher(services, generation)
    ranks: dict[str, list[tuple[int | None, int | None]]] = defaultdict(list)
    try:
        for start in range(0, len(probes), _BATCH):
            part = probes[start : start + _BATCH]
            texts = [text for text, _, _ in part]
            ours = searcher.engine.answer(texts, _DEPTH, retrieval_of(services))
            exact = searcher.engine.answer_exact(searcher.engine.encoder.embed_texts(texts), _DEPTH)
            for (_, key, cohort), mine, dense in zip(part, ours, exact, strict=True):
                ranks[cohort].append((_rank(mine.image_keys.tolist(), key), _rank(dense.image_keys.tolist(), key)))
    finally:
        searcher.close()
    return {"generation": generation.id, "queries": len(probes), "cohorts": {name: _figures(found) for name, found in ranks.items()}}


def prune(services: Services, conn: Connection) -> Figures:
    """Forget events of the log in Postgres that are past their retention and read by everybody. Kafka does that by itself."""
    if services.settings.kafka is not None:
        return {}
    return {t.name: run(conn, "prune_events", topic=t.name, days=t.days, consumed=t.name in _CONSUMED) for t in TOPICS}


JOBS: Mapping[str, Job] = {
    job.name: job
    for job in (
        Job("recall-probe", 3600.0, "recall of known items by age, beside exact dense search", recall_probe),
        Job("drift-report", 3600.0, "whether what arrives is still what arrived at first, and alarms when not", drift_report),
        Job("prune", 86_400.0, "forget events of the embedded log that are past their retention", prune),
    )
}


def job(name: str) -> Job:
    """A job by name; `UsageError` lists those there are."""
    if name not in JOBS:
        raise UsageError(f"there is no job {name!r}, known are {', '.join(JOBS)}")
    return JOBS[name]


def perform(services: Services, conn: Connection, wanted: Job, number: int) -> repository.JobRun:
    """Do the work of a run that was begun, and record what came of it. A failure is recorded too, then raised."""
    try:
        figures = wanted.work(services, conn)
    except Exception as error:
        repository.end(conn, number, "failed", {"error": str(error)[:500] if isinstance(error, SigmaError) else type(error).__name__})
        raise
    repository.end(conn, number, "done", figures)
    return repository.job_runs(conn, wanted.name, limit=1)[0]


def _sample(conn: Connection, generation: int) -> list[tuple[str, int, str]]:
    """(caption, image key, cohort) of images at random keys, each image once."""
    low, high = row(conn, "probe_range", generation=generation) or (0, 0)
    chance = random.Random(f"{generation} {low} {high}")
    found: dict[int, tuple[str, int, str]] = {}
    for _ in range(_PROBES):
        sampled = row(conn, "probe_sample", generation=generation, after=chance.randint(low, high))
        if sampled is not None:
            key, captions, test_captions, trained, age_s = sampled
            cohort = "trained" if trained else next(name for name, limit in _AGES if age_s < limit)
            found[key] = ((test_captions or captions)[0], key, cohort)
    return list(found.values())


def _rank(keys: list[int], key: int) -> int | None:
    return keys.index(key) + 1 if key in keys else None


def _figures(found: list[tuple[int | None, int | None]]) -> Figures:
    ours, exact = ([pair[at] for pair in found] for at in (0, 1))
    cutoffs = (1, 5, 10)
    return {
        "queries": len(found),
        "ours": recall_at(ours, cutoffs),
        "exact_dense": recall_at(exact, cutoffs),
        "ours_R@10_95%": list(wilson(sum(rank is not None for rank in ours), len(ours))),
    }
