"""The client package against real workers: killed and started again, no call fails for good."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sigma_stream_client import AsyncClient, Client, NotFoundError, RefusedError, RetryPolicy

from ops.bench.fleet import ROLES, Fleet, open_fleet
from tests.acceptance.test_docs import run_python
from tests.api_client import png
from tests.doc_blocks import blocks
from tests.serving import until
from workers.runtime.process import bind

CLIENT = Path(__file__).resolve().parents[2] / "ops" / "client"

IMAGES = 25

KILLS = 3

PATIENCE = RetryPolicy(total_s=240)
"""A worker takes seconds to start, far more while other tests run."""

MOST_WHEEL_BYTES = 1_000_000


@dataclass
class Calls:
    """Calls that one thread makes again and again."""

    make: Callable[[Client, int], None]
    done: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def run(self, url: str, stop: threading.Event) -> None:
        try:
            with Client(url, retry=PATIENCE) as client:
                while not stop.is_set():
                    self.make(client, self.done)
                    self.done += 1
        except BaseException as error:
            self.errors.append(error)


@dataclass
class Service:
    """A query worker that is killed and started again on one port."""

    fleet: Fleet
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.fleet.start("query", SIGMA_HTTP_PORT=str(self.port))

    def kill(self) -> None:
        (worker,) = [worker for worker in self.fleet.workers if worker.role == "query"]
        self.fleet.kill(worker)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with closing(bind("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with open_fleet(None) as fleet:
        for role in ROLES:
            fleet.start(role)
        started = Service(fleet, port)
        started.start()
        with Client(started.url, retry=PATIENCE) as client:
            for number in range(IMAGES):
                metadata = {"n": number, "tags": ["even" if number % 2 == 0 else "odd"]}
                client.put(f"folder/{number}", png(number), metadata=metadata, wait_s=0)
            client.put("folder/last", png(99), captions=["the last one"], wait_s=200)
        yield started


def search(client: Client, number: int) -> None:
    assert client.search(f"text {number}", k=5).results


def write(client: Client, number: int) -> None:
    image_id = f"written/{number}"
    written = client.put(image_id, png(1000 + number), wait_s=200)
    assert written.searchable
    assert client.get(image_id).version == written.version
    client.delete(image_id)
    with pytest.raises(NotFoundError):
        client.get(image_id)


def look(client: Client, number: int) -> None:
    listed = [image.image_id for image in client.images()]
    assert len(listed) >= IMAGES
    assert len(set(listed)) == len(listed)


def test_under_kill_and_restart_no_call_fails_for_good(service: Service) -> None:
    stop = threading.Event()
    callers = [Calls(search), Calls(write), Calls(look)]
    threads = [threading.Thread(target=caller.run, args=(service.url, stop)) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        for _ in range(KILLS):
            before = [caller.done for caller in callers]
            # In the middle of work, each time.
            until(
                lambda before=before: all(
                    caller.done > count or caller.errors
                    for caller, count in zip(callers, before, strict=True)
                ),
                "every thread gets on",
                within_s=240,
            )
            service.kill()
            service.start()
    finally:
        stop.set()
        for thread in threads:
            thread.join(300)
    assert [caller.errors for caller in callers] == [[], [], []], service.fleet.log_tails()


def test_what_was_put_is_found_filtered_and_read(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(png(3))
    with Client(service.url, retry=PATIENCE) as client:
        even = {"field": "tags", "any": ["even"]}
        answer = client.search("something", k=100, filter=even)
        assert {result.metadata["n"] for result in answer.results} == set(range(0, IMAGES, 2))
        answer = client.search("something", k=5, explain=True)
        assert answer.leaves
        assert all(result.cosine is not None for result in answer.results)
        assert client.search_picture(file, k=3, filter=even).results
        similar = client.similar("folder/3", k=5).results
        assert "folder/3" not in [result.image_id for result in similar]
        assert client.get("folder/last").captions == ("the last one",)
        found = [result.image_id for result in client.results("something", k=500)]
        assert len(found) == len(set(found)) == IMAGES + 1
        with pytest.raises(RefusedError, match="filter"):
            client.search("something", filter={"field": "n"})
        with pytest.raises(RefusedError):
            client.put("hostile", b"<svg></svg>", wait_s=0)
        client.put_address("gone", (tmp_path / "nothing.png").as_uri(), wait_s=0)
        until(lambda: client.dead_letters(), "the address leads nowhere", within_s=120)
        assert client.dead_letters()[0].image_id == "gone"
        assert client.replay_dead_letters() == 1


def test_the_examples_run_as_they_are_printed(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(png(77))
    with Client(service.url, retry=PATIENCE) as client:
        taken = {"tags": ["beach"], "taken": "2026-06-01T12:00:00Z", "price": 5}
        client.put("example", png(78), metadata=taken, wait_s=200)
    search, filters, tasks = blocks("docs/python-client.md", "python")
    (shortest,) = blocks("ops/client/README.md", "python")
    shortest = shortest.replace("http://127.0.0.1:8631", service.url)
    environment = {
        "SIGMA_URL": service.url,
        "PICTURE": str(file),
        "PYTHONPATH": os.pathsep.join([str(CLIENT), os.environ.get("PYTHONPATH", "")]),
    }
    assert [line.split()[0] for line in run_python(search, **environment).splitlines()] == [*"123"]
    assert len(run_python(shortest, **environment).splitlines()) == 3
    found = [line.split()[0] for line in run_python(filters, **environment).splitlines()]
    assert found[:3] == ["1", "1", "1"]
    assert int(found[3]) == IMAGES
    assert len(run_python(tasks, **environment).splitlines()) == 3


def test_tasks_share_an_asynchronous_client(service: Service) -> None:
    async def ask() -> None:
        async with AsyncClient(service.url, retry=PATIENCE) as client:
            written = await client.put("async", png(5), wait_s=200)
            assert written.searchable
            answers = await asyncio.gather(*[client.search(f"text {n}", k=3) for n in range(20)])
            assert all(len(answer.results) == 3 for answer in answers)
            listed = [image.image_id async for image in client.images()]
            assert "async" in listed
            found = [result async for result in client.results("something", k=500)]
            assert len(found) == len(listed)
            assert await client.delete("async")
            with pytest.raises(NotFoundError):
                await client.get("async")

    asyncio.run(ask())


def test_the_wheel_is_small_and_needs_httpx_alone(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # Building writes beside the sources.
    sources = shutil.copytree(CLIENT, tmp_path / "sources")
    subprocess.run([*pip, "-w", str(tmp_path), str(sources)], check=True, timeout=240)
    (wheel,) = tmp_path.glob("sigma_stream_client-*.whl")
    assert wheel.stat().st_size <= MOST_WHEEL_BYTES
    with zipfile.ZipFile(wheel) as contents:
        assert "sigma_stream_client/py.typed" in contents.namelist()
    # In a process of its own, which has imported nothing else.
    script = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import sigma_stream_client;"
        " heavy = {'torch', 'numpy', 'transformers', 'pydantic', 'schemas', 'ops'};"
        " print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
