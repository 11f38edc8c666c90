"""The timetable: when each job is due by the settings, and what is wrong with it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ops.jobs.registry import JOBS, Job
from schemas.errors import UsageError
from schemas.job_results import JobFailure
from schemas.schedules import Schedule
from schemas.settings import Settings
from workers.repository.alarms import Alarm
from workers.repository.connection import Connection
from workers.repository.job_runs import AlarmTriggers, JobRun, JobState, job_state

OVERDUE_S = 900
"""Seconds that a run window may wait before status raises an alarm: a leader that dies is replaced
within 15."""


@dataclass(frozen=True, slots=True)
class JobSchedule:
    """A job with its schedule and the alarms that start it, after the settings were applied."""

    job: Job
    schedule: Schedule
    on_alarm: frozenset[str]

    def triggers(self, open_alarms: Sequence[Alarm]) -> AlarmTriggers:
        """The open alarms that start the job, and how soon after another run they may."""
        ours = []
        for alarm in open_alarms:
            if alarm.level in self.on_alarm or alarm.monitor in self.on_alarm:
                ours.append(alarm.id)
        # Answers given before alarms were switched off get no second run.
        again_s = self.job.again_s if self.on_alarm else None
        return AlarmTriggers(ours, self.job.cooldown_s, again_s)


@dataclass(frozen=True, slots=True)
class TimetableEntry:
    """What a person is told of one job."""

    wanted: JobSchedule
    """By the settings of this process."""
    schedule: Schedule
    """By which the leading scheduler runs the job; as wanted where none has led yet."""
    next_at: datetime | None
    """The next run window; None when the job is off."""
    running: bool
    last: JobRun | None
    """The newest run that is done or failed."""

    def to_json(self) -> dict[str, Any]:
        """One element of `jobs` in the document of `sigma jobs list`."""
        job = self.wanted.job
        return {
            "name": job.name,
            "about": job.about,
            "every_s": self.schedule.period_s,
            "schedule": self.schedule.text,
            "wanted": self.wanted.schedule.text,
            "on_alarm": sorted(self.wanted.on_alarm),
            "cooldown_s": job.cooldown_s,
            "again_s": job.again_s,
            "next": None if self.next_at is None else self.next_at.isoformat(),
            "running": self.running,
            "last": None if self.last is None else _last_json(self.last),
        }


def job_schedules(settings: Settings, jobs: Mapping[str, Job] = JOBS) -> dict[str, JobSchedule]:
    """The schedule of every job, by its name; `UsageError` when the settings name an unknown job.

    A job that is switched off by a setting is not started by alarms either.
    """
    configured = dict(settings.schedules)
    unknown = sorted(configured.keys() - jobs.keys())
    if unknown:
        raise UsageError(
            f"SIGMA_SCHEDULE must name jobs of {', '.join(jobs)}, got {unknown[0]!r}; correct it"
        )
    schedules = {}
    for name, job in jobs.items():
        schedule = configured.get(name, job.schedule)
        switched_off = name in configured and schedule.off
        on_alarm = frozenset[str]() if switched_off else job.on_alarm
        schedules[name] = JobSchedule(job, schedule, on_alarm)
    return schedules


def timetable(conn: Connection, settings: Settings) -> list[TimetableEntry]:
    """Every job: when it is due, what starts it, and its last result."""
    entries = []
    for name, wanted in job_schedules(settings).items():
        entries.append(timetable_entry(wanted, job_state(conn, name), _now()))
    return entries


def timetable_entry(wanted: JobSchedule, state: JobState, now: int) -> TimetableEntry:
    """The entry of one job at the second `now`."""
    # The leader may have been started with other settings; runs follow the leader's.
    schedule = state.schedule or wanted.schedule
    handled_until = now if state.handled_until is None else state.handled_until
    window = schedule.next_window(handled_until)
    next_at = None if window is None else _utc(window)
    return TimetableEntry(wanted, schedule, next_at, state.running, state.last)


def run_to_json(run: JobRun) -> dict[str, Any]:
    """One element of `runs` in the document of `sigma jobs list`."""
    return {
        "job": run.job,
        "window": run.run_window,
        "attempt": run.attempt,
        "outcome": run.outcome,
        "figures": run.figures,
        "started_at": run.started_at.isoformat(),
        "ended_at": run.ended_at.isoformat() if run.ended_at else None,
        "cause": run.cause,
    }


def job_alarms(
    conn: Connection, jobs: Mapping[str, Job] = JOBS, *, now: int | None = None
) -> list[str]:
    """What the person on call should know of all jobs, at the second `now`, by default this one."""
    moment = _now() if now is None else now
    alarms = []
    for name in jobs:
        alarms += alarms_of_job(name, job_state(conn, name), moment)
    return alarms


def alarms_of_job(name: str, state: JobState, now: int) -> list[str]:
    """Whether a job failed, was abandoned, or is overdue at the second `now`, with what to do."""
    due = None
    if state.schedule is not None and state.handled_until is not None:
        due = state.schedule.next_window(state.handled_until)
    alarms = []
    if state.last is not None and state.last.outcome == "failed":
        alarms.append(_failure_alarm(state.last, due, now))
    if state.abandoned:
        alarms.append(
            f"job {name} was left unfinished by a process that died: see that a scheduler runs "
            "(sigma up)"
        )
    # An abandoned run is why later windows wait: one alarm says it all.
    elif due is not None and not state.running and now - due > OVERDUE_S:
        alarms.append(
            f"job {name} is due since {_spoken(_utc(due))} and no process runs it: see that a "
            "scheduler runs (sigma up)"
        )
    return alarms


def _failure_alarm(run: JobRun, due: int | None, now: int) -> str:
    failure = JobFailure.from_json(run.figures)
    reason = "no reason was recorded" if failure is None else failure.error
    if due is None:
        next_run = "nothing runs it again by itself"
    else:
        next_run = f"it runs again at {_spoken(_utc(max(due, now)))}"
    return (
        f"job {run.job} failed at {_spoken(run.ended_at)}: {reason}; {next_run}, or now: "
        f"sigma jobs run {run.job}"
    )


def _last_json(run: JobRun) -> dict[str, Any]:
    failure = JobFailure.from_json(run.figures)
    return {
        "outcome": run.outcome,
        "ended_at": None if run.ended_at is None else run.ended_at.isoformat(),
        "error": None if failure is None else failure.error,
    }


def _spoken(moment: datetime | None) -> str:
    if moment is None:
        return "an unknown time"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _utc(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def _now() -> int:
    return int(time.time())
