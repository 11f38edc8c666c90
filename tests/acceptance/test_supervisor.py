"""What runs on one machine: killed processes, numbers that are used again, two starts at once."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psycopg
import pytest

from model.network.profiles import profile
from ops.embedded.database import EmbeddedDatabase, open_services
from ops.embedded.home import home_mark
from ops.embedded.process_alarms import process_alarms
from ops.embedded.process_identity import ProcessIdentity
from ops.embedded.supervisor_record import SupervisorRecord, WorkerRecord
from ops.scenes.corpus import CorpusConfig, generate
from schemas.settings import Settings
from tests.acceptance.conftest import Home, watched
from workers.repository import generations

ROLES = {"intake", "index", "query", "scheduler"}


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Home]:
    """A home without a generation; what runs in it is stopped at the end."""
    made = Home(tmp_path / "empty")
    yield made
    made.sigma("down")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home without a generation, all processes up, for tests after which they are up again."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("running") / "home"
    made = Home(folder, {"SIGMA_METRICS_PORT": str(port)})
    made.ok("up")
    yield made
    made.sigma("down")


def workers_of(home: Home) -> dict[str, list[int]]:
    """The numbers of the worker processes of a home, by role."""
    found: dict[str, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and ProcessIdentity.of(int(folder.name)) is not None:
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"worker" in words and f"SIGMA_HOME={home.folder}".encode() in environment:
                role = words[words.index(b"worker") + 1].decode()
                found.setdefault(role, []).append(int(folder.name))
    return found


def postgres_of(home: Home) -> int | None:
    """The number of the PostgreSQL of a home, None when none runs."""
    try:
        lines = (home.folder / "postgres" / "postmaster.pid").read_text().splitlines()
    except OSError:
        return None
    return int(lines[0]) if ProcessIdentity.of(int(lines[0])) is not None else None


def wait_until(true: Callable[[], bool], timeout_s: float = 30.0) -> float:
    """Wait for a condition; return the seconds that it took."""
    begin = time.monotonic()
    while not true():
        assert time.monotonic() - begin < timeout_s, "it did not come true in time"
        time.sleep(0.05)
    return time.monotonic() - begin


def listening(port: int) -> socket.socket:
    """Take a port as soon as the process that had it has ended, with all its threads."""
    found: list[socket.socket] = []

    def take() -> bool:
        with suppress(OSError):
            found.append(socket.create_server(("127.0.0.1", port)))
        return bool(found)

    wait_until(take)
    return found[0]


def test_after_kill_9_of_the_supervisor_an_alarm_says_so_nothing_serves_on_and_up_starts_one_fleet(
    empty: Home,
) -> None:
    pid = empty.ok("up")["pid"]
    assert {role: len(pids) for role, pids in workers_of(empty).items()} == dict.fromkeys(ROLES, 1)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not workers_of(empty) and postgres_of(empty) is None)
    assert any("the supervisor was killed" in one for one in empty.ok("status")["alarms"])
    again = empty.ok("up")["pid"]
    assert again != pid
    assert {role: len(pids) for role, pids in workers_of(empty).items()} == dict.fromkeys(ROLES, 1)
    # A stopped process notices nothing, and the one that would kill it is gone.
    (stuck,) = workers_of(empty)["intake"]
    os.kill(stuck, signal.SIGSTOP)
    os.kill(again, signal.SIGKILL)
    assert empty.ok("down") == {"stopped": True}
    assert workers_of(empty) == {}
    assert postgres_of(empty) is None
    assert empty.ok("down") == {"stopped": False}
    assert not any("supervisor" in one for one in empty.ok("status")["alarms"])


def test_postgresql_killed_with_9_comes_back_and_the_workers_go_on(running: Home) -> None:
    before, killed = workers_of(running), postgres_of(running)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    settings = Settings(home=running.folder)
    took_s = wait_until(lambda: postgres_of(running) not in (None, killed))
    assert took_s < 15
    with open_services(settings) as services, services.connect("test") as conn:

        def connected() -> set[str]:
            rows = conn.execute("SELECT DISTINCT application_name FROM pg_stat_activity")
            return {name for (name,) in rows}

        wait_until(lambda: {"sigma intake", "sigma index"} <= connected())
    assert workers_of(running) == before


def test_a_client_killed_with_9_leaves_no_database_running(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    program = (
        "import sys, time, pathlib; from schemas.settings import Settings;"
        "from ops.embedded.database import start_database;"
        "used = start_database(Settings(home=pathlib.Path(sys.argv[1])));"
        "print('used', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(home.folder)], stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "used\n"
        assert postgres_of(home) is not None
        client.kill()
    wait_until(lambda: postgres_of(home) is None)


def test_a_killed_keeper_takes_its_postgresql_along_and_the_supervisor_starts_both_again(
    running: Home,
) -> None:
    keeper = json.loads((running.folder / "run" / "postgres.lock").read_text())["pid"]
    killed = postgres_of(running)
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: postgres_of(running) not in (None, killed))
    assert running.ok("status")["url"]


def test_down_never_kills_a_process_that_only_has_the_number_of_ours(empty: Home) -> None:
    empty.ok("init")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        gone = ProcessIdentity(stranger.pid, 1.0)
        record = SupervisorRecord(
            gone, "127.0.0.1", 1, home_mark(empty.folder), (WorkerRecord("intake", gone),)
        )
        record.write(empty.folder)
        assert empty.ok("down") == {"stopped": False}
        assert stranger.poll() is None
        # As older versions wrote it: a number and nothing that would tell whose it is.
        old = {"pid": stranger.pid, "host": "127.0.0.1", "port": 1}
        (empty.folder / "run" / "supervisor.json").write_text(json.dumps(old))
        assert empty.ok("down") == {"stopped": False}
        assert stranger.poll() is None
        stranger.kill()


def test_down_in_a_copy_of_a_home_leaves_the_original_alone(running: Home, tmp_path: Path) -> None:
    before = workers_of(running)
    copy = Home(tmp_path / "copy")
    subprocess.run(["cp", "-a", str(running.folder), str(copy.folder)], check=True)
    assert copy.ok("down") == {"stopped": False}
    assert copy.ok("status")["url"] is None
    assert workers_of(running) == before
    assert postgres_of(running) is not None


def test_two_who_start_at_once_get_the_same_processes_as_later_ones_and_down_leaves_none_behind(
    empty: Home,
) -> None:
    command = [sys.executable, "-m", "ops.cli", "up", "--json"]
    started = [
        subprocess.Popen(command, env=empty.environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=240)[0]) for process in started]
    assert answers[0] == answers[1]
    assert empty.ok("up") == answers[0]
    assert {role: len(pids) for role, pids in workers_of(empty).items()} == dict.fromkeys(ROLES, 1)
    with open_services(Settings(home=empty.folder)) as found, found.connect("test") as conn:
        names = {name for (name,) in conn.execute("SELECT application_name FROM pg_stat_activity")}
    assert {"sigma consumer intake", "sigma consumer index"} <= names, (
        "arrivals are taken as soon as it returns"
    )
    os.kill(workers_of(empty)["query"][0], signal.SIGKILL)
    # The supervisor keeps the port: until the next worker answers, a query waits.
    alive = httpx.get(f"{answers[0]['url']}/healthz", timeout=100)
    assert alive.json() == {"alive": True}
    assert empty.ok("down") == {"stopped": True}
    assert empty.ok("down") == {"stopped": False}
    assert workers_of(empty) == {}


def test_a_postgresql_that_lets_everybody_in_is_replaced_by_one_that_does_not(
    tmp_path: Path,
) -> None:
    settings = Settings(home=tmp_path / "home")
    database = EmbeddedDatabase(settings)
    database.start()
    database.close()
    rules = database.data / "pg_hba.conf"
    rules.write_text("local all all trust\n")
    database.start()
    assert "trust" not in rules.read_text()
    with psycopg.connect(database.url) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    database.close()


def test_without_a_generation_each_command_says_what_is_missing_and_what_to_do(
    running: Home, tmp_path: Path
) -> None:
    started = running.sigma("up")
    assert started.code == 0
    assert "running, but no generation is live" in started.out
    assert "sigma train --manifest F" in started.out
    generate(CorpusConfig(4, seed=5), tmp_path / "four", "train", lambda _: None)
    images = sorted((tmp_path / "four").rglob("*.png"))
    assert len(images) == 4
    # A letter that is of no image, and images that wait for a generation.
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    running.ok("ingest", *images, broken)
    with watched(running) as status:
        wait_until(lambda: bool(status()["images"]["pending"] == 4), 60)
    found = running.ok("status")
    assert found["lag"] == {"intake": 0, "outbox": 0, "index": 0, "generation": 4}
    assert found["dead_letters"] == 1
    assert any(alarm.startswith("no generation is live") for alarm in found["alarms"])
    text = running.sigma("status", "--check")
    assert text.code == 1
    assert "None" not in text.out
    assert "4 waiting" in text.out
    begin = time.monotonic()
    waited = running.sigma("ingest", *images, "--wait")
    assert time.monotonic() - begin < 45
    assert waited.code == 2
    assert "no generation is live" in waited.err
    assert "sigma train --manifest F" in waited.err
    assert httpx.post(f"{found['url']}/v1/query", json={"query": "a"}).status_code == 503
    # After a training that failed they say why.
    reason = "stage align: R@10 must be at least 0.104, got 0.050"
    with open_services(Settings(home=running.folder)) as services, services.connect("test") as conn:
        number = generations.create_generation(conn, profile("tiny").shape)
        generations.update(conn, number, failure=[reason])
        generations.set_state(conn, number, "failed")
    assert reason in running.sigma("up").out
    assert reason in running.sigma("ingest", *images, "--wait").err
    unwaited = running.sigma("ingest", *images)
    assert unwaited.code == 0
    assert reason in unwaited.out


def test_a_worker_that_dies_again_and_again_is_named_with_its_last_error(running: Home) -> None:
    port = int(running.services["SIGMA_METRICS_PORT"])
    supervisor = running.ok("up")["pid"]
    (index,) = workers_of(running)["index"]
    # It must not be quicker than this test, which takes the index worker's port: the second one.
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(index, signal.SIGKILL)
        taken = listening(port + 1)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    with taken:

        def told() -> bool:
            alarms = process_alarms(Settings(home=running.folder), is_live=False)
            return any("the index worker died" in one and "in use" in one for one in alarms)

        wait_until(told, 90)
        checked = running.sigma("status", "--check", "--json")
        assert checked.code == 1
        assert any("index.log" in alarm for alarm in checked.json["alarms"])
    wait_until(lambda: "index" in workers_of(running))


def test_up_tells_at_once_which_worker_cannot_start_and_why(empty: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        begin = time.monotonic()
        started = Home(empty.folder, {"SIGMA_METRICS_PORT": port}).sigma("up", timeout=280)
        assert time.monotonic() - begin < 200
    assert started.code == 1
    assert "the intake worker dies" in started.err
    assert "in use" in started.err
    assert "Traceback" not in started.err
    wait_until(lambda: not workers_of(empty), 60)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 400 megabytes."""
    with tempfile.TemporaryDirectory(prefix="sigma-test-") as name:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400m,mode=755", "tmpfs", name], check=False
        )
        if mounted.returncode:
            pytest.skip("only root can make a disk that is small")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


def fill(file: Path) -> None:
    """Write until the disk is full, down to the last byte."""
    for size in (1 << 20, 4096, 1):
        # Unbuffered: what is not written is not kept for later.
        with file.open("ab", buffering=0) as out, suppress(OSError):
            while out.write(bytes(size)) == size:
                pass


def test_a_full_disk_stops_nothing_for_good_and_all_comes_back_with_the_space(
    small_disk: Path, tmp_path: Path
) -> None:
    home = Home(small_disk / "home")
    pid = home.ok("up")["pid"]
    filler = small_disk / "filler"
    try:
        fill(filler)
        # Nothing that they say can be written any more, and they end of other reasons, too.
        for pids in workers_of(home).values():
            os.kill(pids[0], signal.SIGKILL)
        killed = postgres_of(home)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        # Long enough for several starts to fail.
        time.sleep(15)
        told = home.sigma("status")
        assert "Traceback" not in told.err
        assert ProcessIdentity.of(pid) is not None
        filler.unlink()
        assert wait_until(lambda: set(workers_of(home)) == ROLES) < 15
        generate(CorpusConfig(3, seed=5), tmp_path / "three", "train", lambda _: None)
        home.ok("ingest", *sorted((tmp_path / "three").rglob("*.png")))
        with watched(home) as status:
            wait_until(lambda: bool(status()["lag"]["generation"] == 3), 90)
        assert home.ok("status")["url"]
        assert home.ok("up")["pid"] == pid
    finally:
        filler.unlink(missing_ok=True)
        home.sigma("down")


def test_down_stops_processes_that_are_still_starting(empty: Home) -> None:
    lock = empty.folder / "run" / "supervisor.lock"
    command = [sys.executable, "-m", "ops.cli", "up", "--foreground"]
    with subprocess.Popen(command, env=empty.environment()) as starting:
        wait_until(lambda: lock.exists() and lock.read_text() != "", 60)
        assert empty.ok("down")["stopped"]
        assert starting.wait(60) is not None
    wait_until(lambda: not workers_of(empty) and postgres_of(empty) is None)
