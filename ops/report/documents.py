"""The documents: all that a recall report and a drift report say, before it becomes a page, JSON or a few lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ops.report.examples import Comparison
from ops.report.figures import YOUNG, Look, Probe, Recall, look_of, pooled, probe_of
from ops.report.timeline import Switch, Timeline, switches, timeline
from ops.report.words import plain, span
from workers.repository.connection import Connection
from workers.repository.history import done_since, newest_done

STALE = timedelta(hours=3)
"""Age of the newest run of an hourly job above which a report says that the scheduler may be gone."""


@dataclass(frozen=True, slots=True)
class RecallReport:
    """Recall over a time: probes ascending, `newest` whenever that was, and queries that two generations answer differently."""

    timeline: Timeline
    probes: tuple[Probe, ...]
    newest: Probe | None
    switches: tuple[Switch, ...]
    comparison: Comparison

    @property
    def missing(self) -> list[tuple[str, str]]:
        """What could not be shown, and the command that makes it."""
        return _missing(
            self.timeline, self.newest.at if self.newest else None, "recall-probe", "recall probe"
        )

    def group(self, cohorts: Sequence[str]) -> Recall | None:
        """Some cohorts of the newest probe as one."""
        return (
            None
            if self.newest is None
            else pooled(
                [self.newest.cohorts[name] for name in cohorts if name in self.newest.cohorts]
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `sigma report recall`."""
        young, trained = self.group(YOUNG), self.group(("trained",))
        return {
            **_head("recall", self.timeline, self.missing),
            "newest": self.newest.to_dict() if self.newest else None,
            "headline": {
                "younger_than_a_day": young.to_dict() if young else None,
                "trained": trained.to_dict() if trained else None,
            },
            "probes": [one.to_dict() for one in self.probes],
            "switches": [
                {"at": one.at.isoformat(), "generation": one.generation} for one in self.switches
            ],
            "examples": self.comparison.to_dict(),
            **self.timeline.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Drift over a time: looks ascending, and the newest one with its histograms, whenever that was."""

    timeline: Timeline
    looks: tuple[Look, ...]
    newest: Look | None
    switches: tuple[Switch, ...]

    @property
    def missing(self) -> list[tuple[str, str]]:
        """What could not be shown, and the command that makes it."""
        return _missing(
            self.timeline, self.newest.at if self.newest else None, "drift-report", "look for drift"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `sigma report drift`."""
        return {
            **_head("drift", self.timeline, self.missing),
            "newest": self.newest.to_dict() if self.newest else None,
            "histograms": {name: one.to_dict() for name, one in self.newest.histograms.items()}
            if self.newest
            else {},
            "looks": [one.to_dict() for one in self.looks],
            "switches": [
                {"at": one.at.isoformat(), "generation": one.generation} for one in self.switches
            ],
            **self.timeline.to_dict(),
        }


def recall_report(
    conn: Connection, comparison: Comparison, now: datetime, days: int
) -> RecallReport:
    """The recall report of the last `days` days."""
    happened = timeline(conn, now - timedelta(days=days), now)
    probes = [
        one
        for one in map(probe_of, done_since(conn, "recall-probe", happened.since))
        if one is not None
    ]
    last = None if probes else newest_done(conn, "recall-probe", "cohorts")
    newest = probes[-1] if probes else probe_of(last) if last else None
    seen = [(one.at, one.generation) for one in probes]
    return RecallReport(
        happened,
        tuple(probes),
        newest,
        tuple(switches(happened.generations, seen, happened.since)),
        comparison,
    )


def drift_report(conn: Connection, now: datetime, days: int) -> DriftReport:
    """The drift report of the last `days` days."""
    happened = timeline(conn, now - timedelta(days=days), now)
    runs = done_since(conn, "drift-report", happened.since, without=("histograms",))
    looks = [one for one in map(look_of, runs) if one is not None]
    last = newest_done(conn, "drift-report", "monitors")
    newest = look_of(last) if last else looks[-1] if looks else None
    seen = [(one.at, one.generation) for one in looks]
    return DriftReport(
        happened, tuple(looks), newest, tuple(switches(happened.generations, seen, happened.since))
    )


def _head(kind: str, happened: Timeline, missing: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "report": kind,
        "made_at": happened.until.isoformat(),
        "since": happened.since.isoformat(),
        "generation": happened.live.id if happened.live else None,
        "missing": [{"what": what, "command": command} for what, command in missing],
    }


def _missing(
    happened: Timeline, newest: datetime | None, job: str, words: str
) -> list[tuple[str, str]]:
    if happened.live is None:
        return [
            (
                "No generation is live yet, so there is nothing to measure.",
                "sigma train --manifest F --promote",
            )
        ]
    done = [one for one in happened.runs if one.job == job and one.outcome == "done"]
    why = plain(done[-1].figures.get("why") or "", 160) if done else ""
    found = []
    if newest is None and why:
        found.append(
            (
                f"There is no {words} to show yet: {why}. The scheduler tries every hour; this tries now:",
                f"sigma jobs run {job}",
            )
        )
    elif newest is None:
        found.append(
            (
                f"There has been no {words} yet. The scheduler makes one every hour; this makes one now:",
                f"sigma jobs run {job}",
            )
        )
    last = max([one.started_at for one in done], default=newest)
    if last is not None and happened.until - last > STALE:
        age = span((happened.until - last).total_seconds())
        found.append(
            (
                f"{job} ran {age} ago, though it is due every hour: is a scheduler running?",
                "sigma jobs list",
            )
        )
    return found
