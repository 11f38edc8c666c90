"""The call pool: threads for what blocks, which the event loop and the decode thread must not.

A bounded number of calls waits. Each thread has a database connection of its own.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import psycopg

from schemas.errors import RetryLaterError
from workers.query.query_line import RETRY_AFTER_S, OverloadedError
from workers.repository.connection import ANSWER_LIMITS, Connection, SessionLimits
from workers.runtime.process import TRANSIENT_ERRORS

# Threads: requests mostly wait for the database, and what computes (small pictures) must leave
# processors to queries.
_THREADS = 4

# Calls that may wait or run: about a second of them.
_MOST_CALLS = 64

# Seconds of idleness after which a connection is tried before it is used.
_TRIED_AFTER_S = 1.0

# For changes, which may wait for what workers have locked: deletions for a batch of arrivals. Each
# has a connection of its own, and a starved machine takes more than two seconds to open one.
WRITE_LIMITS = SessionLimits(statement_s=10, lock_s=5, idle_transaction_s=10, connect_s=10)

# What a client is told when the database does not answer.
_AWAY = "the database does not answer; try again"

R = TypeVar("R")

Connect = Callable[[str, SessionLimits], Connection]


class CallPool:
    """Runs calls in threads. For one event loop."""

    def __init__(self, connect: Connect, most_calls: int = _MOST_CALLS) -> None:
        """`connect` opens a connection of the given name and limits."""
        self._connect = connect
        self._most_calls = most_calls
        self._calls = 0
        """Under way; changed by the event loop's thread only."""
        self._threads = ThreadPoolExecutor(_THREADS, "api")
        self._local = threading.local()
        self._opened: list[Connection] = []
        """Of all threads, to be closed at the end."""

    async def run(self, call: Callable[[], R]) -> R:
        """Run a call; `OverloadedError` when too many are under way."""
        if self._calls >= self._most_calls:
            raise OverloadedError(
                f"as many requests are under way as can be answered in time; try again in"
                f" {RETRY_AFTER_S} second"
            )
        self._calls += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        # When the thread is free, and not when the client has left.
        future.add_done_callback(self._end_call)
        try:
            return await future
        except psycopg.Error as error:
            if isinstance(error, TRANSIENT_ERRORS):
                raise RetryLaterError(_AWAY) from error
            raise

    async def read(self, call: Callable[[Connection], R]) -> R:
        """Run a call on the database; `RetryLaterError` when that does not answer."""
        return await self.run(lambda: call(self._connection()))

    async def write(self, call: Callable[[Connection], R]) -> R:
        """The same for a change, which may wait longer for locks."""

        def changed() -> R:
            with self._connect("api write", WRITE_LIMITS) as conn:
                return call(conn)

        return await self.run(changed)

    def close(self) -> None:
        """End the threads; calls that wait are dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for conn in self._opened:
            conn.close()

    def _end_call(self, _: object) -> None:
        self._calls -= 1

    def _connection(self) -> Connection:
        conn: Connection | None = getattr(self._local, "conn", None)
        if conn is not None and time.monotonic() - self._local.used_s > _TRIED_AFTER_S:
            # It may have been lost while it was idle, as when the database was restarted.
            with suppress(psycopg.OperationalError):
                conn.execute("SELECT 1")
        if conn is None or conn.closed:
            if conn is not None:
                self._opened.remove(conn)
            # Forgotten first: opening may fail.
            self._local.conn = None
            conn = self._connect("api", ANSWER_LIMITS)
            self._opened.append(conn)
            self._local.conn = conn
        self._local.used_s = time.monotonic()
        return conn
