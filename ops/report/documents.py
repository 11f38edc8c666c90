"""The documents: what a recall report and a drift report say, before it becomes a page or JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from model.drift.monitors import REFERENCE_IMAGES, WINDOW_IMAGES
from ops.report.early_arrivals import EarlyArrivals, early_arrivals
from ops.report.formatting import format_duration, one_line
from ops.report.generation_comparison import GenerationComparison
from ops.report.known_examples import KnownExample, known_examples
from ops.report.recorded_runs import (
    YOUNG_COHORTS,
    DriftCheck,
    ProbeRun,
    drift_check,
    drift_checks,
    histogram_document,
    pooled_recall,
    probe_run,
    probe_runs,
    recall_document,
)
from ops.report.timeline import GenerationSwitch, Timeline, find_switches, read_timeline
from schemas.job_results import CohortRecall, skip_reason
from workers.repository.connection import Connection
from workers.repository.history import done_since, newest_done

# Age of the newest run of an hourly job above which a report asks whether a scheduler runs.
STALE_AFTER = timedelta(hours=3)

# Characters of a job's reason that a notice shows.
_MAX_REASON_LENGTH = 160


@dataclass(frozen=True, slots=True)
class RecallReport:
    """Recall over a time, and queries that two generations answer differently."""

    timeline: Timeline
    probes: tuple[ProbeRun, ...]
    """Those of the time, oldest first."""
    newest: ProbeRun | None
    """The newest probe, even when it is older than the time."""
    switches: tuple[GenerationSwitch, ...]
    comparison: GenerationComparison
    known: tuple[KnownExample, ...] = ()
    """Queries as a probe asks them, for readers to ask themselves."""

    @property
    def missing(self) -> list[tuple[str, str]]:
        """What could not be shown, each with the command that makes it."""
        return _missing(self.timeline, self.newest, "recall-probe", "recall probe")

    def pooled(self, cohorts: Sequence[str]) -> CohortRecall | None:
        """Some cohorts of the newest probe as one; None where it has no queries of them."""
        if self.newest is None:
            return None
        # A cohort without queries is not recorded.
        recalls = self.newest.result.cohorts
        return pooled_recall([recalls[name] for name in cohorts if name in recalls])

    def to_dict(self) -> dict[str, object]:
        """The JSON document of `sigma report recall`."""
        young = self.pooled(YOUNG_COHORTS)
        trained = self.pooled(("trained",))
        return {
            **_head("recall", self.timeline, self.missing),
            "newest": None if self.newest is None else self.newest.to_dict(),
            "headline": {
                "younger_than_a_day": None if young is None else recall_document(young),
                "trained": None if trained is None else recall_document(trained),
            },
            "probes": [probe.to_dict() for probe in self.probes],
            "switches": [switch.to_dict() for switch in self.switches],
            "examples": self.comparison.to_dict(),
            "known_items": [example.to_dict() for example in self.known],
            **self.timeline.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Drift over a time."""

    timeline: Timeline
    checks: tuple[DriftCheck, ...]
    """Those of the time, oldest first, without their histograms."""
    newest: DriftCheck | None
    """The newest check with its histograms, even when it is older than the time."""
    switches: tuple[GenerationSwitch, ...]
    early: EarlyArrivals | None = None
    """While the live generation has had no check; None without one."""

    @property
    def missing(self) -> list[tuple[str, str]]:
        """What could not be shown, each with the command that makes it."""
        return _missing(self.timeline, self.newest, "drift-report", "drift check")

    def to_dict(self) -> dict[str, object]:
        """The JSON document of `sigma report drift`."""
        histograms = {}
        if self.newest is not None:
            for level, shares in self.newest.result.histograms.items():
                histograms[level] = histogram_document(shares)
        return {
            **_head("drift", self.timeline, self.missing),
            "newest": None if self.newest is None else self.newest.to_dict(),
            "histograms": histograms,
            "early": None if self.early is None else self.early.to_dict(),
            "looks": [check.to_dict() for check in self.checks],
            "switches": [switch.to_dict() for switch in self.switches],
            **self.timeline.to_dict(),
        }


def recall_report(
    conn: Connection, comparison: GenerationComparison, now: datetime, days: int
) -> RecallReport:
    """Make the recall report of the last `days` days."""
    timeline = read_timeline(conn, now - timedelta(days=days), now)
    probes = probe_runs(done_since(conn, "recall-probe", timeline.since))
    newest = probes[-1] if probes else _newest_probe(conn)
    return RecallReport(
        timeline=timeline,
        probes=tuple(probes),
        newest=newest,
        switches=_switches(timeline, probes),
        comparison=comparison,
        known=() if timeline.live is None else known_examples(conn, timeline.live),
    )


def drift_report(conn: Connection, now: datetime, days: int) -> DriftReport:
    """Make the drift report of the last `days` days."""
    timeline = read_timeline(conn, now - timedelta(days=days), now)
    # Histograms are most of a row, and only the newest ones are shown.
    runs = done_since(conn, "drift-report", timeline.since, without=("histograms",))
    checks = drift_checks(runs)
    newest = _newest_drift_check(conn, checks)
    live = timeline.live
    early = None
    if live is not None and (newest is None or newest.generation != live.id):
        early = early_arrivals(conn, live, REFERENCE_IMAGES, WINDOW_IMAGES)
    return DriftReport(
        timeline=timeline,
        checks=tuple(checks),
        newest=newest,
        switches=_switches(timeline, checks),
        early=early,
    )


def _newest_probe(conn: Connection) -> ProbeRun | None:
    run = newest_done(conn, "recall-probe", "cohorts")
    return None if run is None else probe_run(run)


def _newest_drift_check(conn: Connection, checks: Sequence[DriftCheck]) -> DriftCheck | None:
    """The newest run with its histograms; without one, the newest of `checks`."""
    run = newest_done(conn, "drift-report", "monitors")
    if run is not None:
        return drift_check(run)
    return checks[-1] if checks else None


def _switches(
    timeline: Timeline, records: Sequence[ProbeRun | DriftCheck]
) -> tuple[GenerationSwitch, ...]:
    # What the runs recorded fills the gaps that rollbacks leave in the table.
    seen = [(record.at, record.generation) for record in records]
    return tuple(find_switches(timeline.generations, seen, timeline.since))


def _head(kind: str, timeline: Timeline, missing: Sequence[tuple[str, str]]) -> dict[str, object]:
    return {
        "report": kind,
        "made_at": timeline.until.isoformat(),
        "since": timeline.since.isoformat(),
        "generation": None if timeline.live is None else timeline.live.id,
        "missing": [{"what": what, "command": command} for what, command in missing],
    }


def _missing(
    timeline: Timeline,
    newest: ProbeRun | DriftCheck | None,
    job: str,
    words: str,
) -> list[tuple[str, str]]:
    if timeline.live is None:
        what = "No generation is live yet, so there is nothing to measure."
        return [(what, "sigma train --manifest F --promote")]
    done = [run for run in timeline.runs if run.job == job and run.outcome == "done"]
    # A run without work is done too: it proves that a scheduler is running.
    last = max((run.started_at for run in done), default=newest.at if newest else None)
    missing: list[tuple[str, str]] = []
    if newest is None:
        # The newest run says why there is nothing to show, if it said anything.
        reason = skip_reason(done[-1].figures) if done else None
        missing.append((_nothing_recorded(words, reason), f"sigma jobs run {job}"))
    if last is not None and timeline.until - last > STALE_AFTER:
        age = format_duration((timeline.until - last).total_seconds())
        what = f"{job} last ran {age} ago, though it is due every hour: is a scheduler running?"
        missing.append((what, "sigma jobs list"))
    return missing


def _nothing_recorded(words: str, reason: str | None) -> str:
    if reason is None:
        return (
            f"There has been no {words} yet. "
            "The scheduler makes one every hour; this makes one now:"
        )
    return (
        f"There is no {words} to show yet: {one_line(reason, _MAX_REASON_LENGTH)}. "
        "The scheduler tries every hour; this tries now:"
    )
