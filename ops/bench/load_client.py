"""The load client: it sends queries at a steady rate and times the answers.

It runs in a process of its own, so that what the benchmark does meanwhile does not slow it down.
"""

import gc
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import httpx

# Queries that may wait for their answers at once: nearly a second's worth at 20 a second.
_CLIENT_THREADS = 16

# Longest wait for one answer; a query that waits longer counts as failed.
_QUERY_TIMEOUT_S = 30.0

# Longest wait for the end of the client's process, which waits for its last answers first.
_END_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class AnsweredImage:
    """One image of an answer."""

    image_id: str
    identifier: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QueryTiming:
    """One query: when it was due, how long its answer took, and what it was."""

    due_s: float
    """On the machine's monotonic clock, which all processes share."""
    took_ms: float
    """From `due_s`, so a query that was sent late counts the delay as waiting."""
    generation: int | None
    """The generation that answered; None for a failure."""
    images: tuple[AnsweredImage, ...] = ()
    error: str = ""
    """Why the query failed; empty for an answer."""


class LoadClient:
    """Sends `rate` queries a second, whether or not earlier answers have come."""

    def __init__(self, process: BaseProcess, line: Connection) -> None:
        """Use `start`."""
        self._process = process
        self._line = line

    @classmethod
    def start(cls, url: str, texts: Sequence[str], rate: float) -> "LoadClient":
        """Start a client of the query worker at `url`; it repeats the texts in their order."""
        # A forked client would share the database connections of this process.
        context = get_context("spawn")
        line, client_line = context.Pipe()
        # A daemon: a benchmark that fails must not leave its client running.
        process = context.Process(
            target=_run_client, args=(client_line, url, list(texts), rate), daemon=True
        )
        process.start()
        # Its copy is open in the client; with ours closed, `recv` notices when the client dies.
        client_line.close()
        # The client's imports take a while; it sends one message when it begins.
        line.recv()
        return cls(process, line)

    def stop(self) -> list[QueryTiming]:
        """End the client; return all its queries. `EOFError` when its process died."""
        self._line.send(None)
        timings: list[QueryTiming] = self._line.recv()
        self._process.join(_END_TIMEOUT_S)
        return timings


def _run_client(line: Connection, url: str, texts: Sequence[str], rate: float) -> None:
    # A garbage collection of half a second would look like a slow answer.
    gc.disable()
    timings: list[QueryTiming] = []
    timings_lock = threading.Lock()

    def send(text: str, due_s: float) -> None:
        timing = _time_query(client, url, text, due_s)
        with timings_lock:
            timings.append(timing)

    limits = httpx.Limits(max_connections=_CLIENT_THREADS)
    with httpx.Client(timeout=_QUERY_TIMEOUT_S, limits=limits) as client:
        line.send(None)
        began_s = time.monotonic()
        number = 0
        due_s = began_s
        with ThreadPoolExecutor(_CLIENT_THREADS) as threads:
            # The wait for the next query is also the look for the message that ends the client.
            while not line.poll(max(0.0, due_s - time.monotonic())):
                threads.submit(send, texts[number % len(texts)], due_s)
                number += 1
                # From the begin, not from the last query: a client that fell behind catches up, so
                # a slow answer does not hide the queries that had to wait for it.
                due_s = began_s + number / rate
    line.send(timings)


def _time_query(client: httpx.Client, url: str, text: str, due_s: float) -> QueryTiming:
    try:
        response = client.post(f"{url}/v1/query", json={"query": text})
        answer = response.json()
    except (httpx.HTTPError, ValueError) as error:
        return QueryTiming(due_s, took_ms=0.0, generation=None, error=repr(error))
    took_ms = (time.monotonic() - due_s) * 1000
    if response.status_code != 200:
        return QueryTiming(due_s, took_ms, generation=None, error=str(answer))
    images = []
    for result in answer["results"]:
        images.append(AnsweredImage(result["image_id"], tuple(result["identifier"])))
    return QueryTiming(due_s, took_ms, answer["generation"], tuple(images))
