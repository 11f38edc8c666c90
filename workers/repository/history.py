"""History: what the jobs recorded over a period, as reports read it."""

from collections.abc import Sequence
from datetime import datetime

from workers.repository.connection import Connection, fetch_row, fetch_rows
from workers.repository.job_runs import JobRun

# Runs read at once, the newest ones: two years of one hourly job.
MAX_RUNS = 20_000


def done_since(
    conn: Connection, job: str, since: datetime, *, without: Sequence[str] = ()
) -> list[JobRun]:
    """Return runs of a job that started since a moment and are done, oldest first.

    `without` names keys of their figures to leave out.
    """
    newest_first = fetch_rows(
        conn, "job_history", since=since, job=job, without=list(without), amount=MAX_RUNS
    )
    return [JobRun(*columns) for columns in reversed(newest_first)]


def newest_done(conn: Connection, job: str, key: str) -> JobRun | None:
    """Return the newest run of a job that is done and whose figures have a value under `key`."""
    row = fetch_row(conn, "job_newest", job=job, key=key)
    return None if row is None else JobRun(*row)


def outcomes_since(conn: Connection, since: datetime) -> list[JobRun]:
    """Return all runs started since a moment, oldest first.

    Their figures have only `error` of those that failed and `why` of those without work.
    """
    newest_first = fetch_rows(conn, "job_outcomes", since=since, amount=MAX_RUNS)
    return [JobRun(*columns) for columns in reversed(newest_first)]
