"""The jobs: what the scheduler runs, and what a person can run by name. Each is idempotent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.drift.monitors import RecallCount
from ops.jobs.arrival_windows import ArrivalWindowReader
from ops.jobs.candidate_promotion import CandidatePromoter
from ops.jobs.drift_report import DriftReporter, novel_recall
from ops.jobs.recall_probe import recall_probe
from ops.jobs.retraining import CandidateTrainer
from schemas.errors import SigmaError, UsageError, WorkFailedError
from schemas.events import ACCEPTED, ARRIVED, DELETED
from schemas.job_results import JobFailure, JobResult
from schemas.maintenance_results import PruneResult
from schemas.schedules import Schedule
from stream.lease import Lease
from stream.log.topics import TOPICS
from workers.generations import retiring
from workers.repository import job_runs
from workers.repository.connection import Connection, execute
from workers.repository.generations import Generation
from workers.repository.shadow_queries import prune_shadow_queries
from workers.runtime.services import Services

if TYPE_CHECKING:
    from ops.jobs.known_items import OpenSearcher
    from workers.query.engine import QueryEngine
    from workers.query.searcher import Searcher

MAX_ERROR_LETTERS = 500
"""Letters of a failure's message that are stored with its run."""

SHADOW_QUERY_DAYS = 30
"""Days that comparisons of shadow queries are kept."""

_DAY_S = 86_400.0

_CONSUMED_TOPICS = (ARRIVED, ACCEPTED, DELETED)
"""Topics whose events are kept until every consumer group of the workers has read them."""


@dataclass(frozen=True, slots=True)
class Job:
    """A named piece of work, and when it is run beside whenever a person asks for it."""

    name: str
    about: str
    """What it does, for the list of jobs."""
    work: Callable[[Services, Connection], JobResult]
    schedule: Schedule = Schedule()
    """When it is due unless a setting says otherwise; by default at no time."""
    on_alarm: frozenset[str] = frozenset()
    """Monitors, or the levels `page` and `ticket`: one run answers each such open alarm."""
    cooldown_s: float = 6 * 3600.0
    """Seconds from the end of any run to the next one by alarm, so that a flood of alarms does not
    retrain for ever: six hourly drift reports judge what a run changed before the next change.
    Alarms wait meanwhile, and are answered if they are still open."""
    again_s: float | None = None
    """Seconds from the end of a run by alarm to a second run, if there was no other meanwhile. For
    work that learns from arrivals: an alarm comes with the first images of a change, and a
    generation that learnt from those few takes the change for normal (docs/longrun.md)."""


def run_job(
    services: Services, conn: Connection, job: Job, number: int, held: Sequence[Lease] = ()
) -> job_runs.JobRun:
    """Do the work of a run that was begun, and record its result if the leases are held still.

    A failure is recorded too, then raised: a `SigmaError` as it is, others as `WorkFailedError`.
    """
    try:
        result = job.work(services, conn)
    except SigmaError as error:
        _record_failure(conn, number, str(error), held)
        raise
    except Exception as error:
        # A defect in one job must leave its reason in the row, and must not stop the scheduler.
        reason = f"{type(error).__name__}: {error}"[:MAX_ERROR_LETTERS]
        _record_failure(conn, number, reason, held)
        raise WorkFailedError(f"job {job.name} failed: {reason}") from error
    job_runs.end_run(conn, number, "done", result.to_json(), held)
    return job_runs.job_run(conn, number)


def job_named(name: str) -> Job:
    """A job by its name; `UsageError` lists the names there are."""
    if name not in JOBS:
        raise UsageError(f"job must be one of {', '.join(JOBS)}, got {name!r}")
    return JOBS[name]


def _record_failure(conn: Connection, number: int, error: str, held: Sequence[Lease]) -> None:
    failure = JobFailure(error[:MAX_ERROR_LETTERS])
    job_runs.end_run(conn, number, "failed", failure.to_json(), held)


def _probe_recall(services: Services, conn: Connection) -> JobResult:
    return recall_probe(conn, _searcher_opener(services))


def _report_drift(services: Services, conn: Connection) -> JobResult:
    def measure_recall(generation: Generation, image_keys: Sequence[int]) -> RecallCount | None:
        return novel_recall(conn, generation, image_keys, _searcher_opener(services))

    windows = ArrivalWindowReader(services.checkpoints, services.open_log)
    return DriftReporter(conn, windows, measure_recall).report()


def _run_gate(services: Services, conn: Connection) -> JobResult:
    promoter = CandidatePromoter.on_services(services, conn)
    return promoter.run_gate(auto_promote=services.settings.auto_promote)


def _retrain(services: Services, conn: Connection) -> JobResult:
    return CandidateTrainer.on_services(services, conn).retrain(services.settings)


def _recluster(services: Services, conn: Connection) -> JobResult:
    return CandidateTrainer.on_services(services, conn).recluster()


def _prune(services: Services, conn: Connection) -> JobResult:
    """Kafka deletes its old events by itself."""
    shadow_queries = prune_shadow_queries(conn, SHADOW_QUERY_DAYS)
    dropped = retiring.prune(conn, services.checkpoints)
    events: dict[str, int] = {}
    if services.settings.kafka is None:
        events = prune_events(conn)
    return PruneResult(shadow_queries, tuple(dropped), events)


def prune_events(conn: Connection) -> dict[str, int]:
    """Delete events of the log in PostgreSQL that are past their retention and read by all.

    Returns how many were deleted of each topic.
    """
    deleted = {}
    for topic in TOPICS:
        consumed = topic.name in _CONSUMED_TOPICS
        deleted[topic.name] = execute(
            conn, "prune_events", topic=topic.name, days=topic.days, consumed=consumed
        )
    return deleted


def _searcher_opener(services: Services) -> "OpenSearcher":
    """Loads a generation with the engine of the settings, as the query worker does."""

    def open_generation(generation: Generation) -> "Searcher[QueryEngine]":
        # Imported here: it loads PyTorch, which listing jobs and jobs without a model do without.
        from workers.query.searcher import open_searcher

        return open_searcher(services, generation)

    return open_generation


_ALL_JOBS = (
    Job(
        "recall-probe",
        "recall of known items by age, beside exact dense search",
        _probe_recall,
        Schedule("every 3600"),
    ),
    Job(
        "drift-report",
        "whether what arrives is still what arrived at first, and alarms when not",
        _report_drift,
        Schedule("every 3600"),
    ),
    Job(
        "gate",
        "judge shadow generations beside the live one, and let the fallback generation catch up",
        _run_gate,
        Schedule("every 3600"),
    ),
    Job(
        "retrain",
        "a candidate with fresher weights",
        _retrain,
        # Weekly, when few queries are expected: it takes the processors for hours, if at low
        # priority.
        Schedule("0 3 * * 0"),
        on_alarm=frozenset({"page"}),
        again_s=_DAY_S,
    ),
    Job(
        "recluster",
        "a candidate with a codebook fitted to what is in the store now",
        _recluster,
        # Two hours after a retraining on the same day: there is one candidate at a time.
        Schedule("0 5 1 * *"),
    ),
    Job(
        "prune",
        "forget events of the embedded log and generations that nobody needs any more",
        _prune,
        Schedule("every 86400"),
    ),
)

JOBS: Mapping[str, Job] = {job.name: job for job in _ALL_JOBS}
"""All jobs by name, in the order of `sigma jobs list`."""
