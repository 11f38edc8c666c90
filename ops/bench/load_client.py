"""Asking: a client at a steady rate, in a process of its own, so that what the benchmark does meanwhile does not count as waiting."""

import gc
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import httpx

_ASKERS, _PATIENCE_S = 16, 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One query: when it was due (seconds of the machine's monotonic clock), how long its answer took from then, and what it was."""

    due: float
    took_ms: float
    generation: int | None
    found: tuple[tuple[str, tuple[int, ...]], ...] = ()
    error: str = ""


class Asker:
    """Asks `rate` times a second from now on, whether or not earlier answers have come; a late start counts as waiting."""

    def __init__(self, url: str, texts: Sequence[str], rate: float) -> None:
        context = get_context("spawn")
        self._line, there = context.Pipe()
        self._process = context.Process(
            target=_ask_until_told, args=(there, url, list(texts), rate), daemon=True
        )
        self._process.start()
        there.close()
        # It has started; imports take a while.
        self._line.recv()

    def stop(self) -> list[Asked]:
        """End; returns everything that was asked. `EOFError` when the client died."""
        self._line.send(None)
        asked: list[Asked] = self._line.recv()
        self._process.join(_PATIENCE_S)
        return asked


def _ask_until_told(line: Connection, url: str, texts: Sequence[str], rate: float) -> None:
    # Half a second of its own garbage collection would look like a slow answer.
    gc.disable()
    asked: list[Asked] = []
    guard = threading.Lock()

    def ask(text: str, due: float) -> None:
        one = _ask(client, url, text, due)
        with guard:
            asked.append(one)

    with httpx.Client(timeout=30, limits=httpx.Limits(max_connections=_ASKERS)) as client:
        line.send(None)
        began, number = time.monotonic(), 0
        with ThreadPoolExecutor(_ASKERS) as hands:
            while not line.poll(max(0.0, began + number / rate - time.monotonic())):
                hands.submit(ask, texts[number % len(texts)], began + number / rate)
                number += 1
    line.send(asked)


def _ask(client: httpx.Client, url: str, text: str, due: float) -> Asked:
    try:
        answer = client.post(f"{url}/v1/query", json={"query": text})
        document = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        return Asked(due, 0.0, None, error=repr(error))
    took_ms = (time.monotonic() - due) * 1000
    if answer.status_code != 200:
        return Asked(due, took_ms, None, error=str(document))
    found = tuple((one["image_id"], tuple(one["identifier"])) for one in document["results"])
    return Asked(due, took_ms, document["generation"], found)
