"""Settling: waiting until everything that was published is indexed."""

import time
from collections.abc import Sequence

from ops.bench.fleet import Fleet
from ops.bench.publisher import arrival_messages
from schemas.errors import WorkFailedError
from schemas.events import ACCEPTED, ARRIVED, ImageArrived
from stream.log.event_log import EventLog
from stream.log.offsets import lag
from stream.log.outbox import outbox_size
from workers.repository.connection import Connection
from workers.repository.counters import totals

# Seconds between two looks: below it, the looks themselves would slow the database.
POLL_S = 0.05

# Longest wait for the first images: several processes import their libraries on few cores.
WARM_UP_TIMEOUT_S = 120.0


class StallClock:
    """The longest time in which no image was indexed although there was work."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._indexed = -1
        self._changed_at = time.monotonic()

    def observe(self, indexed: int, *, busy: bool) -> None:
        """Take a reading: images indexed so far, and whether there is work."""
        if indexed != self._indexed or not busy:
            self._indexed = indexed
            self._changed_at = time.monotonic()
        self.longest_s = max(self.longest_s, time.monotonic() - self._changed_at)


def events_under_way(log: EventLog, conn: Connection) -> int:
    """Count the events between arrival and index."""
    arrived = lag(log, conn, "intake", [ARRIVED])
    in_outbox = outbox_size(conn)
    # Counted last: an event that moves on meanwhile is counted twice, never missed.
    return arrived + in_outbox + lag(log, conn, "index", [ACCEPTED])


def settle(
    fleet: Fleet,
    log: EventLog,
    conn: Connection,
    images: int,
    timeout_s: float,
    stall: StallClock | None = None,
) -> bool:
    """Wait until so many images are indexed and no event is under way; return whether it came so.

    Restarts workers that end meanwhile; `stall` watches how steadily images are indexed.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        indexed = totals(conn, fleet.generation).images
        under_way = events_under_way(log, conn)
        # The number of images is not enough: rejected and repeated events end without one.
        if indexed >= images and under_way == 0:
            return True
        # A fleet has no supervisor, and workers may end when a service is unavailable.
        fleet.restart_ended()
        if stall is not None:
            stall.observe(indexed, busy=under_way > 0)
        time.sleep(POLL_S)
    return False


def warm_up(fleet: Fleet, log: EventLog, conn: Connection, events: Sequence[ImageArrived]) -> None:
    """Let some events through, so that all workers have started before anything is measured."""
    log.publish(None, arrival_messages(events))
    if not settle(fleet, log, conn, len(events), WARM_UP_TIMEOUT_S):
        raise WorkFailedError(
            f"the workers did not index {len(events)} images within {WARM_UP_TIMEOUT_S:g} seconds;"
            f" their logs: {fleet.log_tails()}"
        )
