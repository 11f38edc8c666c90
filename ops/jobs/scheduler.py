"""The scheduler: one leader among all scheduler processes runs the jobs, each run window once.

Two APSchedulers on one store run everything twice, so only the holder of a lease starts one, and it
begins runs only while it has that lease. Each run window has one row in `job_run`, so it counts
once. A run whose process died or hangs is found by its row: the row says that it is running, and
nobody has the job's lease. APScheduler is the clock; every few seconds the
leader also looks for what no clock announces: alarms, runs whose process died, run windows that
were missed without a leader.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import psycopg
import structlog

from ops.jobs.job_clock import JobClock
from ops.jobs.registry import JOBS, Job, run_job
from ops.jobs.timetable import JobSchedule, job_schedules
from schemas.errors import RetryLaterError, SigmaError
from schemas.schedules import Schedule
from stream.lease import Lease, LostLeaseError, give_up, kept, renew
from workers.repository import job_runs
from workers.repository.alarms import Alarm, open_alarms
from workers.repository.connection import Connection
from workers.runtime.process import TRANSIENT_ERRORS, keep_running
from workers.runtime.services import Services

FindAlarms = Callable[[Connection], Sequence[Alarm]]
"""Returns the open alarms."""

_LEAD_CHECK_S = 1.0
"""Seconds between two attempts to become the leader, and between two checks that one still is."""

_PENDING_CHECK_S = 5.0
"""Seconds between two looks for runs that no clock announces."""

_JOIN_S = 5.0
"""Seconds that a stopping process waits for running jobs; the next leader begins others again."""

log = structlog.get_logger()


class Scheduler:
    """Leads, or waits to lead, for as long as it runs."""

    def __init__(
        self,
        services: Services,
        jobs: Mapping[str, Job] = JOBS,
        *,
        find_alarms: FindAlarms = open_alarms,
    ) -> None:
        """`UsageError` when the settings name an unknown job."""
        self._services = services
        self._schedules = job_schedules(services.settings, jobs)
        self._find_alarms = find_alarms
        # None when this process does not lead. Runs at work go on, for they have their job's lease,
        # but begin no further run.
        self._lead: Lease | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def run(self, stop: threading.Event) -> None:
        """Lead, or wait to lead, until `stop` is set; survives an unavailable database."""
        keep_running(self._session, stop, "scheduler")

    def start(self) -> None:
        """Run in a thread, until `close`."""
        self._thread = threading.Thread(target=self.run, args=(self._stop,), name="scheduler")
        self._thread.start()

    def close(self) -> None:
        """Stop the thread of `start` and wait for its end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def run_pending(self, name: str) -> None:
        """Do all runs that a job has pending, unless another process is running the job."""
        try:
            with self._services.connect(f"job {name}") as conn:
                # The lease of the job, not the lead, makes its runs exclusive: a process that lost
                # the lead may still be running one, and so may a person.
                claim = job_runs.claim_job(conn, name)
                if claim is None:
                    log.debug("job is running elsewhere", job=name)
                    return
                with kept(self._connect_keeper, claim):
                    self._run_claimed(conn, self._schedules[name], claim)
                job_runs.release_job(conn, claim)
        except TRANSIENT_ERRORS as error:
            log.warning(
                "job interrupted: database unavailable, its run will be begun again",
                job=name,
                reason=str(error),
            )

    def _run_claimed(self, conn: Connection, scheduled: JobSchedule, claim: Lease) -> None:
        while (lead := self._lead) is not None:
            # Asked anew for each run: alarms were raised and cleared meanwhile.
            alarms = self._find_alarms(conn) if scheduled.on_alarm else ()
            number = job_runs.begin_next_run(
                conn,
                scheduled.job.name,
                scheduled.schedule,
                scheduled.triggers(alarms),
                held=[lead, claim],
            )
            if number is None:
                return
            self._run_and_log(conn, scheduled.job, number, claim)

    def _run_and_log(self, conn: Connection, job: Job, number: int, claim: Lease) -> None:
        try:
            # Without the lead: a run at work goes on when another process leads.
            done = run_job(self._services, conn, job, number, [claim])
        except LostLeaseError:
            raise
        except RetryLaterError:
            # Without its connection the run keeps its row and loses its lock: it is begun again.
            # With the connection, only something that the job itself needs is unavailable.
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

    def _session(self, stop: threading.Event) -> None:
        """Wait for the lead and keep it until `stop`, or until its connection is lost."""
        with self._services.connect("scheduler") as conn:
            while (lead := job_runs.claim_scheduler(conn)) is None:
                if stop.wait(_LEAD_CHECK_S):
                    return
            log.info("scheduler leads", fence=lead.fence)
            # Windows of a schedule that no longer applies are recorded as skipped, by the leader
            # only.
            for name, scheduled in self._schedules.items():
                job_runs.apply_schedule(conn, name, scheduled.schedule)
            clock = JobClock(self._services.database_url, self.run_pending)
            # Before the clock starts: a job that is due at once must find it set.
            self._lead = lead
            try:
                clock.start(self._clock_schedules())
                self._watch(conn, clock, lead, stop)
            finally:
                self._lead = None
                clock.close()
            give_up(conn, [lead])
            clock.join(_JOIN_S)

    def _connect_keeper(self) -> Connection:
        return self._services.connect("lease")

    def _watch(self, conn: Connection, clock: JobClock, lead: Lease, stop: threading.Event) -> None:
        """Start pending runs until `stop`; `RetryLaterError` when the lead is lost."""
        next_look = time.monotonic()
        try:
            while not stop.wait(_LEAD_CHECK_S):
                # Notices a lost connection too, with which the lease is lost.
                if not renew(conn, [lead]):
                    raise RetryLaterError("another scheduler leads, this one did not renew in time")
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + _PENDING_CHECK_S
                    self._start_pending(conn, clock)
        except psycopg.OperationalError as error:
            raise RetryLaterError("the scheduler lost its lead with its connection") from error

    def _start_pending(self, conn: Connection, clock: JobClock) -> None:
        """Start jobs with a run that no clock announces: by alarm, missed, or left by a death."""
        alarms = self._find_alarms(conn)
        for name, scheduled in self._schedules.items():
            triggers = scheduled.triggers(alarms)
            if job_runs.run_is_pending(conn, name, scheduled.schedule, triggers):
                clock.run_now(name)

    def _clock_schedules(self) -> dict[str, Schedule]:
        return {name: scheduled.schedule for name, scheduled in self._schedules.items()}
