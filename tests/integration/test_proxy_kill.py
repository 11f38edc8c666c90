"""Two real query workers behind the proxy: whatever a killed one had in hand is answered."""

import json
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx
import pytest

from ops.bench.fleet import Fleet, WorkerProcess, open_fleet
from schemas.events import ARRIVED
from tests.api_client import path_of, png
from tests.proxy import installed, proxy
from tests.services.servers import free_port
from tests.serving import until
from tests.stubs import accepted, leave_in

IMAGES = 60

STALLS, BLOWS = 2, 1
"""Kills of a worker that has requests in hand for certain, and of one in the middle of work."""

AGAIN = 3
"""Answers of every caller between two kills."""

PAUSE_S = 0.2
"""Between requests of a caller: a machine that is asked without end answers some too late."""

LONG_TEXT = "a long text " * 160
"""Sixteen of them are a body of 30 KB, more than HAProxy's usual buffer."""

TOO_SLOW = ("the database does not answer", "no answer within")
"""How workers begin to say so."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""httpx makes one for each client else, which takes longer than the request."""

Ask = Callable[[httpx.Client, int], httpx.Response]


@dataclass
class Caller:
    """Requests that one thread sends again and again, each on a connection of its own.

    A worker that says itself that something took too long, as on a starved machine, was not killed:
    it is asked again, as every client does.
    """

    ask: Ask
    good: int = 200
    done: int = 0
    wrong: list[str] = field(default_factory=list)

    def run(self, url: str, stop: threading.Event) -> None:
        for number in count():
            if stop.is_set() or self.wrong:
                return
            try:
                # A connection that is left over could be tried again by the client itself.
                with httpx.Client(base_url=url, timeout=60, verify=NO_TLS) as client:
                    answer = self.ask(client, number)
            except httpx.HTTPError as error:
                self.wrong.append(repr(error))
                return
            if answer.status_code == 503 and answer.json()["error"].startswith(TOO_SLOW):
                stop.wait(PAUSE_S)
                continue
            if answer.status_code != self.good:
                self.wrong.append(f"{answer.status_code} {answer.text[:300]}")
            self.done += 1
            stop.wait(PAUSE_S)


def query(client: httpx.Client, number: int) -> httpx.Response:
    return client.post("/v1/query", json={"query": f"text {number}", "k": 5})


def batch(client: httpx.Client, number: int) -> httpx.Response:
    queries = [{"query": f"{LONG_TEXT} {number} {place}", "k": 2} for place in range(16)]
    answer = client.post("/v1/query/batch", json={"queries": queries})
    if answer.status_code != 200:
        return answer
    refused = [item for item in answer.json()["answers"] if item["status"] != 200]
    return httpx.Response(refused[0]["status"], json=refused[0]) if refused else answer


def similar(client: httpx.Client, number: int) -> httpx.Response:
    headers = {"content-type": "image/png"}
    return client.post("/v1/query?k=3", content=png(number), headers=headers)


def read(client: httpx.Client, number: int) -> httpx.Response:
    return client.get(path_of(f"folder/{number % IMAGES}"))


def picture(client: httpx.Client, number: int) -> httpx.Response:
    return client.get(path_of(f"folder/{number % IMAGES}", "/picture?size=64"))


def listed(client: httpx.Client, number: int) -> httpx.Response:
    return client.get(f"/v1/images?limit={number % 20 + 1}")


def announce(client: httpx.Client, number: int) -> httpx.Response:
    body = {"uri": f"file:///{number}.png", "captions": ["é" * (number % 50)]}
    return client.put(path_of(f"announced/{number}"), json=body)


def upload(client: httpx.Client, number: int) -> httpx.Response:
    headers = {"content-type": "image/png"}
    return client.put(path_of(f"uploaded/{number}"), content=png(number), headers=headers)


def delete(client: httpx.Client, number: int) -> httpx.Response:
    return client.delete(path_of(f"unwanted/{number}"))


@dataclass
class Workers:
    """Two query workers on ports of their own."""

    fleet: Fleet
    ports: tuple[int, int]
    running: dict[int, WorkerProcess] = field(default_factory=dict)

    def start(self, port: int) -> None:
        # A busy machine answers few in time, and would refuse batches.
        self.fleet.start("query", SIGMA_HTTP_PORT=str(port), SIGMA_QUERY_BACKLOG="1000")
        self.running[port] = self.fleet.workers[-1]

    def wait_ready(self, port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        ended = self.running[port].process.poll
        until(lambda: ended() is not None or is_ready(url), "a worker is ready", within_s=400)
        assert ended() is None, self.fleet.log_tails()

    def replace(self, port: int) -> None:
        """Kill one, and start another in its place."""
        self.fleet.kill(self.running[port])
        self.start(port)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", verify=NO_TLS).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def workers() -> Iterator[Workers]:
    with open_fleet(None) as fleet:
        with fleet.services.connect("test") as conn:
            names = [f"folder/{number}" for number in range(IMAGES)]
            leave_in(conn, fleet.generation, accepted(fleet.services.store, names))
        both = Workers(fleet, (free_port(), free_port()))
        for port in both.ports:
            both.start(port)
        for port in both.ports:
            both.wait_ready(port)
        yield both


def versions_put(fleet: Fleet) -> dict[str, set[int]]:
    """Versions under which each image was published."""
    found: dict[str, set[int]] = {}
    with fleet.services.connect("test") as conn:
        rows = conn.execute("SELECT value FROM log_event WHERE topic = %s", [ARRIVED]).fetchall()
    for (value,) in rows:
        event = json.loads(bytes(value))
        found.setdefault(event["image_id"], set()).add(event["version"])
    return found


@pytest.mark.timeout(1500)
def test_no_request_of_any_kind_fails_when_the_worker_that_has_it_is_killed(
    workers: Workers, tmp_path: Path
) -> None:
    tool = installed()
    asks = (query, batch, similar, read, picture, listed, delete)
    callers = [Caller(ask) for ask in asks] + [Caller(ask, 202) for ask in (announce, upload)]
    stop = threading.Event()

    def gone_on(amount: int, some: bool = False) -> None:
        """Until each caller, or `some` of them, have so many more answers."""
        goals = [caller.done + amount for caller in callers]
        enough = any if some else all

        def reached() -> bool:
            pairs = zip(callers, goals, strict=True)
            return any(caller.wrong for caller in callers) or enough(
                caller.done >= goal for caller, goal in pairs
            )

        until(reached, "the callers get on", within_s=400)

    urls = [f"http://127.0.0.1:{port}" for port in workers.ports]
    with proxy(tool, tmp_path, urls) as running:

        def both_found() -> None:
            # It looks each second: a worker that it has not found yet takes over from none.
            until(lambda: running.ready_workers() == 2, "both workers are found", within_s=400)

        both_found()
        arguments = (running.url, stop)
        threads = [threading.Thread(target=caller.run, args=arguments) for caller in callers]
        for thread in threads:
            thread.start()
        try:
            gone_on(AGAIN)
            for strike in range(STALLS + BLOWS):
                victim = workers.ports[strike % 2]
                if strike < STALLS:
                    # Whatever reaches it now is in its hands when it dies.
                    workers.running[victim].process.send_signal(signal.SIGSTOP)
                    gone_on(AGAIN, some=True)
                workers.replace(victim)
                gone_on(AGAIN)
                workers.wait_ready(victim)
                both_found()
        finally:
            stop.set()
            for thread in threads:
                thread.join(90)
        told = running.log
    wrong = [caller.wrong for caller in callers]
    assert wrong == [[]] * len(callers), f"{told}{workers.fleet.log_tails()}"
    # What was sent twice is the same version.
    versions = versions_put(workers.fleet)
    assert len(versions) >= 2 * AGAIN
    assert set.union(*versions.values()) == {1}
