"""The drift watcher: keeps a scheduler's Prometheus metrics at what the database says."""

import threading
from collections.abc import Callable

from ops.jobs import drift_report
from ops.jobs.registry import JOBS
from schemas.job_results import DriftReportResult, RecallProbeResult
from workers.generations.retiring import refused_by_gate
from workers.repository import monitoring
from workers.repository.alarms import open_alarms
from workers.repository.connection import Connection
from workers.repository.generations import Generation, generations, live
from workers.repository.job_runs import JobState, job_state
from workers.runtime.metrics import DriftMetrics, JobPlan, MonitoringSnapshot
from workers.runtime.process import keep_running
from workers.runtime.vital_thread import VitalThread

RECALL_JOB = "recall-probe"
"""Name of the job whose newest recalls are shown."""

_INTERVAL_S = 15.0
"""Seconds between two looks: how much older than the database the metrics may be."""

_CLOSE_S = 5.0
"""Seconds that closing waits for a look under way."""


class DriftWatcher:
    """A thread that refreshes the metrics, whichever scheduler leads: all of them show the same."""

    def __init__(self, connect: Callable[[str], Connection], metrics: DriftMetrics) -> None:
        """`connect` opens a connection under the given name."""
        self._connect = connect
        self._metrics = metrics
        self._stop = threading.Event()
        self._thread = VitalThread("drift metrics", self._run)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        keep_running(self._session, self._stop, "drift metrics")

    def _session(self, stop: threading.Event) -> None:
        with self._connect("drift metrics") as conn:
            while not stop.is_set():
                # Replaced as a whole, because Prometheus's thread reads it meanwhile.
                self._metrics.snapshot = monitoring_snapshot(conn)
                stop.wait(_INTERVAL_S)


def monitoring_snapshot(conn: Connection) -> MonitoringSnapshot:
    """What the metrics show: the newest window and probe, open alarms, and how the jobs do."""
    serving = live(conn)
    return MonitoringSnapshot(
        effects=_effects(conn, serving),
        levels=tuple(alarm.level for alarm in open_alarms(conn)),
        recalls=_recalls(conn),
        jobs=tuple(monitoring.job_totals(conn)),
        plans=_plans(conn),
        refused=sum(_is_refused(candidate, serving) for candidate in generations(conn)),
    )


def job_plan(name: str, state: JobState, failures: int) -> JobPlan:
    """When a job is due by the schedule that the leading scheduler follows."""
    if state.schedule is None or state.handled_until is None:
        return JobPlan(name, failures, None, None)
    due = state.schedule.next_window(state.handled_until)
    if due is None:
        return JobPlan(name, failures, None, None)
    following = state.schedule.next_window(due)
    period = None if following is None else float(following - due)
    return JobPlan(name, failures, None if state.running else float(due), period)


def _plans(conn: Connection) -> tuple[JobPlan, ...]:
    failures = monitoring.failures_in_a_row(conn)
    return tuple(job_plan(name, job_state(conn, name), failures.get(name, 0)) for name in JOBS)


def _effects(conn: Connection, generation: Generation | None) -> dict[str, tuple[float, float]]:
    """(effect, limit) of each monitor in the newest window of the live generation."""
    if generation is None:
        return {}
    effects = {}
    for figures in monitoring.examined_windows(conn, drift_report.JOB, generation.id):
        window = DriftReportResult.from_json(figures)
        for reading in () if window is None else window.monitors:
            effects[reading.monitor] = (reading.effect, reading.effect_limit)
    return effects


def _recalls(conn: Connection) -> dict[str, tuple[float, float]]:
    """R@10 of (our search, exact search) by cohort, of the newest probe."""
    probe = RecallProbeResult.from_json(monitoring.newest_figures(conn, RECALL_JOB))
    # No live generation, no captions, or a row of a version that recorded something else.
    if probe is None:
        return {}
    recalls = {}
    for name, cohort in probe.cohorts.items():
        recalls[name] = (cohort.ours["R@10"], cohort.exact["R@10"])
    return recalls


def _is_refused(candidate: Generation, serving: Generation | None) -> bool:
    # One that was compared with another generation than serves now waits for its gate, not for a
    # person.
    return candidate.state == "shadow" and refused_by_gate(candidate, serving)
