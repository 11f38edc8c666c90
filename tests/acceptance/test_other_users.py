"""Other accounts of one machine: their homes, ours, copies of ours, and what they cannot reach."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from ops.embedded.database import start_database
from ops.embedded.socket_folder import SOCKET_NAME
from schemas.settings import Settings
from tests.acceptance.conftest import Home

ROOT = Path(__file__).resolve().parents[2]

OTHER = "nobody"

# Where this Python is in somebody's own folder, one like it that every account may use.
PYTHON = os.environ.get("SIGMA_TEST_SHARED_PYTHON", sys.executable)
PACKAGES = sysconfig.get_path("purelib")


def as_other(
    program: str, *arguments: str, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    """Run Python as the other account."""
    return subprocess.run(
        [PYTHON, "-c", program, *arguments],
        user=OTHER,
        group=pwd.getpwnam(OTHER).pw_gid,
        extra_groups=[],
        cwd="/",
        env={
            "PYTHONPATH": f"{ROOT}:{PACKAGES}",
            "PATH": os.defpath,
            "HOME": "/nonexistent",
            "LD_LIBRARY_PATH": str(Path(PYTHON).parents[1] / "lib"),
        },
        capture_output=True,
        text=True,
        check=check,
        timeout=240,
    )


def sigma_as_other(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line as the other account."""
    program = (
        "import os, sys; os.environ['SIGMA_HOME'] = sys.argv[1];"
        "from ops.cli.main import main; sys.exit(main(sys.argv[2:]))"
    )
    return as_other(program, str(home), *arguments, check=False)


@pytest.fixture(scope="module")
def other() -> str:
    """The name of another account that reaches this program, which only root can act as."""
    try:
        done = as_other("import ops", check=False)
    except OSError as error:
        pytest.skip(f"another account does not reach this Python: {error}")
    if done.returncode:
        pytest.skip(f"another account does not reach this program: {done.stderr[-200:]}")
    return OTHER


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every account may enter."""
    with tempfile.TemporaryDirectory(prefix="sigma-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def given_to_other(folder: Path) -> Path:
    """Create a folder of the other account."""
    folder.mkdir()
    shutil.chown(folder, OTHER)
    return folder


@pytest.mark.parametrize("depth", [1, 5, 30])
def test_the_socket_is_in_a_private_folder_however_long_the_path_of_the_home_is(
    shared: Path, depth: int
) -> None:
    home = shared.joinpath(*["a folder, with 'odd' letters"] * depth)
    database = start_database(Settings(home=home))
    try:
        (place,) = parse_qs(urlsplit(database.url).query)["host"]
        status = Path(place).stat()
        assert stat.S_ISDIR(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert (Path(place) / SOCKET_NAME).is_socket()
        assert len(str(Path(place) / SOCKET_NAME)) < 104
        rules = (database.data / "pg_hba.conf").read_text()
        assert "trust" not in rules
        again = start_database(Settings(home=home))
        assert again.url == database.url
        again.close()
    finally:
        database.close()


def test_another_account_cannot_sign_in_even_where_it_reaches_the_socket(
    shared: Path, other: str
) -> None:
    database = start_database(Settings(home=shared / "home"))
    attempt = "import sys, psycopg; psycopg.connect(sys.argv[1])"
    try:
        done = as_other(attempt, database.url, check=False)
        assert "Permission denied" in done.stderr
        # Not even with the folder and the socket open to all.
        (place,) = parse_qs(urlsplit(database.url).query)["host"]
        Path(place).chmod(0o755)
        (Path(place) / SOCKET_NAME).chmod(0o777)
        done = as_other(attempt, database.url, check=False)
        assert done.returncode
        assert "eer authentication failed" in done.stderr
    finally:
        database.close()


def test_a_second_account_has_a_home_of_its_own(shared: Path, other: str) -> None:
    # What a library of an earlier version left in the temporary folder.
    own = start_database(Settings(home=shared / "ours"))
    try:
        home = given_to_other(shared / "theirs") / "home"
        done = sigma_as_other(home, "status", "--json")
        assert done.returncode == 0, done.stderr
        assert home.stat().st_uid == pwd.getpwnam(other).pw_uid
    finally:
        own.close()


def test_a_home_that_belongs_to_somebody_else_or_cannot_be_written_is_one_sentence(
    shared: Path, other: str
) -> None:
    database = start_database(Settings(home=shared / "ours"))
    database.close()
    copies = given_to_other(shared / "copies")
    # Copied whole by somebody who may keep the owner, entered by somebody else.
    subprocess.run(["cp", "-a", str(shared / "ours"), str(copies / "whole")], check=True)
    subprocess.run(["cp", "-a", str(shared / "ours"), str(copies / "mixed")], check=True)
    shutil.chown(copies / "mixed", OTHER)
    shutil.rmtree(copies / "mixed" / "run")
    locked = given_to_other(shared / "locked")
    locked.chmod(0o500)
    for home in (shared / "ours", copies / "whole", copies / "mixed", locked, locked / "below"):
        for arguments in (("status",), ("up",), ("query", "a circle")):
            done = sigma_as_other(home, *arguments)
            assert done.returncode == 2, (home, done.stderr)
            assert "Traceback" not in done.stderr
            *_, line = done.stderr.splitlines()
            assert line.startswith("sigma: "), done.stderr
            assert "SIGMA_HOME" in line
            assert str(home) in line
    # A copy that belongs to whoever made it works.
    shutil.copytree(
        shared / "ours", copies / "good", ignore=shutil.ignore_patterns("run"), symlinks=True
    )
    subprocess.run(["chown", "-R", other, str(copies / "good")], check=True)
    done = sigma_as_other(copies / "good", "status")
    assert done.returncode == 0, done.stderr


def test_a_backup_that_another_account_made_is_restored_by_whom_it_was_given_to(
    shared: Path, other: str
) -> None:
    ours = Home(shared / "ours")
    ours.ok("init")
    ours.ok("backup", shared / "saved")
    home = given_to_other(shared / "theirs") / "home"
    done = sigma_as_other(home, "restore", str(shared / "saved"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("sigma: ")
    assert "Permission denied" in done.stderr
    subprocess.run(["chown", "-R", other, str(shared / "saved")], check=True)
    done = sigma_as_other(home, "restore", str(shared / "saved"))
    assert done.returncode == 0, done.stderr
    done = sigma_as_other(home, "status", "--json")
    assert done.returncode == 0, done.stderr
    assert home.stat().st_uid == pwd.getpwnam(other).pw_uid
