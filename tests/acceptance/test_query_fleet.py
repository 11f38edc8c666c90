"""Two query workers behind one port: one is killed under load, and no request of a client fails."""

import os
import signal
import threading

from sigma_stream_client import Client, RetryPolicy

from tests.acceptance.conftest import Home
from tests.acceptance.test_supervisor import wait_until, workers_of

THREADS = 4

BEFORE, BETWEEN, KILLS = 10, 20, 2
"""Answers of every thread before the first kill and after each, and kills."""

PATIENCE = RetryPolicy(total_s=30)
"""Far less than a model takes to load while other tests run: the other worker has to answer."""


def asked(url: str, stop: threading.Event, answers: list[int], errors: list[BaseException]) -> None:
    """Search until told to stop; `answers` counts."""
    try:
        with Client(url, retry=PATIENCE) as client:
            while not stop.is_set():
                assert len(client.search("two red circles", k=5).results) == 5
                answers[0] += 1
    except BaseException as error:
        errors.append(error)


def test_one_of_two_query_workers_is_killed_under_load_and_no_request_fails(home: Home) -> None:
    home.ok("up", SIGMA_QUERY_WORKERS="2")
    url = home.ok("status")["url"]
    assert len(workers_of(home)["query"]) == 2
    stop = threading.Event()
    errors: list[BaseException] = []
    answers = [[0] for _ in range(THREADS)]
    threads = [threading.Thread(target=asked, args=(url, stop, mine, errors)) for mine in answers]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: bool(errors) or min(answers)[0] >= BEFORE, 120)
        for kill in range(KILLS):
            victim = workers_of(home)["query"][kill % 2]
            os.kill(victim, signal.SIGKILL)
            wanted = min(answers)[0] + BETWEEN
            wait_until(lambda wanted=wanted: bool(errors) or min(answers)[0] >= wanted, 120)
            # The supervisor has started another one.
            wait_until(lambda gone=victim: is_whole(home, gone), 120)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert errors == []


def is_whole(home: Home, gone: int) -> bool:
    """Whether there are two query workers, and the one that was killed is not among them."""
    pids = workers_of(home).get("query", [])
    return len(pids) == 2 and gone not in pids
