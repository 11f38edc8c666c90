"""The scheduler: each run window runs once, whoever leads and whoever dies.

A long job holds up no other job, and an alarm starts its job.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ops.jobs.registry import JOBS, Job
from ops.jobs.scheduler import Scheduler
from schemas.events import ARRIVED, INDEXED
from schemas.maintenance_results import PruneResult
from schemas.schedules import Schedule
from schemas.settings import Settings
from stream.log.event_log import Message
from stream.log.postgres import PostgresLog
from tests.integration.scheduler_process import EVERY_S, PERIODS_S, Figures
from workers.repository.alarms import Alarm
from workers.repository.connection import Connection, connect
from workers.repository.job_runs import claim_job, claim_scheduler, job_is_claimed, job_runs
from workers.runtime.services import Services

KILLS = int(os.environ.get("SIGMA_TEST_LEADER_KILLS", "3"))


def test_pruning_forgets_old_events_that_all_have_read(conn: Connection, database: str) -> None:
    log = PostgresLog(database)
    log.ensure_topics()
    log.publish(
        None, [Message(topic, "same", b"") for topic in (ARRIVED, INDEXED) for _ in range(4)]
    )
    conn.execute(
        "UPDATE log_event SET published_at = now() - interval '40 days' WHERE \"offset\" < 3"
    )
    ((place, _),) = [(place, end) for place, end in log.end_offsets([ARRIVED]).items() if end]
    conn.execute("INSERT INTO consumer_offset VALUES ('intake', %s, %s, 2)", place)
    result = JOBS["prune"].work(Services(Settings(), database), conn)
    assert isinstance(result, PruneResult)
    assert (result.shadow_queries, result.generations) == (0, ())
    # Two were read and are old; the third is old and was not read. Of indexed images nobody has to
    # read the events.
    assert (result.events[ARRIVED], result.events[INDEXED]) == (2, 3)
    assert [event.offset for event in log.read(*place)] == [2, 3]
    log.close()


@pytest.mark.timeout(300)
def test_leaders_that_are_killed_leave_every_window_run_once(
    conn: Connection, database: str, tmp_path: Path
) -> None:
    conn.execute("CREATE TABLE noted (id bigint GENERATED ALWAYS AS IDENTITY, process int)")

    def start() -> "subprocess.Popen[bytes]":
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.integration.scheduler_process", database],
                stdout=log,
                stderr=log,
            )

    processes = {}
    for _ in range(3):
        process = start()
        processes[process.pid] = process
    gaps = []
    try:
        for _ in range(KILLS):
            leader = _leader(conn, processes)
            time.sleep(1.5 * EVERY_S)
            until(lambda: job_is_claimed(conn, "dawdle"))
            victim = processes.pop(leader)
            victim.kill()
            victim.wait(30)
            killed = time.monotonic()
            fresh = start()
            processes[fresh.pid] = fresh
            _leader(conn, processes)
            gaps.append(time.monotonic() - killed)
        time.sleep(2 * EVERY_S)
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    print("takeovers", [f"{gap:.1f} s" for gap in gaps])
    runs = {name: job_runs(conn, name, limit=1000) for name in ("note", "dawdle")}
    for name, own in runs.items():
        windows = sorted(run.run_window for run in own)
        assert windows == list(range(windows[0], windows[-1] + 1, PERIODS_S[name]))
        # The last kill may have met a run in the middle; all others are done, each with one row.
        assert sum(run.outcome != "done" for run in own) <= 1
    # Leaders died in the middle of the long job; its runs were begun again.
    assert any(run.attempt > 1 for run in runs["dawdle"])
    noted = conn.execute("SELECT count(*) FROM noted").fetchone()
    assert noted is not None
    assert (
        sum(run.outcome == "done" for run in runs["note"])
        <= noted[0]
        <= sum(run.attempt for run in runs["note"])
    )


def test_a_long_job_does_not_hold_up_a_short_one_and_an_alarm_starts_its_job(
    conn: Connection, database: str
) -> None:
    release = threading.Event()
    alarms = [open_alarm(7, "confidence", "page"), open_alarm(8, "leaf", "ticket")]

    def wait(services: Services, conn: Connection) -> Figures:
        return Figures({"released": release.wait(60)})

    jobs = {
        "slow": Job("slow", "", wait, on_alarm=frozenset({"page"})),
        "quick": Job("quick", "", quick, Schedule("every 1")),
        "leaf": Job("leaf", "", quick, on_alarm=frozenset({"leaf"})),
        "idle": Job("idle", "", quick, on_alarm=frozenset({"suffix"})),
    }
    services = Services(Settings(), database)
    scheduler = Scheduler(services, jobs, find_alarms=lambda conn: alarms)
    scheduler.start()
    try:
        until(lambda: [run.cause for run in job_runs(conn, "slow")] == [{"alarms": [7]}])
        until(lambda: [run.cause for run in job_runs(conn, "leaf")] == [{"alarms": [8]}])
        since = len(job_runs(conn, "quick"))
        until(lambda: len(job_runs(conn, "quick")) >= since + 2)
        assert [run.outcome for run in job_runs(conn, "slow")] == ["running"]
        # The long job is running, so nobody else may run it; any other may be run by hand.
        with connect(database) as other:
            assert not claim_job(other, "slow")
            # Not at the very moment when the scheduler looks whether it has something to do.
            until(lambda: claim_job(other, "leaf"))
        release.set()
        until(lambda: [run.outcome for run in job_runs(conn, "slow")] == ["done"])
    finally:
        release.set()
        closing = time.monotonic()
        scheduler.close()
    assert time.monotonic() - closing < 30
    assert [run.cause for run in job_runs(conn, "leaf")] == [{"alarms": [8]}]
    assert job_runs(conn, "idle") == []
    # The lead is free as soon as the server has seen the closed connection.
    until(lambda: claim_scheduler(conn))


def test_two_schedulers_of_one_process_share_nothing(conn: Connection, database: str) -> None:
    services = Services(Settings(), database)
    first = Scheduler(services, {"first": Job("first", "", quick, Schedule("every 1"))})
    second = Scheduler(services, {"second": Job("second", "", quick, Schedule("every 1"))})
    first.start()
    try:
        until(lambda: is_done(conn, "first"))
        second.start()
        first.close()
        until(lambda: is_done(conn, "second"))
        stopped = len(job_runs(conn, "first"))
        since = len(job_runs(conn, "second"))
        until(lambda: len(job_runs(conn, "second")) >= since + 2)
        assert len(job_runs(conn, "first")) == stopped
    finally:
        first.close()
        second.close()


def test_what_is_no_job_any_more_leaves_the_store(conn: Connection, database: str) -> None:
    def stored_after_running(jobs: dict[str, Job]) -> list[str]:
        scheduler = Scheduler(Services(Settings(), database), jobs)
        scheduler.start()
        until(lambda: all(is_done(conn, name) for name in jobs))
        scheduler.close()
        return sorted(name for (name,) in conn.execute("SELECT id FROM scheduler_job"))

    both = {name: Job(name, "", quick, Schedule("every 3600")) for name in ("stays", "goes")}
    assert stored_after_running(both) == ["goes", "stays"]
    conn.execute("DELETE FROM job_run")
    conn.execute("UPDATE job_schedule SET after_window = after_window - 1")
    assert stored_after_running({"stays": both["stays"]}) == ["stays"]


def quick(services: Services, conn: Connection) -> Figures:
    """A job's work."""
    return Figures({})


def is_done(conn: Connection, job: str) -> bool:
    return any(run.outcome == "done" for run in job_runs(conn, job))


def open_alarm(number: int, monitor: str, level: str) -> Alarm:
    """An open alarm, as monitors raise it."""
    return Alarm(number, 1, monitor, level, 0.3, 0.2, 1e-9, 1e-5, {}, datetime.now(UTC), None)


def until(met: Callable[[], bool], timeout_s: float = 30) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)


def _leader(
    conn: Connection, processes: "dict[int, subprocess.Popen[bytes]]", timeout_s: float = 60
) -> int:
    """The living process that ran the job last, after now."""
    before = conn.execute("SELECT coalesce(max(id), 0) FROM noted").fetchone()
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = conn.execute(
            "SELECT process FROM noted WHERE id > %s ORDER BY id DESC LIMIT 1", before
        ).fetchone()
        if found is not None and found[0] in processes:
            return int(found[0])
        time.sleep(0.05)
    raise AssertionError("nobody leads")
