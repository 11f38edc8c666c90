"""The drift watcher: keeps a scheduler's Prometheus metrics at what the database says."""

import threading
from collections.abc import Callable

from ops.jobs import drift_report
from schemas.job_results import DriftReportResult, RecallProbeResult
from workers.repository import monitoring
from workers.repository.alarms import open_alarms
from workers.repository.connection import Connection
from workers.repository.generations import Generation, generations, live
from workers.runtime.metrics import DriftMetrics, MonitoringSnapshot
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
    return MonitoringSnapshot(
        effects=_effects(conn, live(conn)),
        levels=tuple(alarm.level for alarm in open_alarms(conn)),
        recalls=_recalls(conn),
        jobs=tuple(monitoring.job_totals(conn)),
        refused=sum(map(_is_refused, generations(conn))),
    )


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


def _is_refused(generation: Generation) -> bool:
    verdict = generation.config.gate
    return generation.state == "shadow" and verdict is not None and not verdict.passed
