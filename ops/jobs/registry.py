"""The jobs: what the scheduler runs, and what a person can run by name. Each is idempotent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from model.drift.monitors import RecallCount
from ops.jobs.arrival_windows import ArrivalWindowReader
from ops.jobs.candidate_promotion import CandidatePromoter
from ops.jobs.drift_report import DriftReporter, novel_recall
from ops.jobs.erasing import CONSUMED_TOPICS, GRACE, erase
from ops.jobs.recall_probe import recall_probe
from ops.jobs.retraining import CandidateTrainer
from schemas.errors import SigmaError, UsageError, WorkFailedError
from schemas.job_results import JobFailure, JobResult
from schemas.maintenance_results import PruneResult, TrimResult
from schemas.schedules import Schedule
from stream.lease import Lease
from stream.log.topics import TOPICS
from workers.generations import retiring
from workers.repository import job_runs
from workers.repository.connection import Connection, execute, fetch_column, transaction
from workers.repository.counters import WHOLE_DATABASE, count_up
from workers.repository.deletions import own_deletions
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

TOMBSTONE_DAYS = 7
"""Days that removals are kept for query workers, which load anew after half of that."""

DELETION_DAYS = 400
"""Days that the id and version of a deleted image are kept, against events that come late."""

REJECTION_DAYS = 90
"""Days that rejections are kept: as long as the longest retention of a topic."""

HISTORY_DAYS = 400
"""Days that job runs and alarms that ended are kept: the reports look back a year."""

_MEBIBYTE = 1 << 20


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
    embedded_log = services.settings.kafka is None
    events: dict[str, int] = {}
    if embedded_log:
        events = prune_events(conn)
    log = services.open_log()
    try:
        erased = erase(conn, services.store, log, embedded_log=embedded_log, grace=GRACE)
    finally:
        log.close()
    shadow_queries = prune_shadow_queries(conn, SHADOW_QUERY_DAYS)
    rows = {f"erased_{name}": amount for name, amount in asdict(erased).items()}
    rows |= prune_history(conn)
    dropped = retiring.prune(conn, services.checkpoints)
    return PruneResult(shadow_queries, tuple(dropped), events, rows)


def _trim_log(services: Services, conn: Connection) -> JobResult:
    return TrimResult(trim_events(conn) if services.settings.kafka is None else {})


def prune_history(conn: Connection) -> dict[str, int]:
    """Delete rows whose retention is over; returns how many of each kind."""
    with transaction(conn):
        own_deletions(conn)
        forgotten = int(fetch_column(conn, "prune_deleted_images", days=DELETION_DAYS)[0])
        rejections = execute(conn, "prune_rejections", days=REJECTION_DAYS)
        execute(conn, "prune_refused_versions", days=REJECTION_DAYS)
        count_up(conn, WHOLE_DATABASE, {"deleted": -forgotten, "rejected": -rejections})
    return {
        "deleted_images": forgotten,
        "rejections": rejections,
        "tombstones": execute(conn, "prune_tombstones", days=TOMBSTONE_DAYS),
        "alarms": execute(conn, "prune_alarms", days=HISTORY_DAYS),
        "job_runs": execute(conn, "prune_job_runs", days=HISTORY_DAYS),
    }


def trim_events(conn: Connection) -> dict[str, int]:
    """Delete the oldest events of topics that hold more than their bytes, if all have read them.

    Returns how many were deleted of each topic.
    """
    deleted = {}
    for topic in TOPICS:
        deleted[topic.name] = execute(
            conn,
            "trim_events",
            topic=topic.name,
            bytes=topic.mebibytes * _MEBIBYTE // topic.partitions,
            consumed=topic.name in CONSUMED_TOPICS,
        )
    return deleted


def prune_events(conn: Connection) -> dict[str, int]:
    """Delete events of the log in PostgreSQL that are past their retention and read by all.

    Returns how many were deleted of each topic.
    """
    deleted = {}
    for topic in TOPICS:
        consumed = topic.name in CONSUMED_TOPICS
        deleted[topic.name] = execute(
            conn, "prune_events", topic=topic.name, days=topic.days, consumed=consumed
        )
    return deleted


def _searcher_opener(services: Services) -> "OpenSearcher":
    """Loads a generation with the engine of the settings, as the query worker does."""

    def open_generation(generation: Generation) -> "Searcher[QueryEngine]":
        # Imported here: it loads PyTorch, which listing jobs and jobs without a model do without.
        from workers.query.loading import open_searcher

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
        "erase what deleted images left, forget events, rows and generations whose time is over",
        _prune,
        Schedule("every 86400"),
    ),
    Job(
        "trim-log",
        "keep the embedded log within its bytes",
        _trim_log,
        Schedule("every 3600"),
    ),
)

JOBS: Mapping[str, Job] = {job.name: job for job in _ALL_JOBS}
"""All jobs by name, in the order of `sigma jobs list`."""
