"""The jobs: what the scheduler runs, and what a person can run by name. Each is idempotent and returns figures for its record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ops.jobs.drift_report import drift_report
from ops.jobs.retraining import recluster, retrain
from schemas.errors import SigmaError, UsageError, WorkFailedError
from schemas.schedules import Schedule
from stream.log.topics import TOPICS
from workers.generations import retiring
from workers.repository import job_runs as repository
from workers.repository.connection import Connection, run
from workers.repository.shadow_queries import prune_shadow_queries
from workers.runtime.services import Services

Figures = dict[str, Any]

_REASON = 500
"""Letters of a failure's reason that are kept."""

_SHADOW_DAYS, _DAY_S = 30, 86_400.0
_CONSUMED = ("sigma.images.arrived", "sigma.images.accepted", "sigma.images.deleted")


@dataclass(frozen=True, slots=True)
class Job:
    """A named piece of work and when it is due: every so many seconds, at cron's times (UTC), at an alarm, or when a person asks."""

    name: str
    every_s: float | None
    about: str
    work: Callable[[Services, Connection], Figures]
    cron: str | None = None
    on_alarm: frozenset[str] = frozenset()
    """Names of monitors, or the levels `page` and `ticket`: an open alarm of one of these is answered by one run."""
    cooldown_s: float = 6 * 3600.0
    """Seconds from the end of any run of the job to the next one by alarm, so that a flood of alarms does not retrain for ever: six hourly
    drift reports judge what a run changed before it may be changed again. Alarms wait meanwhile, and call only if they are still open."""
    again_s: float | None = None
    """Seconds from the end of a run by alarm, if no other came since, to a second one. For what learns from arrivals: the alarm comes with
    the first images of a change, and the generation that learnt from those few takes the change for normal (docs/longrun.md)."""

    @property
    def schedule(self) -> Schedule:
        """When it is due unless a setting says otherwise."""
        if self.cron is not None:
            return Schedule.parse(self.cron)
        return Schedule() if self.every_s is None else Schedule(f"every {int(self.every_s)}")


def prune(services: Services, conn: Connection) -> Figures:
    """Forget shadow queries, generations that nobody needs, and events of the log in Postgres that are past their retention and read by
    all. Kafka does that itself."""
    gone: Figures = {
        "shadow_query": prune_shadow_queries(conn, _SHADOW_DAYS),
        "generations": retiring.prune(conn, services.checkpoints),
    }
    if services.settings.kafka is not None:
        return gone
    return gone | {
        t.name: run(conn, "prune_events", topic=t.name, days=t.days, consumed=t.name in _CONSUMED)
        for t in TOPICS
    }


def _recall_probe(services: Services, conn: Connection) -> Figures:
    from ops.jobs.recall_probe import recall_probe

    return recall_probe(services, conn)


def _gate(services: Services, conn: Connection) -> Figures:
    from ops.jobs.gate import gate_job

    return gate_job(services, conn)


JOBS: Mapping[str, Job] = {
    job.name: job
    for job in (
        Job(
            "recall-probe",
            3600.0,
            "recall of known items by age, beside exact dense search",
            _recall_probe,
        ),
        Job(
            "drift-report",
            3600.0,
            "whether what arrives is still what arrived at first, and alarms when not",
            drift_report,
        ),
        Job(
            "gate",
            3600.0,
            "judge shadow generations beside the live one, and let the fallback generation catch up",
            _gate,
        ),
        Job(
            "retrain",
            None,
            "a candidate with fresher weights",
            retrain,
            "0 3 * * 0",
            frozenset({"page"}),
            again_s=_DAY_S,
        ),
        Job(
            "recluster",
            None,
            "a candidate with a codebook fitted to what is in the store now",
            recluster,
            "0 5 1 * *",
        ),
        Job(
            "prune",
            _DAY_S,
            "forget events of the embedded log and generations that nobody needs any more",
            prune,
        ),
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
    except SigmaError as error:
        repository.end_run(conn, number, "failed", {"error": str(error)[:_REASON]})
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:_REASON]
        repository.end_run(conn, number, "failed", {"error": reason})
        raise WorkFailedError(f"job {wanted.name} failed: {reason}") from error
    repository.end_run(conn, number, "done", figures)
    return repository.job_run(conn, number)
