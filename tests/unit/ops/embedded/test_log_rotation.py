"""Logs are bounded while their processes write on."""

import subprocess
import sys
from pathlib import Path

from ops.embedded.log_rotation import KEPT_LOGS, LogRotation, rotate


def test_a_log_that_grows_is_set_aside_and_its_process_writes_on_into_the_same_file(
    tmp_path: Path,
) -> None:
    log_file = tmp_path / "query.log"
    with log_file.open("ab") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys\nfor line in sys.stdin: print(line, end='', flush=True)",
            ],
            stdin=subprocess.PIPE,
            stdout=file,
            text=True,
        )
    assert process.stdin is not None
    for turn in range(KEPT_LOGS + 3):
        process.stdin.write(f"{turn}" * 200 + "\n")
        process.stdin.flush()
        while log_file.stat().st_size < 200:
            pass
        rotate(log_file, limit=100)
        assert log_file.stat().st_size == 0
    process.stdin.write("the last line\n")
    process.stdin.close()
    assert process.wait(30) == 0
    assert log_file.read_text() == "the last line\n"
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["query.log", "query.log.1", "query.log.2"]
    newest = f"{KEPT_LOGS + 2}"
    assert (tmp_path / "query.log.1").read_text() == newest * 200 + "\n"


def test_a_small_log_stays_and_one_that_vanishes_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "index.log").write_text("a line\n")
    LogRotation(tmp_path).step()
    assert (tmp_path / "index.log").read_text() == "a line\n"
    LogRotation(tmp_path / "nowhere").step()
