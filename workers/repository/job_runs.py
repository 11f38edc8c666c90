"""Jobs: which windows and alarms each job has run for, and who may run it now."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from schemas.schedules import Schedule
from workers.repository.connection import Connection, row, rows, run, transaction

MAX_BACKLOG = 24
"""Windows of a job that are made up for after an outage; older ones are recorded as skipped."""

MAX_ATTEMPTS = 3
"""How often a run may take its process with it before it counts as failed, so that it cannot go on killing schedulers."""


@dataclass(frozen=True, slots=True)
class JobRun:
    """One run. `outcome` is running, done, failed or skipped.

    `window` is the second at which it was due, or negative when `cause` says who else asked: `{"by": "hand"}`, `{"alarms": [ids]}`, or
    `{"after": id}` for the second run after one by alarm.
    """

    job: str
    run_window: int
    attempt: int
    outcome: str
    figures: dict[str, Any]
    started_at: datetime
    ended_at: datetime | None
    cause: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobState:
    """Where a job stands. `schedule` and `after` are None until a scheduler led; `left` is a run whose process died."""

    schedule: Schedule | None
    handled_until: int | None
    """The newest window that is dealt with."""
    running: bool
    abandoned: bool
    last: JobRun | None
    """The newest run that is done or failed."""


@dataclass(frozen=True, slots=True)
class AlarmTriggers:
    """Open alarms that call for a job, how long after its newest run it may answer, and how long after an answer it is due once more."""

    alarms: Sequence[int] = ()
    cooldown_s: float = 0.0
    again_s: float | None = None


_NO_ALARMS = AlarmTriggers()


def claim_scheduler(conn: Connection) -> bool:
    """Whether this connection's process is the scheduler that leads from now on, as long as the connection lives."""
    rows(conn, "job_watchful")
    found = row(conn, "job_lead")
    return bool(found and found[0])


def apply_schedule(
    conn: Connection, job: str, schedule: Schedule, *, now: int | None = None
) -> None:
    """Run a job by this schedule from now on. Windows of another schedule that are still to be run are recorded as skipped."""
    moment = _now(now)
    with transaction(conn):
        old, after = row(conn, "job_schedule", job=job) or (None, None)
        if old == schedule.text:
            return
        newest = _newest(conn, job)
        if old is None:
            after = schedule.start_after(moment) if newest is None else newest
        else:
            missed = Schedule.parse(old).windows_between(max(after, newest or 0), moment)
            _skip(conn, job, missed, f"its schedule was {old} and became {schedule.text}")
            after = schedule.start_after(moment)
        run(conn, "job_reschedule", job=job, schedule=schedule.text, after=after)


def begin_next_run(
    conn: Connection,
    job: str,
    schedule: Schedule,
    calls: AlarmTriggers = _NO_ALARMS,
    *,
    now: int | None = None,
) -> int | None:
    """Take the next run of a job: one whose process died, then its oldest window that is due, then alarms, then the second
    run after an answer. None when there is none.

    The caller holds the job (`hold`), so whatever is marked as running has no process any more.
    """
    with transaction(conn):
        again = _take_up(conn, job)
        if again is not None:
            return again
        due = _due(conn, job, schedule, _now(now))
        _skip(conn, job, due[:-MAX_BACKLOG], f"more than {MAX_BACKLOG} windows were missed")
        if due:
            return _insert(conn, job, due[-MAX_BACKLOG:][0], {})
        cause = _cause(conn, job, calls)
        return _insert(conn, job, _extra_window(conn, job), cause) if cause else None


def begin_manual_run(conn: Connection, job: str) -> int:
    """A run that a person asked for. The caller holds the job."""
    with transaction(conn):
        return _insert(conn, job, _extra_window(conn, job), {"by": "hand"})


def run_is_pending(
    conn: Connection,
    job: str,
    schedule: Schedule,
    calls: AlarmTriggers = _NO_ALARMS,
    *,
    now: int | None = None,
) -> bool:
    """Whether `begin` would find something and nobody is at it."""
    if job_is_claimed(conn, job):
        return False
    return bool(
        row(conn, "job_open", job=job)
        or _due(conn, job, schedule, _now(now))
        or _cause(conn, job, calls)
    )


def end_run(conn: Connection, number: int, outcome: str, figures: dict[str, Any]) -> None:
    """Record what came of a run. `RetryLaterError` when the database is away: whoever holds the job next finds the run."""
    with transaction(conn):
        run(conn, "job_end", id=number, outcome=outcome, figures=Jsonb(figures))


def claim_job(conn: Connection, job: str) -> bool:
    """Whether this connection may run the job now; nobody else may until `release` or its end."""
    rows(conn, "job_watchful")
    found = row(conn, "job_lock", job=job)
    return bool(found and found[0])


def job_is_claimed(conn: Connection, job: str) -> bool:
    """Whether anybody runs the job now."""
    found = row(conn, "job_held", job=job)
    return bool(found and found[0])


def release_job(conn: Connection, job: str) -> None:
    """Let others run the job."""
    rows(conn, "job_unlock", job=job)


def job_runs(conn: Connection, job: str | None = None, *, limit: int = 20) -> list[JobRun]:
    """Runs, newest first."""
    return [JobRun(*found) for found in rows(conn, "job_runs", job=job, amount=limit)]


def job_run(conn: Connection, number: int) -> JobRun:
    """One run."""
    (found,) = rows(conn, "job_run", id=number)
    return JobRun(*found)


def job_state(conn: Connection, job: str) -> JobState:
    """Where a job stands."""
    text, after = row(conn, "job_schedule", job=job) or (None, None)
    running = job_is_claimed(conn, job)
    last = row(conn, "job_newest_result", job=job)
    return JobState(
        schedule=None if text is None else Schedule(text),
        handled_until=None if after is None else max(after, _newest(conn, job) or 0),
        running=running,
        abandoned=not running and row(conn, "job_open", job=job) is not None,
        last=None if last is None else JobRun(*last),
    )


def _take_up(conn: Connection, job: str) -> int | None:
    """Begins once more a run whose process died; one that a person asked for, or that died too often, failed instead."""
    while (found := row(conn, "job_open", job=job)) is not None:
        number, attempt, cause = found
        if cause.get("by") != "hand" and attempt < MAX_ATTEMPTS:
            run(conn, "job_again", id=number)
            return int(number)
        times = "" if attempt == 1 else f" {attempt} times"
        run(
            conn,
            "job_end",
            id=number,
            outcome="failed",
            figures=Jsonb({"error": f"its process died{times}"}),
        )
    return None


def _due(conn: Connection, job: str, schedule: Schedule, now: int) -> list[int]:
    known = row(conn, "job_schedule", job=job)
    if known is None or known[0] != schedule.text:
        # A leader that was replaced while it looked away must not run windows of a schedule that no longer holds.
        return []
    return schedule.windows_between(max(known[1], _newest(conn, job) or 0), now)


def _newest(conn: Connection, job: str) -> int | None:
    found = row(conn, "job_newest_window", job=job)
    return None if found is None else found[0]


def _skip(conn: Connection, job: str, windows: Sequence[int], why: str) -> None:
    if windows:
        run(conn, "job_skip", job=job, windows=list(windows), figures=Jsonb({"why": why}))


def _cause(conn: Connection, job: str, calls: AlarmTriggers) -> dict[str, Any]:
    """What else than its schedule calls for a job now; nothing, if nothing does."""
    if unanswered := _unanswered(conn, job, calls):
        return {"alarms": unanswered}
    answer = (
        row(conn, "job_answered", job=job, again_s=calls.again_s)
        if calls.again_s is not None
        else None
    )
    return {} if answer is None else {"after": answer[0]}


def _unanswered(conn: Connection, job: str, calls: AlarmTriggers) -> list[int]:
    if not calls.alarms:
        return []
    return [
        found
        for (found,) in rows(
            conn, "job_unanswered", job=job, alarms=list(calls.alarms), cooldown_s=calls.cooldown_s
        )
    ]


def _extra_window(conn: Connection, job: str) -> int:
    found = row(conn, "job_manual_window", job=job)
    return int(found[0]) if found else -1


def _insert(conn: Connection, job: str, window: int, cause: dict[str, Any]) -> int:
    (found,) = rows(conn, "job_begin", job=job, time_window=window, cause=Jsonb(cause))
    return int(found[0])


def _now(now: int | None) -> int:
    return int(time.time()) if now is None else now
