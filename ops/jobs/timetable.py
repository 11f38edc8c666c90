"""The timetable: when each job is due after the settings had their say, where each stands, and what is wrong with it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ops.jobs.registry import JOBS, Job
from schemas.errors import UsageError
from schemas.schedules import Schedule
from schemas.settings import Settings
from workers.repository.connection import Connection
from workers.repository.job_runs import JobRun, JobState, job_state

OVERDUE_S = 900
"""Seconds that a window may wait before status raises an alarm: a leader that dies is replaced within 15."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A job, its schedule, and the alarms that call for it."""

    job: Job
    schedule: Schedule
    on_alarm: frozenset[str]


def plans(settings: Settings, jobs: Mapping[str, Job] = JOBS) -> dict[str, Plan]:
    """Every job's plan. Who switches a job off by setting wants no run by alarm either. `UsageError` for a job that there is not."""
    said = dict(settings.schedules)
    unknown = sorted(said.keys() - jobs.keys())
    if unknown:
        raise UsageError(
            f"SIGMA_SCHEDULE names the job {unknown[0]!r}, known are {', '.join(jobs)}; correct it"
        )
    return {name: _plan(job, said.get(name)) for name, job in jobs.items()}


def timetable(conn: Connection, settings: Settings) -> list[dict[str, Any]]:
    """Every job as JSON: when it is due, what calls for it, and its last result."""
    return [_entry(plan, job_state(conn, name)) for name, plan in plans(settings).items()]


def run_entry(found: JobRun) -> dict[str, Any]:
    """A run as JSON."""
    return {
        "job": found.job,
        "window": found.run_window,
        "attempt": found.attempt,
        "outcome": found.outcome,
        "figures": found.figures,
        "started_at": found.started_at.isoformat(),
        "ended_at": found.ended_at.isoformat() if found.ended_at else None,
        "cause": found.cause,
    }


def job_alarms(
    conn: Connection, jobs: Mapping[str, Job] = JOBS, *, now: int | None = None
) -> list[str]:
    """What the person on call should know of the jobs: those that failed, and those that nobody runs."""
    moment = int(time.time()) if now is None else now
    found = ((name, job_state(conn, name)) for name in jobs)
    return [alarm for name, state in found for alarm in _alarms(name, state, moment)]


def _plan(job: Job, said: Schedule | None) -> Plan:
    if said is None:
        return Plan(job, job.schedule, job.on_alarm)
    return Plan(job, said, frozenset() if said.off else job.on_alarm)


def _entry(plan: Plan, state: JobState) -> dict[str, Any]:
    """The leader's schedule if there was a leader, for that is the one that holds; `wanted` is this process's."""
    schedule, last = state.schedule or plan.schedule, state.last
    return {
        "name": plan.job.name,
        "about": plan.job.about,
        "every_s": schedule.period_s,
        "schedule": schedule.text,
        "wanted": plan.schedule.text,
        "on_alarm": sorted(plan.on_alarm),
        "cooldown_s": plan.job.cooldown_s,
        "again_s": plan.job.again_s,
        "next": _iso(_next(schedule, state)),
        "running": state.running,
        "last": None
        if last is None
        else {
            "outcome": last.outcome,
            "ended_at": _iso_of(last.ended_at),
            "error": last.figures.get("error"),
        },
    }


def _next(schedule: Schedule, state: JobState) -> int | None:
    return schedule.next_window(
        int(time.time()) if state.handled_until is None else state.handled_until
    )


def _alarms(name: str, state: JobState, now: int) -> Sequence[str]:
    due = (
        None
        if state.schedule is None or state.handled_until is None
        else state.schedule.next_window(state.handled_until)
    )
    found = []
    if state.last is not None and state.last.outcome == "failed":
        then = (
            f"it runs again at {_said(max(due, now))}"
            if due is not None
            else "nothing runs it again by itself"
        )
        reason = state.last.figures.get("error", "no reason was kept")
        found.append(
            f"job {name} failed at {_said(state.last.ended_at)}: {reason}; {then}, or now: sigma jobs run {name}"
        )
    if state.abandoned:
        found.append(
            f"job {name} was left unfinished by a process that died: see that a scheduler runs (sigma up)"
        )
    elif due is not None and not state.running and now - due > OVERDUE_S:
        found.append(
            f"job {name} is due since {_said(due)} and nobody runs it: see that a scheduler runs (sigma up)"
        )
    return found


def _said(moment: int | datetime | None) -> str:
    when = datetime.fromtimestamp(moment, UTC) if isinstance(moment, int) else moment
    return "an unknown time" if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _iso(moment: int | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()


def _iso_of(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
