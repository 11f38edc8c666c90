"""The scheduler: APScheduler with its jobs in Postgres, one leader among all processes, each window of each job run once.

Two APSchedulers on one store run everything twice, so only the holder of an advisory lock starts one. What makes a window count once
even so is its row in `job_run`; what makes a window survive its process is that nobody holds the job's lock any more. APScheduler is
the clock; a look every few seconds finds what no clock announces: alarms, runs whose process died, windows missed while nobody led.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import structlog
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ops.jobs.registry import JOBS, Job, perform
from ops.jobs.timetable import Plan, plans
from schemas.errors import RetryLaterError, SigmaError
from schemas.schedules import Schedule
from workers.repository import job_runs as repository
from workers.repository.alarms import Alarm, open_alarms
from workers.repository.connection import Connection
from workers.runtime.process import TRANSIENT_ERRORS, keep_running
from workers.runtime.services import Services

_PROBE_S = 1.0
_LOOK_S = 5.0
_SETTLE_S = 5.0
"""Seconds that a process which stops gives the jobs at work; what is longer is begun again by the next leader."""

log = structlog.get_logger()


Look = Callable[[Connection], Sequence[Alarm]]


class _Threads(BaseExecutor):
    """A thread for each run, so that hours of training do not hold up the hourly jobs; a process that ends does not wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self._threads: list[threading.Thread] = []

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        self._threads = [one for one in self._threads if one.is_alive()]
        self._threads.append(
            threading.Thread(
                target=self._run, args=(job, run_times), name=f"job {job.id}", daemon=True
            )
        )
        self._threads[-1].start()

    def _run(self, job: Any, run_times: list[datetime]) -> None:
        try:
            events = run_job(job, job._jobstore_alias, run_times, self._logger.name)
        except BaseException:
            self._run_job_error(job.id, *sys.exc_info()[1:])
        else:
            self._run_job_success(job.id, events)

    def settle(self, patience_s: float) -> None:
        """Wait for the runs at work, but not longer than that."""
        deadline = time.monotonic() + patience_s
        for one in self._threads:
            one.join(max(0.0, deadline - time.monotonic()))


class _Running:
    """What a job's function finds when APScheduler calls it: only its name is in the store."""

    services: Services
    plans: Mapping[str, Plan]
    look: Look
    leads = threading.Event()
    """Cleared when this process no longer leads: runs at work go on, for they hold their job, and no new one begins."""


def run(
    services: Services,
    stop: threading.Event,
    jobs: Mapping[str, Job] = JOBS,
    look: Look = open_alarms,
) -> None:
    """Lead, or wait to lead, until stopped."""
    _Running.services, _Running.plans, _Running.look = (
        services,
        plans(services.settings, jobs),
        look,
    )
    keep_running(_session, stop, "scheduler")


def work(name: str) -> None:
    """Run whatever a job has to do, if nobody else is at it. Called by APScheduler."""
    plan = _Running.plans[name]
    try:
        with _Running.services.connect(f"job {name}") as conn:
            if not repository.claim_job(conn, name):
                log.debug("the job runs elsewhere", job=name)
                return
            while _Running.leads.is_set() and (number := _begin(conn, plan)) is not None:
                _perform(conn, plan.job, number)
    except TRANSIENT_ERRORS as error:
        log.warning(
            "the job was interrupted, its run is begun again when the database answers",
            job=name,
            reason=str(error),
        )


def _begin(conn: Connection, plan: Plan) -> int | None:
    return repository.begin_next_run(
        conn,
        plan.job.name,
        plan.schedule,
        _calls(plan, _Running.look(conn) if plan.on_alarm else ()),
    )


def _perform(conn: Connection, job: Job, number: int) -> None:
    try:
        done = perform(_Running.services, conn, job, number)
    except RetryLaterError:
        if conn.closed:
            raise
        log.exception("job failed", job=job.name)
    except SigmaError:
        log.exception("job failed", job=job.name)
    else:
        log.info(
            "job done",
            job=job.name,
            run_window=done.run_window,
            cause=done.cause,
            figures=done.figures,
        )


def _calls(plan: Plan, alarms: Sequence[Alarm]) -> repository.AlarmTriggers:
    meant = [one.id for one in alarms if one.level in plan.on_alarm or one.monitor in plan.on_alarm]
    return repository.AlarmTriggers(
        meant, plan.job.cooldown_s, plan.job.again_s if plan.on_alarm else None
    )


def _session(stop: threading.Event) -> None:
    with _Running.services.connect("scheduler") as conn:
        while not repository.claim_scheduler(conn):
            if stop.wait(_PROBE_S):
                return
        log.info("this scheduler leads")
        for name, plan in _Running.plans.items():
            repository.apply_schedule(conn, name, plan.schedule)
        executor = _Threads()
        with _clock(executor) as clock:
            _watch(conn, clock, stop)
        executor.settle(_SETTLE_S)


def _watch(conn: Connection, clock: BackgroundScheduler, stop: threading.Event) -> None:
    looked = -_LOOK_S
    try:
        while not stop.wait(_PROBE_S):
            # The lock is lost with the connection, and a query is what notices.
            conn.execute("SELECT 1")
            if time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                _wake(conn, clock)
    except psycopg.OperationalError as error:
        raise RetryLaterError("the scheduler lost its lock with its connection") from error


def _wake(conn: Connection, clock: BackgroundScheduler) -> None:
    """Start what waits and has no clock of its own: alarms, runs that died, windows that were missed."""
    alarms = _Running.look(conn)
    for name, plan in _Running.plans.items():
        if repository.run_is_pending(conn, name, plan.schedule, _calls(plan, alarms)):
            clock.add_job(
                work, args=[name], id=f"{name} now", jobstore="now", replace_existing=True
            )


@contextmanager
def _clock(executor: BaseExecutor) -> Iterator[BackgroundScheduler]:
    """APScheduler at work for as long as this process leads; a late run is never dropped."""
    url = _Running.services.database_url.replace("postgres://", "postgresql://", 1).replace(
        "postgresql://", "postgresql+psycopg://", 1
    )
    # No pool: it would keep connections that a restarted database forgot, and lose one that is in use when the scheduler shuts down.
    clock = BackgroundScheduler(
        jobstores={
            "default": SQLAlchemyJobStore(
                url=url, tablename="scheduler_job", engine_options={"poolclass": NullPool}
            ),
            "now": MemoryJobStore(),
        },
        executors={"default": executor},
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        timezone=UTC,
    )
    try:
        clock.start(paused=True)
        _enter(clock)
        _Running.leads.set()
        clock.resume()
        yield clock
    except DBAPIError as error:
        raise RetryLaterError(
            f"the scheduler's store does not answer ({str(error.orig).strip()[:300]})"
        ) from error
    finally:
        _Running.leads.clear()
        if clock.running:
            clock.shutdown(wait=False)


def _enter(clock: BackgroundScheduler) -> None:
    """Bring the store in line with the plans: what is off, or no job any more, leaves it."""
    timed = {
        name: trigger
        for name, plan in _Running.plans.items()
        if (trigger := _trigger(plan.schedule)) is not None
    }
    for stored in clock.get_jobs("default"):
        if stored.id not in timed:
            stored.remove()
    for name, trigger in timed.items():
        clock.add_job(work, trigger, args=[name], id=name, replace_existing=True)


def _trigger(schedule: Schedule) -> BaseTrigger | None:
    if schedule.period_s is not None:
        return IntervalTrigger(
            seconds=schedule.period_s, start_date=datetime(1970, 1, 1, tzinfo=UTC)
        )
    return schedule.cron_trigger
