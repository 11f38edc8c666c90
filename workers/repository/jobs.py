"""Jobs: which windows of which job have run, and who may run one now."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from workers.repository.connection import Connection, row, rows, run, transaction

BACKLOG = 24
"""Windows of a job that are made up for after an outage; older ones are recorded as skipped."""


@dataclass(frozen=True, slots=True)
class JobRun:
    """One run. `outcome` is running, done, failed or skipped; `window` is negative when a person asked for it."""

    job: str
    window: int
    attempt: int
    outcome: str
    figures: dict[str, Any]
    started_at: datetime
    ended_at: datetime | None


def lead(conn: Connection) -> bool:
    """Whether this connection's process is the scheduler that leads from now on, as long as the connection lives."""
    found = row(conn, "job_lead")
    return bool(found and found[0])


def begin(conn: Connection, job: str, period_s: float, *, now: float | None = None) -> int | None:
    """Take the job's oldest window that is due: one whose process died first, then those nobody began. None when none is.

    The caller holds the job (`hold`), so whatever is marked as running has no process any more.
    """
    current = int((time.time() if now is None else now) // period_s)
    with transaction(conn):
        last, orphan = row(conn, "job_last", job=job) or (None, None)
        window = orphan if orphan is not None else current if last is None else last + 1
        if window > current:
            return None
        if orphan is None and current - window >= BACKLOG:
            run(conn, "job_skip", job=job, first=window, last=current - BACKLOG)
            window = current - BACKLOG + 1
        found = row(conn, "job_begin", job=job, time_window=window)
    return None if found is None else int(found[0])


def begin_by_hand(conn: Connection, job: str) -> int:
    """A run that a person asked for."""
    with transaction(conn):
        found = row(conn, "job_manual_window", job=job)
        begun = row(conn, "job_begin", job=job, time_window=found[0] if found else -1)
    assert begun is not None
    return int(begun[0])


def end(conn: Connection, number: int, outcome: str, figures: dict[str, Any]) -> None:
    """Record what came of a run."""
    run(conn, "job_end", id=number, outcome=outcome, figures=Jsonb(figures))


def hold(conn: Connection, job: str) -> bool:
    """Whether this connection may run the job now; nobody else may until `release` or its end."""
    found = row(conn, "job_lock", job=job)
    return bool(found and found[0])


def release(conn: Connection, job: str) -> None:
    """Let others run the job."""
    rows(conn, "job_unlock", job=job)


def job_runs(conn: Connection, job: str | None = None, *, limit: int = 20) -> list[JobRun]:
    """Runs, newest first."""
    return [JobRun(*found) for found in rows(conn, "job_runs", job=job, amount=limit)]
