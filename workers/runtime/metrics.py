"""Metrics of the workers, in Prometheus form, and the snapshot that the scheduler shows.

Each worker has a registry of its own, so that two workers in one process do not collide. Help texts
are what Grafana shows beside a name; the units are in the names, as Prometheus wants them.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.events import ImageAccepted, ImageDeleted, ImageRejected
from workers.repository.image_rows import LateArrival
from workers.repository.monitoring import JobTotal

# Buckets of seconds between two steps of the stream: from an idle system to an hour of backlog.
AGE_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600)

# Buckets of events handled together.
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)

# Urgencies of an alarm. Both are always exported, because a missing series cannot be graphed.
ALARM_LEVELS = ("ticket", "page")

# Seconds for which a measured lag is shown: twelve measurements. While the database or Kafka is
# away there are none, and an old number would say that nothing waits.
LAG_SHOWN_S = 60.0

# Verdict of an event of which not even a dead letter could be made.
PASSED_OVER = "passed-over"


def worker_registry() -> CollectorRegistry:
    """Make a worker's registry, with its process: when it started, its memory and open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class LagGauge:
    """How many events wait, as last measured; not a number when that was too long ago."""

    def __init__(
        self,
        name: str,
        text: str,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._measured = (math.nan, -math.inf)
        """The number, and when it was measured by `clock`; replaced in one step."""
        Gauge(name, text, registry=registry).set_function(self._value)

    def set(self, waiting: float) -> None:
        """Take note of a measurement."""
        self._measured = (waiting, self._clock())

    def _value(self) -> float:
        waiting, measured_s = self._measured
        return waiting if self._clock() - measured_s <= LAG_SHOWN_S else math.nan


class IntakeMetrics:
    """The metrics of one intake worker. `clock` tells how old a measurement is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = worker_registry()
        self.batch = Histogram(
            "sigma_intake_batch",
            "Events taken in together",
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        self.verdicts = Counter(
            "sigma_intake_verdicts",
            "Events by what they came to",
            ["verdict"],
            registry=self.registry,
        )
        self.verdicts.labels("accepted")
        self.lag = LagGauge(
            "sigma_intake_lag",
            "Arrivals and deletions that the group has not committed yet; NaN when not known",
            self.registry,
            clock,
        )
        self.last_minute = Gauge(
            "sigma_intake_last_minute",
            "Verdicts of the running minute, by faust's tables",
            ["verdict"],
            registry=self.registry,
        )

    def count_verdict(
        self, verdict: ImageAccepted | ImageRejected | ImageDeleted | LateArrival
    ) -> None:
        """Count one verdict; rejections by their code."""
        self.verdicts.labels(verdict_name(verdict)).inc()

    def count_passed_over(self) -> None:
        """Count one event of which not even a dead letter could be made."""
        self.verdicts.labels(PASSED_OVER).inc()

    def set_last_minute(self, verdict: str, count: int) -> None:
        """Show how many events of the running minute had this verdict."""
        self.last_minute.labels(verdict).set(count)


def verdict_name(verdict: ImageAccepted | ImageRejected | ImageDeleted | LateArrival) -> str:
    """Name a verdict as its metric's label does: accepted, deleted, or the code of a rejection."""
    if isinstance(verdict, ImageAccepted):
        return "accepted"
    if isinstance(verdict, ImageDeleted | LateArrival):
        return "deleted"
    # Safe as a label: codes are a small fixed set.
    return verdict.code


class IndexMetrics:
    """The metrics of one index worker. `clock` tells how old a measurement is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = worker_registry()
        self.batch = Histogram(
            "sigma_index_batch",
            "Images assigned together",
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        self.age = Histogram(
            "sigma_index_age_seconds",
            "Seconds from arrival to appended",
            buckets=AGE_S,
            registry=self.registry,
        )
        self.model_seconds = Counter(
            "sigma_index_model_seconds", "Seconds inside the model", registry=self.registry
        )
        self.other_seconds = Counter(
            "sigma_index_other_seconds",
            "Seconds of batches outside the model",
            registry=self.registry,
        )
        self.rejected = Counter(
            "sigma_index_rejected",
            "Accepted images that could not be indexed, by code",
            ["code"],
            registry=self.registry,
        )
        self.lag = LagGauge(
            "sigma_index_lag",
            "Accepted images that the group has not appended yet; NaN when not known",
            self.registry,
            clock,
        )
        self.generations = Gauge(
            "sigma_index_generations", "Generations whose model is loaded", registry=self.registry
        )
        self.load_failures = Counter(
            "sigma_index_load_failures", "Models that could not be loaded", registry=self.registry
        )

    def count_batch(self, size: int, *, model_s: float, other_s: float) -> None:
        """Count one batch and where its time went."""
        self.batch.observe(size)
        self.model_seconds.inc(model_s)
        self.other_seconds.inc(other_s)

    def count_passed_over(self) -> None:
        """Count one event of which not even a dead letter could be made."""
        self.rejected.labels(PASSED_OVER).inc()


@dataclass(frozen=True, slots=True)
class JobPlan:
    """When a job is due by its schedule, and how often it failed since it last did its work."""

    job: str
    failures: int
    """Runs that failed since the newest one that was done."""
    due_s: float | None
    """The run window that comes next or is due, in seconds since 1970; None while the job runs, and
    when it is off."""
    period_s: float | None
    """Seconds between run windows; None when it is off."""


@dataclass(frozen=True, slots=True)
class MonitoringSnapshot:
    """Drift, recall and jobs as the database has them at one moment."""

    effects: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(effect, its limit) of each monitor in the newest window"""
    levels: Sequence[str] = ()
    """of the open alarms"""
    recalls: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(ours, exact dense) R@10 of each cohort"""
    jobs: Sequence[JobTotal] = ()
    plans: Sequence[JobPlan] = ()
    refused: int = 0
    """candidates that their gate refused"""


class DriftMetrics(Collector):
    """The metrics of one scheduler: a snapshot of the database, so a new leader shows the same."""

    def __init__(self) -> None:
        self.snapshot = MonitoringSnapshot()
        self.registry = worker_registry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families as Prometheus reads them."""
        # Read once: another thread replaces the snapshot.
        snapshot = self.snapshot
        yield from _drift_families(snapshot)
        yield _alarm_family(snapshot)
        yield _recall_family(snapshot)
        yield from _job_families(snapshot)
        yield from _plan_families(snapshot)
        yield GaugeMetricFamily(
            "sigma_candidates_refused",
            "Candidates that their gate refused",
            value=snapshot.refused,
        )


def _drift_families(snapshot: MonitoringSnapshot) -> tuple[Metric, Metric]:
    effects = GaugeMetricFamily(
        "sigma_drift_effect",
        "Effect that a monitor saw in the newest window",
        labels=["monitor"],
    )
    limits = GaugeMetricFamily(
        "sigma_drift_limit", "Effect from which a monitor can alarm", labels=["monitor"]
    )
    for monitor, (effect, limit) in snapshot.effects.items():
        effects.add_metric([monitor], effect)
        limits.add_metric([monitor], limit)
    return effects, limits


def _alarm_family(snapshot: MonitoringSnapshot) -> Metric:
    alarms = GaugeMetricFamily("sigma_alarms_open", "Open alarms", labels=["level"])
    for level in ALARM_LEVELS:
        alarms.add_metric([level], snapshot.levels.count(level))
    return alarms


def _recall_family(snapshot: MonitoringSnapshot) -> Metric:
    recalls = GaugeMetricFamily(
        "sigma_recall_at_10",
        "Recall of known items by the age of their image",
        labels=["cohort", "kind"],
    )
    for cohort, (ours, exact) in snapshot.recalls.items():
        recalls.add_metric([cohort, "ours"], ours)
        recalls.add_metric([cohort, "exact"], exact)
    return recalls


def _job_families(snapshot: MonitoringSnapshot) -> tuple[Metric, ...]:
    runs = CounterMetricFamily(
        "sigma_job_runs", "Runs of scheduled jobs", labels=["job", "outcome"]
    )
    successes = GaugeMetricFamily(
        "sigma_job_last_success_timestamp_seconds",
        "When a job last did its work",
        labels=["job"],
    )
    failures = GaugeMetricFamily(
        "sigma_job_last_failure_timestamp_seconds",
        "When a job last failed",
        labels=["job"],
    )
    by_outcome = {"done": successes, "failed": failures}
    for total in snapshot.jobs:
        runs.add_metric([total.job, total.outcome], total.runs)
        if total.outcome in by_outcome and total.last_ended_s is not None:
            by_outcome[total.outcome].add_metric([total.job], total.last_ended_s)
    return runs, successes, failures


def _plan_families(snapshot: MonitoringSnapshot) -> tuple[Metric, ...]:
    failures = GaugeMetricFamily(
        "sigma_job_failures_in_a_row",
        "Runs of a job that failed since it last did its work",
        labels=["job"],
    )
    due = GaugeMetricFamily(
        "sigma_job_due_timestamp_seconds",
        "Run window of a job that comes next, or that is due and waits",
        labels=["job"],
    )
    period = GaugeMetricFamily(
        "sigma_job_period_seconds", "Seconds between run windows of a job", labels=["job"]
    )
    for plan in snapshot.plans:
        failures.add_metric([plan.job], plan.failures)
        if plan.due_s is not None:
            due.add_metric([plan.job], plan.due_s)
        if plan.period_s is not None:
            period.add_metric([plan.job], plan.period_s)
    return failures, due, period
