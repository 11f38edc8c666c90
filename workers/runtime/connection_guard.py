"""The connection guard: no client keeps a connection without using it, and none uses up all.

uvicorn closes a connection that idles after an answer, and limits nothing else: not the time until
a first request is complete, nor until a body is, nor how many connections there are.
"""

import asyncio
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from workers.runtime.process import BACKLOG
from workers.runtime.refusal import error_body

# Seconds from the connection, or from the last answer, until the next request's head is complete.
HEAD_S = 5.0

# Seconds from the head until the body is complete.
BODY_S = 10.0

# Bytes of a second that a large body has to come with: an upload over a slow line gets more time.
_BODY_RATE = 256 * 1024

# Bytes of the largest body that gets more time.
_SLOW_BODY_BYTES = 64 << 20

# Seconds that a client may take to receive an answer.
RECEIVE_S = 30.0

# Seconds between looks at all connections.
_SWEEP_S = 1.0

# Bytes of a request's head.
MAX_HEAD_BYTES = 16 * 1024

# File descriptors for everything else: database, event log, embeddings, libraries, and the
# connections that are accepted before the guard sees them.
_RESERVED_FILES = 256

# Of the connections that wait for a request, the share that makes room at once, so that a flood
# does not make each new connection look at all others.
_EVICTED_SHARE = 0.05


def connection_limit(wanted: int) -> int:
    """Return how many connections this process can have, `wanted` at most.

    Raises the process's limit of open files where the system allows it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - _RESERVED_FILES))


def body_seconds(length: int) -> float:
    """Seconds in which a body of so many bytes has to be complete."""
    return BODY_S + min(length, _SLOW_BODY_BYTES) / _BODY_RATE


CountRefusal = Callable[[int, str], None]


class ConnectionGuard:
    """Watches the connections of one HTTP server. For the thread of its event loop."""

    def __init__(self, limit: int, count_refusal: CountRefusal) -> None:
        """`limit` is how many connections there may be.

        `count_refusal` is called with the HTTP status and the cause of each refusal.
        """
        self._limit = limit
        self.count_refusal = count_refusal
        self._connections: set[GuardedConnection] = set()
        self._sweeping = False

    def admit(self, connection: "GuardedConnection") -> None:
        """Make room for a new connection, or refuse it."""
        if len(self._connections) >= self._limit and not self._evict():
            connection.refuse()
        self._connections.add(connection)
        if not self._sweeping:
            self._sweeping = True
            connection.loop.call_later(_SWEEP_S, self._sweep, connection.loop)

    def forget(self, connection: "GuardedConnection") -> None:
        """Take note that a connection is closed."""
        self._connections.discard(connection)

    def _evict(self) -> bool:
        """Close those that have waited longest for a request; returns whether there were any."""
        waiting = [connection for connection in self._connections if connection.is_waiting]
        waiting.sort(key=lambda connection: connection.phase_since_s)
        evicted = waiting[: max(1, int(len(waiting) * _EVICTED_SHARE))]
        for connection in evicted:
            connection.transport.abort()
        return bool(evicted)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = time.monotonic()
        for connection in list(self._connections):
            connection.check(now_s)
        self._sweeping = bool(self._connections)
        if self._sweeping:
            loop.call_later(_SWEEP_S, self._sweep, loop)


@dataclass(frozen=True, slots=True)
class EarlyAnswer:
    """The answer to a request that no HTTP library has read."""

    answer: bytes
    missing_bytes: int
    """Of the request, still to come; nobody reads them."""


class EarlyAnswers(Protocol):
    """Answers requests before they are parsed. For the thread of the event loop."""

    def answer(self, connection: object, data: bytes) -> EarlyAnswer | None:
        """Answer the request that begins with these bytes, or None to let them in."""
        ...

    def end(self, connection: object) -> None:
        """Take note that what a connection was let in with is answered, or the connection gone."""
        ...


class GuardedConfig(uvicorn.Config):
    """A server's configuration, with the guard of its connections."""

    def __init__(self, app: Any, guard: ConnectionGuard, early: EarlyAnswers | None = None) -> None:
        super().__init__(
            app,
            http=GuardedConnection,
            ws="none",
            # Under a flood it answers twice as soon as asyncio's own.
            loop="uvloop",
            lifespan="off",
            # Anybody can send X-Forwarded-For, also through a proxy on this machine.
            proxy_headers=False,
            server_header=False,
            # Warnings are about single requests: anybody could fill the disk with them.
            log_level="error",
            access_log=False,
            # uvloop accepts one connection in each turn; the others wait here. asyncio would accept
            # all of them at once, beyond the limit, before the guard sees the first.
            backlog=BACKLOG,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        self.guard = guard
        self.early = early


class GuardedConnection(H11Protocol):
    """One connection, in one phase after the other: head, body, answer, and from the start."""

    def __init__(
        self,
        config: GuardedConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._guard = config.guard
        self._early = config.early
        self._unread_bytes = 0
        """Of a request that was answered early."""
        self._answers = 0
        self._phase: object = None
        self.phase_since_s = time.monotonic()

    @property
    def is_waiting(self) -> bool:
        """Whether there is no request under way."""
        idle = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        return idle and not self.transport.get_write_buffer_size()

    @property
    def _at_start(self) -> bool:
        """Whether the next byte is the first one of a request."""
        received, _ = self.conn.trailing_data
        return self.is_waiting and self.conn.our_state is h11.IDLE and not received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._guard.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._guard.forget(self)
        self._end_early()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._unread_bytes:
            begin = min(self._unread_bytes, len(data))
            self._unread_bytes -= begin
            data = data[begin:]
            if not data:
                return
        early = self._early.answer(self, data) if self._early and self._at_start else None
        if early is None:
            super().data_received(data)
            return
        self._unread_bytes = early.missing_bytes
        # Instead of uvicorn's timer, the sweep watches the connection from here on.
        self._unset_keepalive_if_required()
        self._answers += 1
        self.transport.write(early.answer)

    def on_response_complete(self) -> None:
        """See `H11Protocol`."""
        self._end_early()
        self._answers += 1
        super().on_response_complete()

    def _end_early(self) -> None:
        if self._early is not None:
            self._early.end(self)

    def check(self, now_s: float) -> None:
        """Close the connection if it has been in its phase for too long."""
        unsent = self.transport.get_write_buffer_size() > 0
        # With the number of answers: the same phase of the next request counts anew.
        phase = (self.conn.their_state, self.conn.our_state, self._answers, unsent)
        if phase != self._phase:
            self._phase = phase
            self.phase_since_s = now_s
            return
        limit_s = self._limit_s(unsent=unsent)
        if limit_s is not None and now_s - self.phase_since_s > limit_s:
            self.transport.abort()

    def refuse(self) -> None:
        """Answer that there is no room, and close."""
        self._guard.count_refusal(503, "connections")
        self._answer_and_close("503 Service Unavailable", "too many connections; try again")

    def send_400_response(self, msg: str) -> None:
        """Answer to bytes that are no HTTP request, and close."""
        self._guard.count_refusal(400, "not-http")
        self._answer_and_close(
            "400 Bad Request",
            f"the request must be HTTP with a head of at most {MAX_HEAD_BYTES:,} bytes",
        )

    def _answer_and_close(self, status: str, message: str) -> None:
        body = error_body(message)
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _limit_s(self, *, unsent: bool) -> float | None:
        """How long the present phase may take; None while the application works."""
        if unsent or self.transport.is_closing():
            return RECEIVE_S
        if self.conn.their_state is h11.IDLE:
            return HEAD_S
        if self.conn.their_state is h11.SEND_BODY:
            return body_seconds(self._declared_bytes)
        return None

    @property
    def _declared_bytes(self) -> int:
        """What the request under way says of its body's length; 0 for one without."""
        for name, value in self.headers:
            # h11 has read it, so it is a number.
            if name == b"content-length":
                return int(value)
        return 0
