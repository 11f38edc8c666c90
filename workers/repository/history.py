"""History: what the jobs recorded over a time, as reports read it."""

from collections.abc import Sequence
from datetime import datetime

from workers.repository.connection import Connection, row, rows
from workers.repository.job_runs import JobRun

MOST_RUNS = 20_000
"""Runs read at once, the newest ones: two years of one hourly job."""


def done_since(
    conn: Connection, job: str, since: datetime, *, without: Sequence[str] = ()
) -> list[JobRun]:
    """Runs of a job that were begun since then and are done, oldest first; `without` names keys of their figures to leave out."""
    found = rows(conn, "job_history", since=since, job=job, without=list(without), amount=MOST_RUNS)
    return [JobRun(*one) for one in reversed(found)]


def newest_done(conn: Connection, job: str, key: str) -> JobRun | None:
    """The newest run of a job that is done and whose figures hold something under `key`."""
    found = row(conn, "job_newest", job=job, key=key)
    return None if found is None else JobRun(*found)


def outcomes_since(conn: Connection, since: datetime) -> list[JobRun]:
    """All runs begun since then, oldest first; of their figures only `error` of those that failed and `why` of those idle."""
    return [
        JobRun(*one) for one in reversed(rows(conn, "job_outcomes", since=since, amount=MOST_RUNS))
    ]
