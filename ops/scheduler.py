"""The scheduler: APScheduler with its jobs in Postgres, one leader among all processes, each window of each job run once.

Two APSchedulers on one store run everything twice, so only the holder of an advisory lock starts one. What makes a window count
once even so is its row in `job_run`; what makes a window survive its process is that nobody holds the job's lock any more.
"""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime

import psycopg
import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from ops.jobs import JOBS, Job, perform
from schemas.errors import RetryLaterError, SigmaError
from workers.repository import jobs as repository
from workers.running import keep_running
from workers.services import Services

_PROBE_S = 1.0

log = structlog.get_logger()


class _Running:
    """What a job's function finds when APScheduler calls it: only its name is in the store."""

    services: Services
    jobs: Mapping[str, Job] = JOBS


def run(services: Services, stop: threading.Event, jobs: Mapping[str, Job] = JOBS) -> None:
    """Lead, or wait to lead, until stopped."""
    _Running.services, _Running.jobs = services, jobs
    keep_running(lambda stop: _session(services, jobs, stop), stop, "scheduler")


def work(name: str) -> None:
    """Run the oldest window of a job that is due, if nobody else does. Called by APScheduler."""
    services, wanted = _Running.services, _Running.jobs[name]
    with services.connect(f"job {name}") as conn:
        if not repository.hold(conn, name):
            log.info("the job runs elsewhere", job=name)
            return
        while (number := repository.begin(conn, name, wanted.every_s)) is not None:
            try:
                done = perform(services, conn, wanted, number)
            except (SigmaError, psycopg.Error):
                log.exception("job failed", job=name)
                return
            log.info("job done", job=name, window=done.window, figures=done.figures)


def _session(services: Services, jobs: Mapping[str, Job], stop: threading.Event) -> None:
    with services.connect("scheduler") as conn:
        while not repository.lead(conn):
            if stop.wait(_PROBE_S):
                return
        log.info("this scheduler leads")
        scheduler = _scheduler(services, jobs)
        scheduler.start()
        try:
            while not stop.wait(_PROBE_S):
                # The lock is lost with the connection, and a query is what notices.
                conn.execute("SELECT 1")
        except psycopg.OperationalError as error:
            raise RetryLaterError("the scheduler lost its lock with its connection") from error
        finally:
            scheduler.shutdown(wait=False)


def _scheduler(services: Services, jobs: Mapping[str, Job]) -> BackgroundScheduler:
    """Every job's windows as multiples of its period since 1970, so that all schedulers mean the same; a late run is never dropped."""
    url = services.database_url.replace("postgres://", "postgresql://", 1).replace("postgresql://", "postgresql+psycopg://", 1)
    scheduler = BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=url, tablename="scheduler_job")},
        executors={"default": ThreadPoolExecutor(1)},
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        timezone=UTC,
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for job in jobs.values():
        scheduler.add_job(
            work, IntervalTrigger(seconds=int(job.every_s), start_date=epoch), args=[job.name], id=job.name, replace_existing=True
        )
    return scheduler
