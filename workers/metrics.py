"""Metrics of a query worker, in Prometheus form. Each worker has its own registry, so that tests and reloads do not collide."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """What the person on call watches of one query worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queries = Counter("sigma_queries", "Queries answered", registry=self.registry)
        self.failures = Counter("sigma_query_failures", "Queries that failed", registry=self.registry)
        self.dropped = Counter("sigma_reports_dropped", "Reports dropped because the database was away too long", registry=self.registry)
        self.latency = Histogram("sigma_query_seconds", "Seconds from request to answer", buckets=_LATENCY_S, registry=self.registry)
        self.batch = Histogram("sigma_query_batch", "Queries decoded together", buckets=(1, 2, 4, 8, 16), registry=self.registry)
        self.candidates = Histogram(
            "sigma_query_candidates", "Images scored for one query", buckets=(10, 30, 100, 300, 1000, 3000), registry=self.registry
        )
        self.images = Gauge("sigma_trie_images", "Images that can be found", registry=self.registry)
        self.leaves = Gauge("sigma_trie_leaves", "Occupied leaves", registry=self.registry)
        self.generation = Gauge("sigma_generation", "Generation that answers", registry=self.registry)
