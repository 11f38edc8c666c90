"""The proxy of the exported compose file: one port in front of several query workers."""

import threading
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.api_client import opened, refused
from tests.proxy import installed, proxy
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
    answers: list[int] = []
    enough = threading.Event()

    def ask(url: str) -> None:
        # A connection for each request: none is left over that could be tried again.
        while not enough.is_set():
            answers.append(httpx.post(f"{url}/v1/query", json={"query": "a"}).status_code)

    with ExitStack() as stack:
        second = stack.enter_context(http_serving(services))
        with ExitStack() as first_stack:
            first = first_stack.enter_context(http_serving(services))
            # It hears of the end by a connection that is refused, not by a check.
            url = stack.enter_context(proxy(haproxy, tmp_path, [first, second], "1h"))
            until(lambda: httpx.get(f"{url}/readyz").status_code == 200, "a worker is found")
            thread = threading.Thread(target=ask, args=(url,))
            thread.start()
            until(lambda: len(answers) >= ANSWERS, "queries are answered")
        before = len(answers)
        until(lambda: len(answers) >= before + ANSWERS, "queries are still answered")
        enough.set()
        thread.join()
        assert set(answers) == {200}


def test_without_a_ready_worker_the_reason_is_told_in_the_shape_of_errors(
    haproxy: str, database: str, tmp_path: Path
) -> None:
    services = services_at(database, tmp_path / "home")
    with ExitStack() as stack:
        worker = stack.enter_context(http_serving(services, ready="/healthz"))
        url = stack.enter_context(proxy(haproxy, tmp_path, [worker]))
        until(lambda: httpx.get(f"{url}/healthz").status_code == 200, "the worker is found")
        # It lives, and says itself why it cannot answer.
        assert "generation" in refused(httpx.post(f"{url}/v1/query", json={"query": "a"}), 503)
    with proxy(haproxy, tmp_path, [f"http://127.0.0.1:{free_port()}"]) as url:
        gone = httpx.post(f"{url}/v1/query", json={"query": "a"})
        assert "no query worker answers" in refused(gone, 503)
        assert gone.headers["retry-after"] == "1"
