"""One running fleet in trouble: locks, floods, processes that hang, a dead database, flipped bytes.

After each nothing is lost or doubled, and all is well again without a hand.
"""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from ops.embedded.database import open_services
from schemas.settings import Settings
from stream.lease import LEASE_S, is_held
from tests.acceptance.conftest import Home, copied, watched
from tests.acceptance.test_supervisor import postgres_of, wait_until, workers_of
from workers.api.queries import ANSWER_S
from workers.repository import generations
from workers.repository.counters import recount, totals

BACK_S = 15
"""Seconds within which all is well after the cause has ended."""

HUNG_S = LEASE_S + 2
"""Seconds that a process hangs: longer than its leases last. No other limit is between this and a
minute."""

LOCK_S = max(ANSWER_S + 2, float(os.environ.get("SIGMA_TEST_OUTAGE_S", "0")))
"""Seconds that a table is locked: longer than a query waits for its answer, 30 for the full
measure."""

HALF_OPEN = 1300

Pictures = Iterator[Path]


@pytest.fixture(scope="module")
def fleet(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A copy of the trained home, all processes up."""
    home = copied(trained, tmp_path_factory.mktemp("faults") / "home", {})
    home.ok("up")
    yield home
    home.sigma("down")
    shutil.rmtree(home.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def pictures(corpus: Path) -> Pictures:
    """Pictures that did not arrive yet."""
    return iter(sorted((corpus / "stream").rglob("*.png")))


@contextmanager
def database(home: Home) -> Iterator[psycopg.Connection]:
    """A connection to the database of a home."""
    with open_services(Settings(home=home.folder)) as services, services.connect("test") as conn:
        yield conn


def url_of(home: Home) -> str:
    """Where the query worker listens."""
    record = json.loads((home.folder / "run" / "supervisor.json").read_text())
    return f"http://{record['host']}:{record['port']}"


def ask(home: Home, text: str, timeout_s: float = 30.0) -> int:
    """The status of one query's answer; 0 without an answer."""
    try:
        body = {"query": text}
        return httpx.post(f"{url_of(home)}/v1/query", json=body, timeout=timeout_s).status_code
    except httpx.HTTPError:
        return 0


def problem_of(home: Home) -> str:
    """What the query worker says it cannot answer for; empty when it says nothing."""
    with suppress(httpx.HTTPError, OSError):
        return str(httpx.get(f"{url_of(home)}/readyz", timeout=5).json()["problem"])
    return ""


def searchable(home: Home) -> int:
    """How many images the query worker can find; -1 when it does not say."""
    with suppress(httpx.HTTPError):
        text = httpx.get(f"{url_of(home)}/metrics", timeout=5).text
        return int(float(re.findall(r"^sigma_trie_images (\S+)$", text, re.MULTILINE)[0]))
    return -1


def indexed(home: Home) -> int:
    """How many images the database holds, each once, with the checksum that belongs to them."""
    with database(home) as conn:
        live = generations.live(conn)
        assert live is not None
        counted = totals(conn, live.id)
        again = recount(conn, live.id)
        assert (counted.images, counted.checksum) == (again.images, again.checksum)
        return counted.images


def send(home: Home, pictures: Pictures, count: int) -> None:
    """Publish pictures and do not wait for them."""
    sent = home.ok("ingest", *[next(pictures) for _ in range(count)])
    assert sent["published"] == count


def await_images(home: Home, count: int) -> float:
    """Wait until so many images can be found; returns the seconds."""
    took_s = wait_until(lambda: searchable(home) == count, 60)
    assert indexed(home) == count
    return took_s


def test_after_a_long_lock_on_a_table_with_two_queries_in_flight_queries_are_answered(
    fleet: Home, pictures: Pictures
) -> None:
    before = indexed(fleet)
    assert ask(fleet, "before the lock") == 200
    with database(fleet) as conn, ThreadPoolExecutor(2) as clients:
        with conn.transaction():
            conn.execute("LOCK TABLE image, posting IN ACCESS EXCLUSIVE MODE")
            begin = time.monotonic()
            asked = [clients.submit(ask, fleet, f"query {number}") for number in range(2)]
            # Longer than a query waits for its answer: then it is taken back.
            wait_until(lambda: time.monotonic() - begin > LOCK_S, 2 * LOCK_S)
            assert httpx.get(f"{url_of(fleet)}/healthz").status_code == 200
        assert {query.result() for query in asked} <= {200, 503}
    assert wait_until(lambda: ask(fleet, "after the lock") == 200) < BACK_S
    assert httpx.get(f"{url_of(fleet)}/readyz").status_code == 200
    send(fleet, pictures, 2)
    await_images(fleet, before + 2)


def test_1300_half_open_sockets_leave_the_api_reachable_and_the_logs_small(fleet: Home) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * HALF_OPEN)), hard))
    host, port = url_of(fleet).removeprefix("http://").split(":")
    logged = size_of_logs(fleet)
    with ExitStack() as sockets:
        for _ in range(HALF_OPEN):
            client = sockets.enter_context(socket.create_connection((host, int(port)), 30))
            # Those that waited longest are closed meanwhile.
            with suppress(OSError):
                client.sendall(b"POST /v1/query HTTP/1.1\r\nhost: x\r\n")
        for number in range(5):
            assert ask(fleet, f"in the flood {number}") == 200
            assert httpx.get(f"{url_of(fleet)}/healthz", timeout=10).status_code == 200
    assert size_of_logs(fleet) - logged < 50_000
    assert ask(fleet, "after the flood") == 200


def size_of_logs(home: Home) -> int:
    """Bytes in the logs of a home."""
    return sum(file.stat().st_size for file in (home.folder / "logs").iterdir())


@pytest.mark.parametrize("roles", [("intake", "scheduler"), ("index",), ("query",)])
def test_workers_that_hang_and_go_on_lose_and_double_nothing(
    fleet: Home, pictures: Pictures, roles: tuple[str, ...]
) -> None:
    before = indexed(fleet)
    workers = workers_of(fleet)
    with hanging(*[workers[role][0] for role in roles]):
        begin = time.monotonic()
        send(fleet, pictures, 3)
        wait_until(lambda: time.monotonic() - begin > HUNG_S)
    assert await_images(fleet, before + 3) < BACK_S
    assert ask(fleet, "after the hang") == 200
    with database(fleet) as conn:
        assert wait_until(lambda: is_held(conn, "scheduler")) < BACK_S
    assert workers_of(fleet) == workers


@contextmanager
def hanging(*pids: int) -> Iterator[None]:
    """Processes that do nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_while_workers_hang_others_of_their_kind_take_over(fleet: Home, pictures: Pictures) -> None:
    before = indexed(fleet)
    first = workers_of(fleet)
    with ExitStack() as others:
        for role in ("intake", "index"):
            command = [sys.executable, "-m", "ops.cli", "worker", role]
            other = others.enter_context(
                subprocess.Popen(command, env=fleet.environment(), stderr=subprocess.DEVNULL)
            )
            others.callback(other.kill)
        with database(fleet) as conn:
            consumers = (
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE"
                " 'sigma consumer %%' GROUP BY application_name HAVING count(*) = 2"
            )
            wait_until(lambda: len(conn.execute(consumers).fetchall()) == 2, 90)
        with hanging(first["intake"][0], first["index"][0]):
            send(fleet, pictures, 4)
            assert await_images(fleet, before + 4) < LEASE_S + BACK_S
        assert indexed(fleet) == before + 4
    send(fleet, pictures, 1)
    await_images(fleet, before + 5)


def test_a_database_killed_with_9_costs_no_answer_and_no_image(
    fleet: Home, pictures: Pictures
) -> None:
    before = indexed(fleet)
    assert ask(fleet, "two small red circles") == 200
    stop = threading.Event()
    statuses: list[int] = []

    def ask_on() -> None:
        while not stop.wait(0.05):
            statuses.append(ask(fleet, "two small red circles"))

    with ThreadPoolExecutor(1) as client:
        asking = client.submit(ask_on)
        send(fleet, pictures, 5)
        killed = postgres_of(fleet)
        assert killed is not None
        postmaster = psutil.Process(killed)
        for process in (postmaster, *postmaster.children()):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(lambda: postgres_of(fleet) not in (None, killed))
        assert await_images(fleet, before + 5) < BACK_S
        # The database may be back before many queries were asked.
        wait_until(lambda: asking.done() or len(statuses) > 10)
        stop.set()
        asking.result()
    assert set(statuses) == {200}


def flip(file: Path, place: float = 0.5) -> None:
    """Invert one byte between the beginning (0) and the end (1) of a file; twice is not at all."""
    with file.open("r+b") as opened:
        position = int(place * (file.stat().st_size - 1))
        opened.seek(position)
        (byte,) = opened.read(1)
        opened.seek(position)
        opened.write(bytes([byte ^ 1]))


@contextmanager
def flipped(file: Path, place: float = 0.5) -> Iterator[None]:
    """A file with a flipped byte, which is restored."""
    flip(file, place)
    try:
        yield
    finally:
        flip(file, place)


CHECKED = {
    r"generations/g\d+/plan\.npz": "a digest of its content; unit test",
    r"generations/g\d+/.+": "digests of all files; below, and each of them in a unit test",
    r"images/../.+\.png": "the hash in its name; below",
    r"postgres/(log|PG_VERSION|postmaster\.\w+|.*\.conf)": "settings and text",
    r"postgres/.+": "data checksums, and those of the log and of pg_control; below",
    r"run/supervisor\.json": "a digest; written anew; below",
    r"run/supervisor\.lock": "the lock counts, its text is a help; below",
    r"run/postgres\.(lock|users|start)": "the lock counts",
    r"run/.*sock.*": "sockets",
    r"logs/\w+\.log": "text for people",
}
"""What notices a flipped byte in a file, by its place in the home."""


def test_every_kind_of_file_in_a_home_is_one_whose_damage_is_noticed(fleet: Home) -> None:
    for file in fleet.folder.rglob("*"):
        if file.is_file():
            name = file.relative_to(fleet.folder).as_posix()
            assert any(re.fullmatch(kind, name) for kind in CHECKED), name


def test_a_flipped_byte_in_a_stored_picture_is_a_dead_letter_and_mended_by_ingesting_again(
    fleet: Home, pictures: Pictures
) -> None:
    before = indexed(fleet)
    picture = next(pictures)
    known = set((fleet.folder / "images").rglob("*.png"))
    letters = fleet.ok("status")["dead_letters"]

    def stored() -> set[Path]:
        return set((fleet.folder / "images").rglob("*.png")) - known

    with hanging(workers_of(fleet)["index"][0]):
        fleet.ok("ingest", picture)
        wait_until(lambda: len(stored()) == 1)
        flip(*stored())
    with watched(fleet) as status:
        wait_until(lambda: bool(status()["dead_letters"] == letters + 1))
    (letter,) = [
        one
        for one in fleet.ok("dead-letters", "list")["dead_letters"]
        if one["code"] == "damaged-store"
    ]
    assert "must have the hash in its name" in letter["reason"]
    assert indexed(fleet) == before
    fleet.ok("ingest", picture)
    await_images(fleet, before + 1)


def test_a_flipped_byte_in_the_weights_is_refused_by_name_and_no_query_gets_a_wrong_answer(
    fleet: Home,
) -> None:
    weights = fleet.folder / "generations" / "g1" / "head.safetensors"
    with flipped(weights):
        os.kill(workers_of(fleet)["query"][0], signal.SIGKILL)
        wait_until(lambda: "head.safetensors" in problem_of(fleet), 60)
        assert ask(fleet, "a query") == 503
        checked = fleet.sigma("status", "--check", "--json")
        assert checked.code == 1
        assert any("head.safetensors" in alarm for alarm in checked.json["alarms"])
    wait_until(lambda: ask(fleet, "a query") == 200, 60)


def test_flipped_bytes_in_the_supervisors_files_and_in_a_table_are_noticed_and_give_no_wrong_answer(
    fleet: Home,
) -> None:
    before = indexed(fleet)
    record = fleet.folder / "run" / "supervisor.json"
    whole = record.read_bytes()
    flip(record)
    wait_until(lambda: record.read_bytes() == whole)
    assert fleet.ok("status")["url"] == url_of(fleet)
    with database(fleet) as conn:
        conn.execute("CHECKPOINT")
        row = conn.execute(
            "SELECT pg_relation_filepath(relid) FROM pg_partition_tree('placement') WHERE isleaf"
            " ORDER BY pg_relation_size(relid) DESC LIMIT 1"
        ).fetchone()
        assert row is not None
    table = fleet.folder / "postgres" / str(row[0])
    flip(fleet.folder / "run" / "supervisor.lock", 0.1)
    assert fleet.ok("down") == {"stopped": True}
    assert workers_of(fleet) == {}
    assert postgres_of(fleet) is None
    control = fleet.folder / "postgres" / "global" / "pg_control"
    with flipped(control, 0.005):
        refused = fleet.sigma("up")
        assert refused.code != 0
        assert "PostgreSQL" in refused.err
        assert "Traceback" not in refused.err
    # Free space or rows: every byte of a page is covered.
    with flipped(table, 4000 / table.stat().st_size):
        fleet.sigma("up")
        wait_until(lambda: "invalid page" in problem_of(fleet), 60)
        assert ask(fleet, "a query") == 503
        checked = fleet.sigma("status", "--check", "--json")
        assert checked.code == 1
        assert "invalid page" in checked.out + checked.err
        fleet.sigma("down")
    fleet.ok("up")
    wait_until(lambda: ask(fleet, "a query") == 200, 60)
    assert indexed(fleet) == before
