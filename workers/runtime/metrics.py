"""Metrics of the workers, in Prometheus form. Each worker has its own registry, so that tests and reloads do not collide."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.events import ImageAccepted, ImageDeleted, ImageRejected
from schemas.settings import Settings
from workers.repository.monitoring import JobTotal

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_AGE_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


def expose(settings: Settings, registry: CollectorRegistry) -> None:
    """Serve a registry on `SIGMA_METRICS_PORT`, if that is set. The query worker has its own address for it."""
    if settings.metrics_port is not None:
        start_http_server(settings.metrics_port, addr=settings.http_host, registry=registry)


class IntakeMetrics:
    """What the person on call watches of one intake worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.batch = Histogram(
            "sigma_intake_batch",
            "Events taken in together",
            buckets=_BATCHES,
            registry=self.registry,
        )
        self.verdicts = Counter(
            "sigma_intake_verdicts",
            "Events by what they came to",
            ["verdict"],
            registry=self.registry,
        )
        self.lag = Gauge(
            "sigma_intake_lag",
            "Arrivals and deletions that the group has not committed yet",
            registry=self.registry,
        )
        self.window = Gauge(
            "sigma_intake_last_minute",
            "Verdicts of the running minute, by faust's tables",
            ["verdict"],
            registry=self.registry,
        )

    def verdict(self, found: ImageAccepted | ImageRejected | ImageDeleted) -> None:
        """Count one verdict; rejections by their code."""
        name = {ImageAccepted: "accepted", ImageDeleted: "deleted"}.get(type(found)) or getattr(
            found, "code", "rejected"
        )
        self.verdicts.labels(name).inc()

    def counted(self, verdict: str, count: int) -> None:
        """Take over a windowed count."""
        self.window.labels(verdict).set(count)


class IndexMetrics:
    """What the person on call watches of one index worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.batch = Histogram(
            "sigma_index_batch",
            "Images assigned together",
            buckets=_BATCHES,
            registry=self.registry,
        )
        self.age = Histogram(
            "sigma_index_age_seconds",
            "Seconds from arrival to appended",
            buckets=_AGE_S,
            registry=self.registry,
        )
        self.model = Counter(
            "sigma_index_model_seconds", "Seconds inside the model", registry=self.registry
        )
        self.other = Counter(
            "sigma_index_other_seconds",
            "Seconds of batches outside the model",
            registry=self.registry,
        )
        self.lag = Gauge(
            "sigma_index_lag",
            "Accepted images that the group has not appended yet",
            registry=self.registry,
        )
        self.generations = Gauge(
            "sigma_index_generations", "Generations whose model is loaded", registry=self.registry
        )
        self.load_failures = Counter(
            "sigma_index_load_failures", "Models that could not be loaded", registry=self.registry
        )

    def done(self, size: int, *, model_s: float, other_s: float) -> None:
        """Count one batch and where its time went."""
        self.batch.observe(size)
        self.model.inc(model_s)
        self.other.inc(other_s)


class QueryMetrics:
    """What the person on call watches of one query worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queries = Counter("sigma_queries", "Queries answered", registry=self.registry)
        self.failures = Counter(
            "sigma_query_failures", "Queries that failed", registry=self.registry
        )
        self.dropped = Counter(
            "sigma_reports_dropped",
            "Reports dropped because the database was away too long",
            registry=self.registry,
        )
        self.latency = Histogram(
            "sigma_query_seconds",
            "Seconds from request to answer",
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.batch = Histogram(
            "sigma_query_batch",
            "Queries decoded together",
            buckets=(1, 2, 4, 8, 16),
            registry=self.registry,
        )
        self.candidates = Histogram(
            "sigma_query_candidates",
            "Images scored for one query",
            buckets=(10, 30, 100, 300, 1000, 3000),
            registry=self.registry,
        )
        self.freshness = Histogram(
            "sigma_searchable_seconds",
            "Seconds from appended to searchable",
            buckets=_AGE_S,
            registry=self.registry,
        )
        self.images = Gauge("sigma_trie_images", "Images that can be found", registry=self.registry)
        self.leaves = Gauge("sigma_trie_leaves", "Occupied leaves", registry=self.registry)
        self.generation = Gauge(
            "sigma_generation", "Generation that answers", registry=self.registry
        )
        self.held = Gauge(
            "sigma_generations_held",
            "Generations in memory or on their way there",
            registry=self.registry,
        )
        self.switches = Counter(
            "sigma_switches",
            "Times that another generation began to answer",
            registry=self.registry,
        )
        self.load_failures = Counter(
            "sigma_candidate_load_failures",
            "Generations that could not be loaded",
            registry=self.registry,
        )
        self.shadow_queries = Counter(
            "sigma_shadow_queries",
            "Live queries that a candidate answered too",
            registry=self.registry,
        )
        self.shadow_dropped = Counter(
            "sigma_shadow_dropped",
            "Comparisons dropped for want of an idle moment",
            registry=self.registry,
        )
        self.shadow_failures = Counter(
            "sigma_shadow_failures", "Comparisons that failed", registry=self.registry
        )


@dataclass(frozen=True, slots=True)
class MonitoringSnapshot:
    """What the database says of drift, recall and jobs."""

    effects: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(effect, its limit) of each monitor in the newest window"""
    levels: Sequence[str] = ()
    """of the open alarms"""
    recalls: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(ours, exact dense) R@10 of each cohort"""
    jobs: Sequence[JobTotal] = ()
    refused: int = 0
    """candidates that their gate refused"""


class DriftMetrics(Collector):
    """What the person on call watches of the scheduler. Shows `seen`, which comes from the database: a new leader shows the same."""

    def __init__(self) -> None:
        self.seen = MonitoringSnapshot()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The families as Prometheus reads them."""
        seen = self.seen
        effect = GaugeMetricFamily(
            "sigma_drift_effect",
            "Effect that a monitor saw in the newest window",
            labels=["monitor"],
        )
        limit = GaugeMetricFamily(
            "sigma_drift_limit", "Effect from which a monitor can alarm", labels=["monitor"]
        )
        for monitor, (found, allowed) in seen.effects.items():
            effect.add_metric([monitor], found)
            limit.add_metric([monitor], allowed)
        alarms = GaugeMetricFamily("sigma_alarms_open", "Open alarms", labels=["level"])
        for level in ("ticket", "page"):
            alarms.add_metric([level], sum(one == level for one in seen.levels))
        recall = GaugeMetricFamily(
            "sigma_recall_at_10",
            "Recall of known items by the age of their image",
            labels=["cohort", "kind"],
        )
        for cohort, pair in seen.recalls.items():
            for kind, found in zip(("ours", "exact"), pair, strict=True):
                recall.add_metric([cohort, kind], found)
        runs = CounterMetricFamily(
            "sigma_job_runs", "Runs of scheduled jobs", labels=["job", "outcome"]
        )
        success = GaugeMetricFamily(
            "sigma_job_last_success_timestamp_seconds",
            "When a job last did its work",
            labels=["job"],
        )
        for total in seen.jobs:
            runs.add_metric([total.job, total.outcome], total.runs)
            if total.last_done_s is not None:
                success.add_metric([total.job], total.last_done_s)
        refused = GaugeMetricFamily(
            "sigma_candidates_refused", "Candidates that their gate refused", value=seen.refused
        )
        yield from (effect, limit, alarms, recall, runs, success, refused)
