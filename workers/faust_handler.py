"""The faust handler: events that faust brings, as batches of the intake worker."""

import threading
from collections.abc import Callable, Mapping, Sequence

import structlog

from schemas.events import ARRIVED, DELETED
from stream.log.event_log import Batch, Event, EventLog, Partition
from stream.log.offsets import committed, contiguous_batch
from workers.repository.connection import Connection
from workers.runtime.process import TRANSIENT_ERRORS

# The consumer group.
GROUP = "intake"

# What it reads.
TOPICS = (ARRIVED, DELETED)

# Most events of one transaction: more would make deletions wait behind slow sources.
MOST_EVENTS = 32

# Most batches of one partition in a sweep; other partitions and what faust brings wait meanwhile.
_SWEEP_BATCHES = 20

# Seconds between tries while a service is unavailable and faust waits for the batch.
_PAUSE_S = 0.5

log = structlog.get_logger()


class FaustHandler:
    """Takes events that faust brings: again, with gaps, or never. The offsets in Postgres decide.

    `process` works on a batch and commits its offsets; `connect` opens a database connection. The
    handler owns `events`, and closes it. For one thread.
    """

    def __init__(
        self,
        process: Callable[[Connection, EventLog, Batch], None],
        events: EventLog,
        connect: Callable[[], Connection],
        stop: threading.Event,
        set_lag: Callable[[float], None],
    ) -> None:
        self._process = process
        self._log = events
        self._connect = connect
        self._stop = stop
        self._set_lag = set_lag
        self._conn: Connection | None = None
        self._offsets_at_last_sweep: Mapping[Partition, int] = {}
        self._told_open: dict[Partition, int] = {}
        """Where each partition waited for an open transaction when that was told."""

    def handle(self, events: Sequence[Event]) -> None:
        """Work until the events are committed, by this member or another.

        While a service is unavailable it waits and retries: faust would not bring them again.
        """
        while not self._stop.is_set():
            try:
                conn = self._connected()
                done = committed(self._log, conn, GROUP, TOPICS)
                batch = contiguous_batch(self._log, done, events)
                if not batch:
                    return
                self._process(conn, self._log, batch)
            except TRANSIENT_ERRORS as error:
                log.warning(
                    "intake paused: dependency unavailable",
                    worker=GROUP,
                    events=len(events),
                    reason=str(error),
                )
                self._stop.wait(_PAUSE_S)

    def sweep(self) -> None:
        """Work on partitions whose offset has not moved since the last sweep although events wait.

        Faust acknowledges events whose handling failed, and then never brings them again.
        """
        try:
            ends = self._log.end_offsets(TOPICS)
            done = committed(self._log, self._connected(), GROUP, TOPICS)
            self._set_lag(backlog(ends, done))
            stuck = stuck_partitions(ends, done, self._offsets_at_last_sweep)
            self._offsets_at_last_sweep = {place: done.get(place, 0) for place in ends}
            for place in stuck:
                self._work_off(place, done.get(place, 0), ends[place])
        except TRANSIENT_ERRORS as error:
            log.warning("sweep skipped", worker=GROUP, reason=str(error))

    def _work_off(self, place: Partition, first: int, end: int) -> None:
        """Work on what a partition holds from `first` on, at most a few batches of it."""
        for _ in range(_SWEEP_BATCHES):
            if self._stop.is_set():
                return
            span = self._log.read_span(*place, first=first, limit=MOST_EVENTS)
            if span.end <= first:
                self._tell_open_transaction(place, first, end)
                return
            if span.events:
                self.handle(span.events)
                first = span.events[-1].offset + 1
            else:
                # Aborted transactions and the markers of all of them take offsets, without events.
                self._process(self._connected(), self._log, Batch((), {place: (first, span.end)}))
                first = span.end

    def _tell_open_transaction(self, place: Partition, first: int, end: int) -> None:
        """Tell once that a partition holds events which nobody can read yet."""
        if first < end and self._told_open.get(place) != first:
            self._told_open[place] = first
            log.warning(
                "events wait for a producer to end its transaction",
                topic=place[0],
                partition=place[1],
                offset=first,
                offsets=end - first,
            )

    def close(self) -> None:
        """Close the log and the connection."""
        self._log.close()
        if self._conn is not None:
            self._conn.close()

    def _connected(self) -> Connection:
        if self._conn is None or self._conn.closed:
            self._conn = self._connect()
        return self._conn


def backlog(ends: Mapping[Partition, int], done: Mapping[Partition, int]) -> int:
    """Count the events before `ends` that are not committed (`done`), over all partitions."""
    return sum(max(0, end - done.get(place, 0)) for place, end in ends.items())


def stuck_partitions(
    ends: Mapping[Partition, int],
    done: Mapping[Partition, int],
    before: Mapping[Partition, int],
) -> list[Partition]:
    """List partitions with events left whose committed offset is what it was `before`.

    A partition that is not in `before` was not seen yet, so it cannot be stuck.
    """
    stuck = []
    for place, end in ends.items():
        offset = done.get(place, 0)
        if offset < end and offset == before.get(place):
            stuck.append(place)
    return stuck
