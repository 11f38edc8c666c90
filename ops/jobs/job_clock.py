"""The job clock: APScheduler with its timetable in PostgreSQL, for the process that leads."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from apscheduler.executors.base import BaseExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from schemas.errors import RetryLaterError
from schemas.schedules import Schedule
from stream.session import connection_options

RunJob = Callable[[str], None]
"""Runs whatever the job of that name has to do."""

_TABLE = "scheduler_job"
"""APScheduler's own table: the next time of each job."""

_TIMED = "default"
"""The store in the database: jobs with a schedule."""

_AT_ONCE = "now"
"""The store in memory: jobs that are to be run once, now."""

_MAX_ERROR_LETTERS = 300

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class JobClock:
    """Runs each job, by its name, in a thread of its own whenever its schedule says so."""

    def __init__(self, database_url: str, run_job: RunJob) -> None:
        url = database_url.replace("postgres://", "postgresql://", 1)
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        # No pool: it would keep connections that a restarted database forgot, and lose one that is
        # in use when APScheduler shuts down.
        store = SQLAlchemyJobStore(
            url=url,
            tablename=_TABLE,
            engine_options={
                "poolclass": NullPool,
                "connect_args": connection_options(database_url),
            },
        )
        self._threads = _JobThreads(run_job)
        self._scheduler = BackgroundScheduler(
            jobstores={_TIMED: store, _AT_ONCE: MemoryJobStore()},
            executors={"default": self._threads},
            # No late run is dropped: which windows count is decided by their rows in `job_run`.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
            timezone=UTC,
        )

    def start(self, schedules: Mapping[str, Schedule]) -> None:
        """Begin to run jobs by these schedules; jobs that are off or unknown leave the store.

        `RetryLaterError` when the database does not answer.
        """
        try:
            # Paused until the store holds these schedules: an older version's must not fire.
            self._scheduler.start(paused=True)
            self._store(schedules)
            self._scheduler.resume()
        except DBAPIError as error:
            reason = str(error.orig).strip()[:_MAX_ERROR_LETTERS]
            raise RetryLaterError(f"the scheduler's store does not answer ({reason})") from error

    def run_now(self, name: str) -> None:
        """Run a job as soon as a thread can start, beside its schedule."""
        self._scheduler.add_job(
            _stored_function,
            args=[name],
            # One id for each job, so that calls before its thread starts make one run.
            id=f"{name} now",
            jobstore=_AT_ONCE,
            replace_existing=True,
        )

    def close(self) -> None:
        """Start no job any more. Jobs that are running go on."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def join(self, timeout_s: float) -> None:
        """Wait for the jobs that are running, all together not longer than that."""
        self._threads.join(timeout_s)

    def _store(self, schedules: Mapping[str, Schedule]) -> None:
        triggers = {}
        for name, schedule in schedules.items():
            trigger = _trigger(schedule)
            if trigger is not None:
                triggers[name] = trigger
        for stored in self._scheduler.get_jobs(_TIMED):
            if stored.id not in triggers:
                stored.remove()
        for name, trigger in triggers.items():
            self._scheduler.add_job(
                _stored_function, trigger, args=[name], id=name, replace_existing=True
            )


class _JobThreads(BaseExecutor):
    """A thread for each run, so that hours of training do not hold up the hourly jobs.

    They are daemons: a process that ends does not wait for them.
    """

    def __init__(self, run_job: RunJob) -> None:
        super().__init__()
        self._run_job = run_job
        # Used by APScheduler's thread, and by `join` after that has ended.
        self._threads: list[threading.Thread] = []

    def join(self, timeout_s: float) -> None:
        """Wait for all threads, together not longer than that."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # APScheduler's types are not published: a job is one of its own.
    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        thread = threading.Thread(target=self._run, args=(job,), name=f"job {job.id}", daemon=True)
        # Ended threads are dropped here, or a process that leads for months would keep them all.
        self._threads = [known for known in self._threads if known.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _run(self, job: Any) -> None:
        (name,) = job.args
        try:
            self._run_job(name)
        except BaseException:
            # Whatever it was, APScheduler must hear of it: it starts no job that it takes for
            # running.
            self._run_job_error(job.id, *sys.exc_info()[1:])
        else:
            self._run_job_success(job.id, [])


def _stored_function(name: str) -> None:
    """Stands in the store for running a job: `_JobThreads` looks at the name, and never calls this.

    The store keeps a function by its import path. A method of a running scheduler has none.
    """
    raise NotImplementedError(f"job {name} is run by the executor of a JobClock only")


def _trigger(schedule: Schedule) -> BaseTrigger | None:
    if schedule.period_s is not None:
        return IntervalTrigger(seconds=schedule.period_s, start_date=_EPOCH)
    return schedule.cron_trigger
