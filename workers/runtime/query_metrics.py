"""Metrics of a query worker, in Prometheus form."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from prometheus_client import Counter, Gauge, Histogram

from workers.runtime.metrics import AGE_S, worker_registry

# Buckets of a query's seconds: finest around the goal of 50 to 100 ms.
_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

# Buckets of queries decoded together; `workers.query.server` takes at most 16.
_QUERY_BATCH_SIZES = (1, 2, 4, 8, 16)

# Buckets of images scored for one query.
_CANDIDATES = (10, 30, 100, 300, 1000, 3000)

# Answers and refusals of a query by HTTP status and cause. All are exported from the start: a
# series that begins with the first failure does not show that failure as an increase.
RESPONSES = (
    (200, "answered"),
    (400, "invalid"),
    (400, "not-http"),
    (401, "no-key"),
    (401, "unknown-key"),
    (403, "forbidden"),
    (404, "invalid"),
    (405, "invalid"),
    (408, "invalid"),
    (409, "invalid"),
    (410, "invalid"),
    (413, "invalid"),
    (415, "invalid"),
    (421, "host"),
    (422, "invalid"),
    (429, "overloaded"),
    (429, "rate-limited"),
    (499, "client-left"),
    (500, "failed"),
    (503, "connections"),
    (503, "timeout"),
    (503, "unavailable"),
)

# Why a CUDA graph did not answer a search: `EagerReason` of `model.decoding.graphs`, which a query
# worker cannot import before it listens.
EAGER_REASONS = ("prompts", "length", "beams", "capture")

# What can come of a request with a known key.
KEY_OUTCOMES = ("admitted", "forbidden", "rate-limited")


class QueryMetrics:
    """The metrics of one query worker."""

    def __init__(self) -> None:
        self.registry = worker_registry()
        self._make_answers()
        self._make_searches()
        self._make_generations()

    def _make_answers(self) -> None:
        """What clients see."""
        self.queries = self._counter("sigma_queries", "Queries answered")
        self.failures = self._counter("sigma_query_failures", "Queries that failed")
        self.empty = self._counter(
            "sigma_query_empty", "Answers without an image although there are some"
        )
        self.responses = self._labelled(
            "sigma_query_responses",
            "Answers and refusals by HTTP status and cause",
            "status",
            "cause",
        )
        for status, cause in RESPONSES:
            self.responses.labels(str(status), cause)
        self.ready = self._gauge(
            "sigma_query_ready", "1 when queries are answered, as /readyz says"
        )
        self.key_requests = self._labelled(
            "sigma_key_requests",
            "Requests with a known key, by the key's name and what came of them",
            "key",
            "outcome",
        )
        self.latency = self._histogram(
            "sigma_query_seconds", "Seconds from request to answer", _LATENCY_S
        )
        self.dropped = self._counter("sigma_reports_dropped", "Reports that could not be written")

    def _make_searches(self) -> None:
        """What decoding does."""
        self.waiting = self._gauge("sigma_query_waiting", "Queries that wait to be decoded")
        self.batch = self._histogram(
            "sigma_query_batch", "Queries decoded together", _QUERY_BATCH_SIZES
        )
        self.eager = self._labelled(
            "sigma_query_eager_searches",
            "Searches of queries on a GPU that no CUDA graph answered, by what did not fit one",
            "reason",
        )
        for reason in EAGER_REASONS:
            self.eager.labels(reason)
        self.candidates = self._histogram(
            "sigma_query_candidates", "Images scored for one query", _CANDIDATES
        )

    def _make_generations(self) -> None:
        """What is in memory, and how it is compared."""
        self.freshness = self._histogram(
            "sigma_searchable_seconds", "Seconds from appended to searchable", AGE_S
        )
        self.images = self._gauge("sigma_trie_images", "Images that can be found")
        self.leaves = self._gauge("sigma_trie_leaves", "Occupied leaves")
        self.generation = self._gauge("sigma_generation", "Generation that answers")
        self.resident = self._gauge(
            "sigma_generations_held", "Generations in memory or on their way there"
        )
        self.switches = self._counter(
            "sigma_switches", "Times that another generation began to answer"
        )
        self.load_failures = self._counter(
            "sigma_candidate_load_failures", "Generations that could not be loaded"
        )
        self.shadow_queries = self._counter(
            "sigma_shadow_queries", "Live queries that a candidate answered too"
        )
        self.shadow_dropped = self._counter(
            "sigma_shadow_dropped", "Comparisons dropped for want of an idle moment"
        )
        self.shadow_failures = self._counter("sigma_shadow_failures", "Comparisons that failed")

    def count_response(self, status: int, cause: str) -> None:
        """Count one answer or refusal. The cause is one of a small fixed set."""
        self.responses.labels(str(status), cause).inc()

    def count_key_request(self, key: str, outcome: str) -> None:
        """Count a request by its key's name; the outcome is one of `KEY_OUTCOMES`."""
        self.key_requests.labels(key, outcome).inc()

    def count_eager(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Count the searches that an engine's totals have grown by; reasons as `EAGER_REASONS`."""
        for reason, total in after.items():
            self.eager.labels(reason).inc(total - before.get(reason, 0))

    def forget_key(self, key: str) -> None:
        """Drop the series of a key that was revoked: there would be ever more of them."""
        for outcome in KEY_OUTCOMES:
            # Not every key has met every outcome.
            with suppress(KeyError):
                self.key_requests.remove(key, outcome)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _labelled(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)
