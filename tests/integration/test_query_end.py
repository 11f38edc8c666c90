"""A query worker that ends answers what it has accepted."""

import threading
from collections import Counter
from pathlib import Path

import httpx

from tests.api_client import opened
from tests.serving import http_serving, until

ASKERS = 4

ANSWERS = 20
"""Answers before the worker ends."""


def test_no_query_is_refused_because_the_worker_ends(database: str, tmp_path: Path) -> None:
    services = opened(database, tmp_path / "home")
    answers: Counter[int] = Counter()

    def ask(url: str) -> None:
        while True:
            try:
                answer = httpx.post(f"{url}/v1/query", json={"query": "a"})
            except httpx.TransportError:
                return
            answers[answer.status_code] += 1

    with http_serving(services) as url:
        askers = [threading.Thread(target=ask, args=(url,)) for _ in range(ASKERS)]
        for asker in askers:
            asker.start()
        until(lambda: answers[200] >= ANSWERS, "queries are answered")
    for asker in askers:
        asker.join()
    assert set(answers) == {200}
