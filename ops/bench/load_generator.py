"""The load generator: many clients of one query worker, in a process of its own.

`python -m ops.bench.load_generator URL` reads a `LoadPhase` from standard input and prints a
`LoadTally`, both as JSON. Closed loop: each client asks again when it has its answer. Open loop:
queries are due at random moments, whether or not earlier ones were answered, and a wait counts from
the moment the query was due. Otherwise a slow server would slow its own clients down, and waits
would go unseen ("coordinated omission").
"""

import asyncio
import gc
import json
import random
import sys
import time
from collections import deque
from urllib.parse import urlsplit

import uvloop

from ops.bench.load_connection import LoadConnection
from ops.bench.load_tally import LoadPhase, LoadTally, TallyKeeper
from ops.bench.query_texts import query_texts
from workers.runtime.connection_guard import connection_limit

# Seconds in which the clients of a closed loop begin, one after the other.
_RAMP_S = 2.0

# Longest wait for an answer.
PATIENCE_S = 30.0

# Seconds between looks for queries without an answer.
_SWEEP_S = 1.0

# Seconds after which an idle connection is given up. The server closes idle ones after five: a
# query sent in that moment would be lost, which is no refusal.
_IDLE_S = 3.0

# Seconds before a client whose connection failed tries again.
_RECONNECT_S = 1.0

# A refused client comes again after `Retry-After` times 1 to this, so that those who were refused
# together do not come back together.
_SPREAD = 2.0

# Different queries; they are repeated.
_TEXTS = 1000


class LoadGenerator:
    """Asks one server during one phase. For the thread of one event loop."""

    def __init__(self, url: str, phase: LoadPhase) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or 0
        self._phase = phase
        self._random = random.Random(phase.seed)
        self._requests = [_request(text) for text in query_texts(_TEXTS, phase.seed)]
        self._seen = TallyKeeper()
        self._connections: set[LoadConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._free: list[LoadConnection] = []
        """Of an open loop; the one that was used last is used next."""
        self._unsent: deque[float] = deque()
        """When queries were due for which there is no connection, in an open loop."""
        self._next_due_s = 0.0
        self._end_s = 0.0

    async def run(self) -> LoadTally:
        """Ask for the time of the phase, then wait for what is under way."""
        loop = asyncio.get_running_loop()
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        self._end_s = began_s + self._phase.seconds
        if self._phase.rate is None:
            for number in range(self._phase.clients):
                loop.call_later(_RAMP_S * number / self._phase.clients, self._ask_again, None)
        else:
            self._next_due_s = began_s
            self._ask_due()
        while time.monotonic() < self._end_s or self._seen.under_way:
            await asyncio.sleep(min(_SWEEP_S, max(0.01, self._end_s - time.monotonic())))
            self._sweep()
        elapsed_s = time.monotonic() - began_s
        for connection in self._connections:
            connection.close()
        cpu_s = time.process_time() - began_cpu_s
        return self._seen.tally(self._phase.clients, elapsed_s, cpu_s)

    def _ask_again(self, connection: LoadConnection | None) -> None:
        """Let a client of a closed loop ask."""
        now_s = time.monotonic()
        if now_s >= self._end_s:
            return
        self._seen.begin()
        self._ask(connection, now_s)

    def _ask_due(self) -> None:
        """Send what is due in an open loop, and come back when the next query is."""
        assert self._phase.rate is not None
        now_s = time.monotonic()
        while self._next_due_s <= min(now_s, self._end_s):
            self._seen.begin(late_s=now_s - self._next_due_s)
            self._send_due(self._next_due_s)
            # Waits between the arrivals of many independent clients are exponential.
            self._next_due_s += self._random.expovariate(self._phase.rate)
        if self._next_due_s <= self._end_s:
            loop = asyncio.get_running_loop()
            # Later than now: every turn of the loop reads answers, too.
            loop.call_later(self._next_due_s - now_s, self._ask_due)

    def _send_due(self, due_s: float) -> None:
        now_s = time.monotonic()
        while self._free:
            connection = self._free.pop()
            if connection.is_open and now_s - connection.free_since_s < _IDLE_S:
                self._ask(connection, due_s)
                return
            connection.close()
        if len(self._connections) + len(self._opening) < self._phase.clients:
            self._ask(None, due_s)
        else:
            self._unsent.append(due_s)

    def _ask(self, connection: LoadConnection | None, due_s: float) -> None:
        request = self._requests[self._seen.begun % len(self._requests)]
        if connection is not None and connection.is_open:
            connection.ask(request, due_s)
            return
        task = asyncio.ensure_future(self._connect(request, due_s))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, request: bytes, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_S):
                _, connection = await loop.create_connection(
                    lambda: LoadConnection(self._answered, self._failed), self._host, self._port
                )
        except OSError as error:
            # The time-out is one, too.
            self._failed(None, f"no connection: {type(error).__name__}")
            return
        self._connections.add(connection)
        connection.ask(request, due_s)

    def _answered(self, connection: LoadConnection, took_ms: float, retry_after_s: float) -> None:
        """Take note of an answer; of a refusal if it says when to come again."""
        if retry_after_s:
            self._seen.refuse(took_ms)
        else:
            self._seen.answer(took_ms)
        if self._phase.rate is not None:
            self._set_free(connection)
            return
        pause_s = retry_after_s * self._random.uniform(1.0, _SPREAD)
        if pause_s:
            asyncio.get_running_loop().call_later(pause_s, self._ask_again, connection)
        else:
            self._ask_again(connection)

    def _failed(self, connection: LoadConnection | None, kind: str | None) -> None:
        """Take note of a connection that ended, and of its query if it had one (`kind`)."""
        if connection is not None:
            self._connections.discard(connection)
        if kind is None:
            return
        self._seen.fail(kind)
        if self._phase.rate is None:
            asyncio.get_running_loop().call_later(_RECONNECT_S, self._ask_again, None)
        elif self._unsent:
            self._ask(None, self._unsent.popleft())

    def _set_free(self, connection: LoadConnection) -> None:
        if self._unsent:
            self._ask(connection, self._unsent.popleft())
            return
        self._free.append(connection)

    def _sweep(self) -> None:
        limit_s = time.monotonic() - PATIENCE_S
        for connection in list(self._connections):
            connection.give_up_before(limit_s)
        while self._unsent and self._unsent[0] < limit_s:
            self._unsent.popleft()
            self._seen.fail("no connection was free in time")


def _request(text: str) -> bytes:
    body = json.dumps({"query": text}).encode()
    head = (
        "POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main(url: str) -> None:
    """Run one phase."""
    phase = LoadPhase.from_json(json.load(sys.stdin))
    # A client needs a file descriptor; where the system allows fewer, there are fewer clients.
    phase = phase.with_clients(connection_limit(phase.clients))
    # A garbage collection of half a second would look like a slow answer.
    gc.disable()
    json.dump(uvloop.run(LoadGenerator(url, phase).run()).to_json(), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
