"""Process alarms: which deaths of workers are told, and what is said of them."""

import json
from pathlib import Path

import pytest

from ops.embedded.home import home_mark
from ops.embedded.log_tail import last_error
from ops.embedded.process_alarms import worker_alarms
from ops.embedded.process_identity import ProcessIdentity
from ops.embedded.supervised_worker import DEATHS_KEPT_S
from ops.embedded.supervisor_record import SupervisorRecord, WorkerRecord, record_file

NOW = 1_000_000.0
RUNS = ProcessIdentity(7, 1.0)


def record(*ages_s: float, process: ProcessIdentity | None = RUNS) -> WorkerRecord:
    deaths = tuple(NOW - age for age in ages_s)
    return WorkerRecord("index", process, deaths, "exit code 1: no memory", "/home/logs/index.log")


def test_one_death_long_mended_is_nothing_to_do() -> None:
    assert worker_alarms(record(), NOW) == []
    assert worker_alarms(record(5), NOW) == []
    assert worker_alarms(record(DEATHS_KEPT_S + 2, DEATHS_KEPT_S + 1), NOW) == []
    # A clock that was set back, or another one: never "-3600 s ago".
    assert worker_alarms(record(-3600, -3601), NOW) == []


def test_a_worker_that_died_twice_or_does_not_run_is_named_with_its_last_error() -> None:
    (twice,) = worker_alarms(record(60, 5), NOW)
    assert "index worker died 2 times in the last 10 minutes, last 5 s ago" in twice
    assert "exit code 1: no memory" in twice
    assert "/home/logs/index.log" in twice
    (down,) = worker_alarms(record(5, process=None), NOW)
    assert "died once in the last 10 minutes, and is started again" in down


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], None),
        (["sigma: the port is taken"], "sigma: the port is taken"),
        (["Traceback (most recent call last):", "  x", "KeyError: 'a'"], "KeyError: 'a'"),
        (
            [
                json.dumps({"event": "a thread died", "level": "critical", "reason": "no memory"}),
                json.dumps({"event": "stopping", "level": "info"}),
            ],
            "a thread died: no memory",
        ),
        (
            [
                json.dumps(
                    {"event": "failed", "level": "error", "exception": "Trace\nOSError: full"}
                )
            ],
            "failed: OSError: full",
        ),
        (["\x1b[31mred\x07"], "[31mred"),
        (["x" * 100_000], "x" * 500),
    ],
)
def test_the_last_error_of_a_log_is_found(
    tmp_path: Path, lines: list[str], found: str | None
) -> None:
    log = tmp_path / "log"
    log.write_text("an older run: not this one\n")
    begin = log.stat().st_size
    with log.open("a") as file:
        file.write("\n".join(lines))
    assert last_error(log, begin) == found


def test_a_record_with_a_flipped_byte_is_none(tmp_path: Path) -> None:
    written = SupervisorRecord(RUNS, "127.0.0.1", 8631, home_mark(tmp_path), (record(60),))
    (tmp_path / "run").mkdir()
    written.write(tmp_path)
    assert SupervisorRecord.of_home(tmp_path) == written
    file = record_file(tmp_path)
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert SupervisorRecord.of_home(tmp_path) is None


def test_a_log_that_was_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("MemoryError\n")
    assert last_error(log, since=10_000) == "MemoryError"
    assert last_error(tmp_path / "none") is None
