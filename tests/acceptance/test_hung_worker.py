"""A worker that hangs, as on a machine that vanished: the others go on, and it changes nothing."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from ops.bench.chaos import audit_index
from ops.bench.fleet import ROLES, Fleet, open_fleet
from ops.bench.publisher import Publisher, arrival_messages, noise_arrivals
from ops.bench.settling import settle, warm_up
from stream.lease import Lease, LostLeaseError, check
from workers.repository.connection import Connection, transaction
from workers.repository.stored_images import images_by_id

# From the stop until events that were published then have their effect.
TAKEOVER_S = 15.0

WARM_UP_EVENTS = 64

# Events that flow while the worker is stopped, in seconds.
STREAM_EVENTS = 400
STREAM_S = 20.0

# Events that are published right after the stop.
LATE_EVENTS = 48

# Longest wait for the last events: the machine may be busy.
SETTLE_TIMEOUT_S = 120.0

# The leases of one kind that are held, with the process of their holder.
HELD = """
    SELECT name, fence, split_part(owner, ':', 2)::int FROM lease
    WHERE name LIKE %s AND lease_holds(lease) ORDER BY name
"""


@dataclass(frozen=True)
class HungWorker:
    """A process that was stopped while it had a lease."""

    pid: int
    lease: Lease


def until(met: Callable[[], bool], timeout_s: float) -> float:
    """Wait until a condition holds; return the seconds that it took."""
    began = time.monotonic()
    while not met():
        assert time.monotonic() - began < timeout_s, "the condition was not met in time"
        time.sleep(0.05)
    return time.monotonic() - began


@contextmanager
def hung_holder(conn: Connection, names: str) -> Iterator[HungWorker]:
    """Stop a process at a moment at which it has a lease of these names; it goes on afterwards."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for name, fence, pid in conn.execute(HELD, (names,)).fetchall():
            os.kill(pid, signal.SIGSTOP)
            try:
                # It may have given the lease up since.
                if (name, fence, pid) in conn.execute(HELD, (names,)).fetchall():
                    yield HungWorker(pid, Lease(name, fence))
                    return
            finally:
                os.kill(pid, signal.SIGCONT)
    raise AssertionError(f"nobody has a lease {names}")


def newest_fence(conn: Connection, name: str) -> int:
    row = conn.execute("SELECT fence FROM lease WHERE name = %s", (name,)).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", ["relay", "partition index %"])
def test_events_go_on_when_a_worker_hangs_and_it_changes_nothing_afterwards(
    request: pytest.FixtureRequest, names: str
) -> None:
    # The relay is the leader of the outbox, which only Kafka needs.
    broker = request.getfixturevalue("kafka").bootstrap[0] if names == "relay" else None
    with open_fleet(broker) as fleet, fleet.services.connect("test") as conn:
        for role in ROLES * 2:
            fleet.start(role)
        events = noise_arrivals(fleet.folder, WARM_UP_EVENTS + STREAM_EVENTS + LATE_EVENTS, 3)
        log = fleet.services.open_log()
        warm_up(fleet, log, conn, events[:WARM_UP_EVENTS])
        publisher = Publisher(log, events[WARM_UP_EVENTS:-LATE_EVENTS], STREAM_S)
        publisher.start()
        late = [event.image_id for event in events[-LATE_EVENTS:]]
        with hung_holder(conn, names) as hung:
            log.publish(None, arrival_messages(events[-LATE_EVENTS:]))
            taken_s = until(
                lambda: newest_fence(conn, hung.lease.name) > hung.lease.fence, TAKEOVER_S
            )
            rest_s = TAKEOVER_S - taken_s
            effect_s = until(lambda: len(images_by_id(conn, late)) == LATE_EVENTS, rest_s)
            print(f"{names}: taken over after {taken_s:.1f} s, effects {effect_s:.1f} s later")
        with pytest.raises(LostLeaseError), transaction(conn):
            check(conn, [hung.lease])
        # What it did under its session when it woke up was refused, and it says so.
        until(lambda: "session ended, retrying" in logs_of(fleet), SETTLE_TIMEOUT_S)
        publisher.join(STREAM_S + SETTLE_TIMEOUT_S)
        assert settle(fleet, log, conn, len(events), SETTLE_TIMEOUT_S), fleet.log_tails()
        require_nothing_lost_or_doubled(fleet, conn, len(events))
        log.close()


def logs_of(fleet: Fleet) -> str:
    return "".join(file.read_text(errors="replace") for file in fleet.folder.glob("*.log"))


def require_nothing_lost_or_doubled(fleet: Fleet, conn: Connection, events: int) -> None:
    log = fleet.services.open_log()
    audit = audit_index(log, conn, fleet.generation, events)
    log.close()
    print(audit)
    assert (audit.lost, audit.doubled, audit.indexed) == (0, 0, events)
    assert audit.indexed_events == events
    assert audit.counters_agree
    assert conn.execute("SELECT count(*) FROM rejection").fetchone() == (0,)
