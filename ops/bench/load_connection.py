"""The load connection: one connection of the load generator, with one query at a time.

Callbacks instead of tasks and streams: the generator shares a few cores with the server, so each
query has to be cheap.
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import cast

# Called with the milliseconds of an answer, and the seconds of its `Retry-After`: 0 for an answer
# with images.
Answered = Callable[["LoadConnection", float, float], None]

# Called when a connection ended, with what became of its query; None when it had none.
Failed = Callable[["LoadConnection", str | None], None]


class LoadConnection(asyncio.Protocol):
    """A connection with keep-alive."""

    def __init__(self, answered: Answered, failed: Failed) -> None:
        self._answered = answered
        self._failed = failed
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._due_s: float | None = None
        """When the query that is under way was due."""
        self.free_since_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a query can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes, due_s: float) -> None:
        """Send a query; `answered` or `failed` is called once."""
        self._due_s = due_s
        if self._transport is None or self._transport.is_closing():
            self._end("closed before the query")
            return
        self._transport.write(request)

    def give_up_before(self, limit_s: float) -> None:
        """Close the connection if its query was due before that time."""
        if self._due_s is not None and self._due_s < limit_s:
            self._end("no answer in time")

    def close(self) -> None:
        """Close the connection; nothing more is called for its query."""
        self._due_s = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < int(_header(head, b"content-length") or 0):
            return
        self._received = b""
        if self._due_s is None:
            return
        problem, retry_after_s = _verdict(head, body)
        if problem:
            self._end(problem)
            return
        took_ms = (time.monotonic() - self._due_s) * 1000
        self._due_s = None
        self.free_since_s = time.monotonic()
        self._answered(self, took_ms, retry_after_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._end("connection closed" if exc is None else type(exc).__name__)

    def _end(self, problem: str) -> None:
        """Report the end once, as the failure of the query if there is one."""
        kind = None if self._due_s is None else problem
        self.close()
        self._failed(self, kind)


def _verdict(head: bytes, body: bytes) -> tuple[str, float]:
    """Return what is wrong with an answer, empty for nothing, and the seconds of `Retry-After`."""
    status = int(head[9:12])
    if status == 200:
        return ("" if json.loads(body)["results"] else "no images"), 0.0
    if status != 429:
        return f"status {status}", 0.0
    seconds = float(_header(head, b"retry-after") or 0)
    return ("" if seconds else "429 without Retry-After"), seconds


def _header(head: bytes, name: bytes) -> bytes:
    """Return a header's value, empty where it is missing."""
    return head.lower().partition(b"\r\n" + name + b":")[2].partition(b"\r\n")[0].strip()
