"""The jobs: what the scheduler runs, and what a person can run by name. Each is idempotent and returns figures for its record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.errors import SigmaError, UsageError
from stream.topics import TOPICS
from workers.repository import jobs as repository
from workers.repository.connection import Connection, run
from workers.repository.shadow import prune_shadow_queries
from workers.services import Services

Figures = dict[str, Any]

_SHADOW_DAYS = 30
_CONSUMED = ("sigma.images.arrived", "sigma.images.accepted", "sigma.images.deleted")


@dataclass(frozen=True, slots=True)
class Job:
    """A named piece of work and how often it is due."""

    name: str
    every_s: float
    about: str
    work: Callable[[Services, Connection], Figures]


def prune(services: Services, conn: Connection) -> Figures:
    """Forget shadow queries, and events of the log in Postgres that are past their retention and read by all. Kafka does that itself."""
    shadow = {"shadow_query": prune_shadow_queries(conn, _SHADOW_DAYS)}
    if services.settings.kafka is not None:
        return shadow
    return shadow | {t.name: run(conn, "prune_events", topic=t.name, days=t.days, consumed=t.name in _CONSUMED) for t in TOPICS}


def _recall_probe(services: Services, conn: Connection) -> Figures:
    from ops.probes import recall_probe

    return recall_probe(services, conn)


def _gate(services: Services, conn: Connection) -> Figures:
    from ops.gate import gate_job

    return gate_job(services, conn)


JOBS: Mapping[str, Job] = {
    job.name: job
    for job in (
        Job("recall-probe", 3600.0, "recall of known items by age, beside exact dense search", _recall_probe),
        Job("gate", 3600.0, "judge shadow generations beside the live one, and let the way back catch up", _gate),
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
