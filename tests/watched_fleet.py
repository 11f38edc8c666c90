"""A fleet of workers as Prometheus sees it: real collectors, scraped step by step.

promtool evaluates the alert rules over what was scraped, so names and labels in the rules are those
of the code.
"""

import math
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ops.jobs.drift_watcher import job_plan
from schemas.events import ImageAccepted
from schemas.schedules import Schedule
from tests.services.servers import ToolMissingError
from workers.repository.job_runs import JobState
from workers.repository.monitoring import JobTotal
from workers.runtime.metrics import (
    DriftMetrics,
    IndexMetrics,
    IntakeMetrics,
    JobPlan,
    MonitoringSnapshot,
)
from workers.runtime.query_metrics import QueryMetrics

DEPLOY = Path(__file__).resolve().parents[1] / "ops" / "deploy" / "files"

RULE_FILE = DEPLOY / "alerts.yml"

ACCEPTED = ImageAccepted(
    "an image", "file:///a.png", "store:a", "0" * 64, 8, 8, datetime(2026, 1, 1, tzinfo=UTC)
)


def promtool() -> str:
    """Where promtool is; `ToolMissingError` when it is not installed."""
    found = shutil.which("promtool")
    if found is None:
        raise ToolMissingError("promtool is needed to test the alert rules: install prometheus")
    return found


@dataclass(frozen=True)
class Expectation:
    """Which alerts must fire at a moment, and no others."""

    minute: int
    alerts: frozenset[str]


class WatchedFleet:
    """One intake, one index and two query workers and a scheduler; time passes when it is told to.

    Every minute each of them works and is scraped.
    """

    def __init__(self) -> None:
        self.minute = 0
        self.intake = IntakeMetrics(self.clock)
        self.index = IndexMetrics(self.clock)
        self.query = QueryMetrics()
        self.other_query = QueryMetrics()
        self.scheduler = DriftMetrics()
        self.targets: dict[str, CollectorRegistry | None] = {
            "intake:9870": self.intake.registry,
            "index:9870": self.index.registry,
            "query:8631": self.query.registry,
            "query-2:8631": self.other_query.registry,
            "scheduler:9870": self.scheduler.registry,
        }
        """By instance; None when it does not answer. Prometheus forgets one that is not here."""
        self.queries = 100
        """Answered by each query worker in a minute."""
        self.arrivals = 20
        self._starts: dict[str, float] = defaultdict(float)
        self._scrapes: dict[str, dict[int, float]] = defaultdict(dict)
        self._expected: list[Expectation] = []
        self._names = _names_in_rules()
        self.scheduler.snapshot = MonitoringSnapshot(
            recalls={"hour": (0.8, 0.82), "day": (0.8, 0.82), "older": (0.8, 0.82)}
        )
        for metrics in (self.query, self.other_query):
            self.serve(metrics)

    def clock(self) -> float:
        """The seconds of this fleet's time."""
        return self.minute * 60.0

    def serve(self, metrics: QueryMetrics) -> None:
        """Let a query worker have a generation and answer."""
        metrics.generation.set(1)
        metrics.ready.set(1)

    def run(self, minutes: int, each_minute: Callable[[], None] = lambda: None) -> None:
        """Let time pass: everybody works, then `each_minute` happens, then Prometheus scrapes."""
        for _ in range(minutes):
            self.minute += 1
            self._work()
            each_minute()
            self._scrape()

    def repeat(self, minutes: int) -> None:
        """Let time pass in which nothing changes after the first minute: cheap, for hours."""
        self.run(1)
        minutes -= 1
        for scraped in self._scrapes.values():
            if self.minute in scraped:
                for minute in range(self.minute + 1, self.minute + minutes + 1):
                    scraped[minute] = scraped[self.minute]
        self.minute += minutes

    def expect(self, *alerts: str) -> None:
        """These alerts fire now, and no others."""
        self._expected.append(Expectation(self.minute, frozenset(alerts)))

    def restart(self, instance: str, registry: CollectorRegistry) -> None:
        """Let a new process take the place of a worker."""
        self.targets[instance] = registry
        self._starts[instance] = self.clock()

    def last_runs(self, **last_ended_s: float) -> tuple[JobTotal, ...]:
        """What the database says of jobs that were done at these seconds."""
        return tuple(
            JobTotal(name.replace("_", "-"), "done", 9, ended)
            for name, ended in last_ended_s.items()
        )

    def plan(
        self, job: str, schedule: str, handled_until: int, failures: int = 0, *, running: bool
    ) -> JobPlan:
        """When a job is due, by the code that tells it."""
        state = JobState(Schedule(schedule), handled_until, running, abandoned=False, last=None)
        return job_plan(job, state, failures)

    def show(self, **changes: Any) -> None:
        """Let the scheduler see something else in the database."""
        self.scheduler.snapshot = replace(self.scheduler.snapshot, **changes)

    def check(self, folder: Path) -> None:
        """Let promtool evaluate the rules over all scrapes."""
        minutes = range(self.minute + 1)
        test = {
            "interval": "1m",
            "input_series": [
                {"series": series, "values": " ".join(_values(scraped, minutes))}
                for series, scraped in sorted(self._scrapes.items())
            ],
            "promql_expr_test": [_expression_test(expected) for expected in self._expected],
        }
        document = {
            "rule_files": [str(RULE_FILE)],
            "evaluation_interval": "1m",
            "tests": [test],
        }
        file = folder / "rules-test.yml"
        file.write_text(yaml.safe_dump(document, width=1 << 20), encoding="utf-8")
        done = subprocess.run(
            [promtool(), "test", "rules", str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _work(self) -> None:
        for _ in range(self.arrivals):
            self.intake.count_verdict(ACCEPTED)
            self.index.age.observe(0.4)
        self.intake.lag.set(2)
        self.index.lag.set(2)
        for metrics in (self.query, self.other_query):
            for _ in range(self.queries):
                metrics.queries.inc()
                metrics.latency.observe(0.04)
                metrics.count_response(200, "answered")

    def _scrape(self) -> None:
        for instance, registry in self.targets.items():
            target = {"instance": instance, "job": "sigma"}
            self._keep("up", target, float(registry is not None))
            if registry is None:
                continue
            text = generate_latest(registry).decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    value = float(sample.value)
                    if sample.name == "process_start_time_seconds":
                        # Here all workers are one process.
                        value = self._starts[instance]
                    # Labels of ours win, as `honor_labels` says.
                    self._keep(sample.name, target | sample.labels, value)

    def _keep(self, name: str, labels: dict[str, str], value: float) -> None:
        if name in self._names:
            pairs = ",".join(f'{label}="{text}"' for label, text in sorted(labels.items()))
            self._scrapes[f"{name}{{{pairs}}}"][self.minute] = value


def rules() -> list[dict[str, Any]]:
    """Every alerting rule."""
    document = yaml.safe_load(RULE_FILE.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def _names_in_rules() -> Set[str]:
    """The metrics that the rules read: others would only make promtool slow."""
    words: set[str] = set()
    for rule in rules():
        words |= set(re.findall(r"[a-z_0-9]+", rule["expr"]))
    return words


def _values(scraped: dict[int, float], minutes: range) -> Iterator[str]:
    """The values of one series; marked as stale where a scrape did not bring it any more."""
    before = False
    for minute in minutes:
        value = scraped.get(minute)
        if value is not None:
            yield "NaN" if math.isnan(value) else repr(value)
        else:
            yield "stale" if before else "_"
        before = value is not None


def _expression_test(expected: Expectation) -> dict[str, Any]:
    samples = [
        {"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected.alerts)
    ]
    return {
        # One alert may fire for several instances or jobs.
        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{expected.minute}m",
        "exp_samples": samples,
    }
