"""Jobs: each window runs once, whoever leads and whoever dies; nothing that was missed vanishes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ops.jobs import JOBS, Job, job, perform
from schemas.errors import UsageError, WorkFailedError
from schemas.events import ARRIVED, INDEXED
from schemas.settings import Settings
from stream.log import Message
from stream.postgres_log import PostgresLog
from tests.integration.scheduler_process import EVERY_S
from workers.repository.connection import Connection, connect
from workers.repository.jobs import BACKLOG, begin, begin_by_hand, end, hold, job_runs, lead, release
from workers.services import Services

KILLS = int(os.environ.get("SIGMA_TEST_LEADER_KILLS", "3"))


def test_a_window_is_begun_once_and_again_only_if_its_process_died(conn: Connection) -> None:
    first = begin(conn, "j", 10.0, now=1005.0)
    assert first is not None
    # Still marked as running, and whoever asks holds the job: its process must be gone.
    assert begin(conn, "j", 10.0, now=1006.0) == first
    end(conn, first, "done", {"n": 1})
    assert begin(conn, "j", 10.0, now=1009.0) is None
    assert [(one.window, one.attempt, one.outcome) for one in job_runs(conn)] == [(100, 2, "done")]


def test_missed_windows_are_made_up_for_in_order_and_older_ones_recorded_as_skipped(conn: Connection) -> None:
    number = begin(conn, "j", 10.0, now=0.0)
    assert number is not None
    end(conn, number, "done", {})
    now = (BACKLOG + 5) * 10.0
    while (number := begin(conn, "j", 10.0, now=now)) is not None:
        end(conn, number, "done", {})
    found = {one.window: one.outcome for one in job_runs(conn, limit=1000)}
    assert sorted(found) == list(range(BACKLOG + 6))
    assert [window for window, outcome in found.items() if outcome == "skipped"] == sorted(
        (window for window, outcome in found.items() if outcome == "skipped"), reverse=True
    )
    assert sum(outcome == "skipped" for outcome in found.values()) == 5


def test_only_one_leads_and_only_one_holds_a_job(conn: Connection, database: str) -> None:
    assert lead(conn)
    assert hold(conn, "j")
    with connect(database) as other:
        assert not lead(other)
        assert not hold(other, "j")
        release(conn, "j")
        assert hold(other, "j")


def test_a_failure_is_recorded_with_its_reason(conn: Connection, database: str) -> None:
    def fail(services: Services, conn: Connection) -> dict[str, object]:
        raise WorkFailedError("no room")

    broken = Job("broken", 10.0, "fails", fail)
    with pytest.raises(WorkFailedError):
        perform(Services(Settings(), database), conn, broken, begin_by_hand(conn, "broken"))
    (found,) = job_runs(conn, "broken")
    assert (found.outcome, found.figures, found.window) == ("failed", {"error": "no room"}, -1)
    with pytest.raises(UsageError, match="recall-probe"):
        job("nothing")


def test_pruning_forgets_old_events_that_all_have_read(conn: Connection, database: str) -> None:
    log = PostgresLog(database)
    log.ensure_topics()
    log.publish(None, [Message(topic, "same", b"") for topic in (ARRIVED, INDEXED) for _ in range(4)])
    conn.execute("UPDATE log_event SET published_at = now() - interval '40 days' WHERE \"offset\" < 3")
    ((place, _),) = [(place, end) for place, end in log.end_offsets([ARRIVED]).items() if end]
    conn.execute("INSERT INTO consumer_offset VALUES ('intake', %s, %s, 2)", place)
    figures = JOBS["prune"].work(Services(Settings(), database), conn)
    # Two were read and are old; the third is old and was not read. Nobody has to read what was indexed.
    assert (figures[ARRIVED], figures[INDEXED]) == (2, 3)
    assert [event.offset for event in log.read(*place)] == [2, 3]
    log.close()


@pytest.mark.timeout(300)
def test_leaders_that_are_killed_leave_every_window_run_once(conn: Connection, database: str, tmp_path: Path) -> None:
    conn.execute("CREATE TABLE noted (id bigint GENERATED ALWAYS AS IDENTITY, process int)")

    def start() -> "subprocess.Popen[bytes]":
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", "tests.integration.scheduler_process", database], stdout=log, stderr=log)

    processes = {one.pid: one for one in (start() for _ in range(3))}
    gaps = []
    try:
        for _ in range(KILLS):
            leader = _leader(conn, processes)
            time.sleep(1.5 * EVERY_S)
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
        for one in processes.values():
            one.send_signal(signal.SIGKILL)
            one.wait(30)
    print("takeovers", [f"{gap:.1f} s" for gap in gaps])
    runs = job_runs(conn, "note", limit=1000)
    windows = sorted(one.window for one in runs)
    assert windows == list(range(windows[0], windows[-1] + 1))
    # The last kill may have met a run in the middle; all others are done, and each left one row.
    unfinished = sum(one.outcome != "done" for one in runs)
    assert unfinished <= 1
    noted = conn.execute("SELECT count(*) FROM noted").fetchone()
    assert noted is not None
    attempts = sum(one.attempt for one in runs)
    assert len(runs) - unfinished <= noted[0] <= attempts


def _leader(conn: Connection, processes: "dict[int, subprocess.Popen[bytes]]", timeout_s: float = 60) -> int:
    """The process that ran the job last, once it is one that lives and ran after now."""
    before = conn.execute("SELECT coalesce(max(id), 0) FROM noted").fetchone()
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = conn.execute("SELECT process FROM noted WHERE id > %s ORDER BY id DESC LIMIT 1", before).fetchone()
        if found is not None and found[0] in processes:
            return int(found[0])
        time.sleep(0.05)
    raise AssertionError("nobody leads")
