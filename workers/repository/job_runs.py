"""Job runs: which run windows and alarms each job has run for, and which process may run it now.

A *run window* is a moment at which a schedule makes a job due, named by its second since 1970. Each
run window and each alarm gets one run, which is a row of job_run. Who may begin runs of a job is
decided by its claim: a lease (`stream.lease`), which its process keeps while the job runs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypedDict

from psycopg.types.json import Jsonb

from schemas.records import JsonObject
from schemas.schedules import Schedule
from stream.lease import Lease, check, give_up, is_held, take
from workers.repository.connection import (
    Connection,
    execute,
    fetch_column,
    fetch_row,
    fetch_rows,
    transaction,
)

# Run windows that are made up for after an outage; older ones are recorded as skipped.
MAX_BACKLOG = 24

# How often a run is begun before it counts as failed, if its process dies each time.
#
# So a run that kills its process cannot go on killing schedulers.
MAX_ATTEMPTS = 3

# A JSON document with what a run measured; each job has its own keys.
Figures = JsonObject


class RunCause(TypedDict, total=False):
    """Who asked for a run, as stored. Empty for a run of the schedule."""

    by: str
    """`hand`: a person asked."""
    alarms: list[int]
    """Ids of the alarms that it answers."""
    after: int
    """Id of the run by alarm that it repeats."""


@dataclass(frozen=True, slots=True)
class JobRun:
    """One run of a job."""

    job: str
    run_window: int
    """Second since 1970 at which it was due; negative for a run with a cause."""
    attempt: int
    outcome: str
    """running, done, failed or skipped"""
    figures: Figures
    started_at: datetime
    ended_at: datetime | None
    cause: RunCause = field(default_factory=RunCause)


@dataclass(frozen=True, slots=True)
class JobState:
    """How far a job has come."""

    schedule: Schedule | None
    """The schedule by which it runs; None before a scheduler was active."""
    handled_until: int | None
    """The newest run window that needs no run any more; None before a scheduler was active."""
    running: bool
    abandoned: bool
    """Whether a run is unfinished whose process died."""
    last: JobRun | None
    """The newest run that is done or failed."""


@dataclass(frozen=True, slots=True)
class AlarmTriggers:
    """What besides its schedule may start a job."""

    alarms: Sequence[int] = ()
    """Ids of the open alarms that the job answers."""
    cooldown_s: float = 0.0
    """How long after the job's newest run it may answer an alarm."""
    again_s: float | None = None
    """How long after an answer the job runs once more; None for never."""


_NO_ALARMS = AlarmTriggers()


def claim_scheduler(conn: Connection) -> Lease | None:
    """Try to become the active scheduler, which renews the lease; None while another one is."""
    return take(conn, "scheduler")


def claim_job(conn: Connection, job: str) -> Lease | None:
    """Try to claim a job; None while another process has it.

    No other process may run it while the lease is renewed and the connection stands.
    """
    return take(conn, _lease_name(job))


def job_is_claimed(conn: Connection, job: str) -> bool:
    """Return whether any process has claimed the job."""
    return is_held(conn, _lease_name(job))


def release_job(conn: Connection, claim: Lease) -> None:
    """Give up the claim of a job."""
    give_up(conn, [claim])


def apply_schedule(
    conn: Connection, job: str, schedule: Schedule, *, now: int | None = None
) -> None:
    """Run a job by this schedule from now on.

    Run windows of an earlier schedule that had no run yet are recorded as skipped. `now` is in
    seconds since 1970, like all moments here; by default the clock's.
    """
    moment = _now(now)
    with transaction(conn):
        row = fetch_row(conn, "job_schedule", job=job)
        old_text, old_start = row or (None, 0)
        if old_text == schedule.text:
            return
        newest = _newest_window(conn, job)
        start = schedule.start_after(moment)
        if old_text is not None:
            old = Schedule.parse(old_text)
            missed = old.windows_between(max(old_start, newest or 0), moment)
            _skip(conn, job, missed, f"its schedule was {old_text} and became {schedule.text}")
        elif newest is not None:
            # It ran before schedules were stored.
            start = newest
        execute(conn, "store_schedule", job=job, schedule=schedule.text, after=start)


def begin_next_run(
    conn: Connection,
    job: str,
    schedule: Schedule,
    triggers: AlarmTriggers = _NO_ALARMS,
    *,
    now: int | None = None,
    held: Sequence[Lease] = (),
) -> int | None:
    """Begin the next run of a job and return its id; None when it has nothing to do.

    In this order: a run whose process died, the oldest run window that is due, open alarms, and
    the repetition of a run by alarm. The caller has claimed the job, so whatever is marked as
    running has no process any more. `LostLeaseError` when one of the leases `held` was lost: the
    job's claim, and the lead of the scheduler.
    """
    with transaction(conn):
        number = _begin_next(conn, job, schedule, triggers, _now(now))
        check(conn, held)
    return number


def _begin_next(
    conn: Connection, job: str, schedule: Schedule, triggers: AlarmTriggers, now: int
) -> int | None:
    # Before new windows, so that runs of one job keep their order.
    abandoned = _begin_abandoned(conn, job)
    if abandoned is not None:
        return abandoned
    due = _due_windows(conn, job, schedule, now)
    too_old = due[:-MAX_BACKLOG]
    _skip(conn, job, too_old, f"more than {MAX_BACKLOG} run windows were missed")
    if due:
        return _insert_run(conn, job, due[len(too_old)], RunCause())
    cause = _trigger_cause(conn, job, triggers)
    if cause:
        return _insert_run(conn, job, _extra_window(conn, job), cause)
    return None


def begin_manual_run(conn: Connection, job: str) -> int:
    """Begin a run that a person asked for, and return its id. The caller has claimed the job."""
    with transaction(conn):
        return _insert_run(conn, job, _extra_window(conn, job), RunCause(by="hand"))


def run_is_pending(
    conn: Connection,
    job: str,
    schedule: Schedule,
    triggers: AlarmTriggers = _NO_ALARMS,
    *,
    now: int | None = None,
) -> bool:
    """Return whether `begin_next_run` would begin a run, and no process has claimed the job."""
    if job_is_claimed(conn, job):
        return False
    return bool(
        fetch_row(conn, "unfinished_run", job=job)
        or _due_windows(conn, job, schedule, _now(now))
        or _trigger_cause(conn, job, triggers)
    )


def end_run(
    conn: Connection, number: int, outcome: str, figures: Figures, held: Sequence[Lease] = ()
) -> None:
    """Record the outcome of a run.

    `RetryLaterError` when the database is unavailable, or the job's claim, in `held`, was lost:
    the run counts as abandoned, and whoever claims the job next begins it again.
    """
    with transaction(conn):
        execute(conn, "end_run", id=number, outcome=outcome, figures=Jsonb(figures))
        check(conn, held)


def job_runs(conn: Connection, job: str | None = None, *, limit: int = 20) -> list[JobRun]:
    """Return runs of one job or of all, newest first."""
    return [JobRun(*columns) for columns in fetch_rows(conn, "job_runs", job=job, amount=limit)]


def job_run(conn: Connection, number: int) -> JobRun:
    """Return one run by its id."""
    (columns,) = fetch_rows(conn, "job_run", id=number)
    return JobRun(*columns)


def job_state(conn: Connection, job: str) -> JobState:
    """Return how far a job has come."""
    schedule_text, start = fetch_row(conn, "job_schedule", job=job) or (None, None)
    # A run that begins between these two looks abandoned for a moment; the next look corrects it.
    running = job_is_claimed(conn, job)
    unfinished = fetch_row(conn, "unfinished_run", job=job) is not None
    last = fetch_row(conn, "newest_ended_run", job=job)
    return JobState(
        schedule=None if schedule_text is None else Schedule(schedule_text),
        handled_until=None if start is None else max(start, _newest_window(conn, job) or 0),
        running=running,
        abandoned=unfinished and not running,
        last=None if last is None else JobRun(*last),
    )


def _lease_name(job: str) -> str:
    return f"job {job}"


def _begin_abandoned(conn: Connection, job: str) -> int | None:
    """Begin again the oldest run whose process died.

    One that a person asked for, or whose process died too often, is recorded as failed instead.
    """
    while (row := fetch_row(conn, "unfinished_run", job=job)) is not None:
        number, attempt, cause = row
        if cause.get("by") != "hand" and attempt < MAX_ATTEMPTS:
            execute(conn, "begin_run_again", id=number)
            return int(number)
        times = "" if attempt == 1 else f" {attempt} times"
        figures = {"error": f"its process died{times}"}
        execute(conn, "end_run", id=number, outcome="failed", figures=Jsonb(figures))
    return None


def _due_windows(conn: Connection, job: str, schedule: Schedule, now: int) -> list[int]:
    """Run windows that are due and have no run, oldest first."""
    row = fetch_row(conn, "job_schedule", job=job)
    if row is None or row[0] != schedule.text:
        # A scheduler that lost its claim without noticing must not run windows of a schedule that
        # another one has replaced.
        return []
    # Windows with a row are done, skipped or failed; those before the start never counted.
    return schedule.windows_between(max(row[1], _newest_window(conn, job) or 0), now)


def _newest_window(conn: Connection, job: str) -> int | None:
    row = fetch_row(conn, "newest_window", job=job)
    return None if row is None else row[0]


def _skip(conn: Connection, job: str, windows: Sequence[int], why: str) -> None:
    if windows:
        execute(conn, "skip_windows", job=job, windows=list(windows), figures=Jsonb({"why": why}))


def _trigger_cause(conn: Connection, job: str, triggers: AlarmTriggers) -> RunCause:
    """What besides its schedule starts the job now; empty if nothing does."""
    unanswered = _unanswered_alarms(conn, job, triggers)
    if unanswered:
        return RunCause(alarms=unanswered)
    if triggers.again_s is not None:
        answer = fetch_row(conn, "answer_to_repeat", job=job, again_s=triggers.again_s)
        if answer is not None:
            return RunCause(after=answer[0])
    return RunCause()


def _unanswered_alarms(conn: Connection, job: str, triggers: AlarmTriggers) -> list[int]:
    if not triggers.alarms:
        return []
    return fetch_column(
        conn,
        "unanswered_alarms",
        job=job,
        alarms=list(triggers.alarms),
        cooldown_s=triggers.cooldown_s,
    )


def _extra_window(conn: Connection, job: str) -> int:
    """A negative number for a run outside the schedule, as run windows are unique per job."""
    row = fetch_row(conn, "extra_window", job=job)
    return int(row[0]) if row else -1


def _insert_run(conn: Connection, job: str, run_window: int, cause: RunCause) -> int:
    # Fails if the window has a row: only a process without the claim could meet that.
    (row,) = fetch_rows(conn, "insert_run", job=job, time_window=run_window, cause=Jsonb(cause))
    return int(row[0])


def _now(now: int | None) -> int:
    return int(time.time()) if now is None else now
