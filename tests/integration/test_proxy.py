"""The proxy of the exported compose file: one port in front of several query workers."""

import http.client
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.api_client import opened, refused
from tests.mortal import (
    Fate,
    MortalWorker,
    answers,
    ends_after_one,
    ends_silently,
    ends_within_the_head,
    is_loading,
    mortal_worker,
)
from tests.proxy import Proxy, installed, proxy
from tests.services.servers import free_port
from tests.serving import http_serving, until
from tests.stubs import services_at

ANSWERS = 30
"""Answers before a worker ends, and after."""


@pytest.fixture
def haproxy() -> str:
    return installed()


def test_requests_go_on_while_one_of_two_workers_ends(
    haproxy: str, database: str, tmp_path: Path
) -> None:
    services = opened(database, tmp_path / "home")
    statuses: list[int] = []
    enough = threading.Event()

    def ask(url: str) -> None:
        # A connection for each request: none is left over that could be tried again.
        while not enough.is_set():
            statuses.append(httpx.post(f"{url}/v1/query", json={"query": "a"}).status_code)

    with ExitStack() as stack:
        second = stack.enter_context(http_serving(services))
        with ExitStack() as first_stack:
            first = first_stack.enter_context(http_serving(services))
            # It hears of the end by a connection that is refused, not by a check.
            running = stack.enter_context(proxy(haproxy, tmp_path, [first, second], "1h"))
            until(lambda: httpx.get(f"{running.url}/readyz").status_code == 200, "it answers")
            thread = threading.Thread(target=ask, args=(running.url,))
            thread.start()
            until(lambda: len(statuses) >= ANSWERS, "queries are answered")
        before = len(statuses)
        until(lambda: len(statuses) >= before + ANSWERS, "queries are still answered")
        enough.set()
        thread.join()
        assert set(statuses) == {200}


def test_without_a_ready_worker_the_reason_is_told_in_the_shape_of_errors(
    haproxy: str, database: str, tmp_path: Path
) -> None:
    services = services_at(database, tmp_path / "home")
    with ExitStack() as stack:
        worker = stack.enter_context(http_serving(services, ready="/healthz"))
        url = stack.enter_context(proxy(haproxy, tmp_path, [worker], "100ms")).url
        until(lambda: "generation" in httpx.get(f"{url}/readyz").text, "the worker has looked")
        # It lives, and says itself why it cannot answer.
        assert "generation" in refused(httpx.post(f"{url}/v1/query", json={"query": "a"}), 503)
    with proxy(haproxy, tmp_path, [f"http://127.0.0.1:{free_port()}"]) as alone:
        gone = httpx.post(f"{alone.url}/v1/query", json={"query": "a"})
        assert "no query worker answers" in refused(gone, 503)
        assert gone.headers["retry-after"] == "1"


def ask(url: str, method: str, path: str, body: bytes | None = None) -> int:
    """The status of one answer, on a connection of its own; an error where none comes."""
    client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        client.request(method, path, body)
        answer = client.getresponse()
        answer.read()
        return answer.status
    finally:
        client.close()


@contextmanager
def proxied(haproxy: str, folder: Path, *fates: Fate) -> Iterator[tuple[Proxy, list[MortalWorker]]]:
    """A proxy in front of workers of these fates, all of which it has found."""
    with ExitStack() as stack:
        workers = [stack.enter_context(mortal_worker(fate)) for fate in fates]
        running = stack.enter_context(proxy(haproxy, folder, [worker.url for worker in workers]))
        until(lambda: running.ready_workers() == len(fates), "the workers are found")
        yield running, workers


@pytest.mark.parametrize("fate", [ends_silently, ends_within_the_head])
def test_what_a_worker_did_not_answer_another_one_does(
    haproxy: str, tmp_path: Path, fate: Fate
) -> None:
    with proxied(haproxy, tmp_path, fate, answers) as (running, (mortal, _)):
        for number in range(10):
            path = f"/v1/images/{number}"
            assert ask(running.url, "GET", path) == 200
            assert ask(running.url, "HEAD", path) == 200
            assert ask(running.url, "PUT", path, b"x" * 1000) == 200
            assert ask(running.url, "DELETE", path) == 200
            assert ask(running.url, "POST", "/v1/query", b"x" * 60_000) == 200
        assert mortal.requests >= 10


def test_what_must_not_come_twice_is_not_sent_again(haproxy: str, tmp_path: Path) -> None:
    with proxied(haproxy, tmp_path, ends_silently, ends_silently) as (running, workers):
        assert ask(running.url, "POST", "/v1/generations/rollback") == 502
        assert sum(worker.requests for worker in workers) == 1


def test_no_request_meets_connections_that_others_left_open(haproxy: str, tmp_path: Path) -> None:
    with proxied(haproxy, tmp_path, ends_after_one, ends_after_one) as (running, workers):
        for worker in workers:
            worker.held.clear()
        with ThreadPoolExecutor(16) as callers:
            calls = [callers.submit(ask, running.url, "GET", "/v1/images") for _ in range(16)]
            until(lambda: sum(worker.requests for worker in workers) == 16, "all have arrived")
            for worker in workers:
                worker.held.set()
        assert {call.result() for call in calls} == {200}
        # Eight connections of either worker have answered, and would be reset by the next request.
        assert [ask(running.url, "GET", "/v1/images") for _ in range(4)] == [200] * 4


def test_while_none_is_ready_one_that_is_only_late_answers_and_not_one_that_loads(
    haproxy: str, tmp_path: Path
) -> None:
    with proxied(haproxy, tmp_path, is_loading, answers) as (running, workers):
        for worker in workers:
            worker.ready = False
        until(lambda: running.ready_workers() == 0, "both are taken out")
        assert [ask(running.url, "GET", "/v1/images") for _ in range(10)] == [200] * 10
        assert workers[0].requests > 0
    with proxied(haproxy, tmp_path, is_loading) as (running, (worker,)):
        worker.ready = False
        until(lambda: running.ready_workers() == 0, "it is taken out")
        answer = httpx.get(f"{running.url}/v1/images")
        assert (answer.status_code, answer.text) == (503, "loading")


def test_a_failure_is_logged_without_what_may_be_secret(haproxy: str, tmp_path: Path) -> None:
    with proxied(haproxy, tmp_path, ends_silently, ends_silently) as (running, _):
        assert ask(running.url, "GET", "/v1/images/a/picture?signature=secret") == 502
        assert ask(running.url, "GET", "/proxy-alive") == 200
        until(lambda: "GET /v1/images/a/picture\n" in running.log, "the failure is logged")
        assert " 502 SH retries 3 GET " in running.log.replace("+", "")
        assert "secret" not in running.log
        assert "proxy-alive" not in running.log
