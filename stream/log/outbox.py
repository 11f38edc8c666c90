"""The outbox: events of database transactions on their way to Kafka.

A transaction writes its events to the outbox table; the relay forwards them after the commit, in
their order, and deletes them. A relay that dies between forwarding and deleting forwards some
events twice, with the same CloudEvents id; every consumer here tolerates that. One relay at a time
is active, by its lease; one that hangs is replaced, and what it deletes afterwards is refused.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence

import psycopg
import structlog

from schemas.errors import RejectInputError, RetryLaterError, brief
from schemas.events import REJECTED, ImageRejected
from schemas.named_sql import queries
from stream.lease import RENEW_S, Lease, check, give_up, require_renewal, take
from stream.log.dead_letters import letter_without_origin
from stream.log.event_log import EventLog, Message, join_transaction
from stream.session import Connection

# Notified when a transaction that added events commits; the name is also in log.sql.
CHANNEL = "sigma_outbox"

# Events forwarded at a time: one database round trip and one acknowledged Kafka batch each.
_CHUNK_EVENTS = 1000

# Name of the active relay's lease.
_LEASE = "relay"

# How often a relay looks for a stop, and a standby for the end of the active relay.
_CHECK_INTERVAL_S = 0.5


def add_to_outbox(conn: Connection, messages: Sequence[Message]) -> None:
    """Write messages to the outbox, in the caller's transaction if there is one."""
    columns = {
        "topics": [message.topic for message in messages],
        "keys": [message.key for message in messages],
        "values": [message.value for message in messages],
        "headers": [json.dumps(dict(message.headers)) for message in messages],
    }
    with join_transaction(conn):
        conn.execute(queries()["add_to_outbox"], columns)
        conn.execute(queries()["notify_outbox"])


def relay(log: EventLog, conn: Connection, stop: threading.Event) -> None:
    """Forward events until stopped; wait as a standby while another relay is active.

    `RetryLaterError` when the database or Kafka is unavailable, or another relay took over.
    """
    try:
        # Before the first look, so that an event added between a look and a wait ends the wait.
        conn.execute(f"LISTEN {CHANNEL}".encode())
        # One active relay at a time keeps the order of events of one image.
        while not stop.is_set():
            lease = take(conn, _LEASE)
            if lease is None:
                stop.wait(_CHECK_INTERVAL_S)
            else:
                _forward_until(log, conn, lease, stop)
                give_up(conn, [lease])
    except psycopg.OperationalError as error:
        raise RetryLaterError(
            f"the database does not answer ({brief(error)}); events stay in the outbox"
        ) from error


def forward(
    log: EventLog,
    conn: Connection,
    lease: Lease | None = None,
    keep: Callable[[], None] = lambda: None,
) -> int:
    """Forward the oldest events of the outbox, at most one chunk; return how many.

    `keep` is called before anything is published: it renews the lease. `LostLeaseError` when it
    was lost: the events stay, for the relay that has it now.
    """
    ids: list[int] = []
    messages: list[Message] = []
    for number, topic, key, value, headers in conn.execute(
        queries()["oldest_in_outbox"], {"amount": _CHUNK_EVENTS}
    ):
        ids.append(number)
        messages.append(Message(topic, key, value, headers))
    # Published before deleted: a relay that dies between repeats events instead of losing them.
    _publish(log, messages, keep)
    if ids:
        with conn.transaction():
            conn.execute(queries()["delete_from_outbox"], {"ids": ids})
            check(conn, [] if lease is None else [lease])
    return len(ids)


def _publish(log: EventLog, messages: Sequence[Message], keep: Callable[[], None]) -> None:
    """Publish; an event that the log will never take is replaced by a dead letter about it."""
    # Each time: halving may take longer than a lease, and a process may have been stopped since.
    keep()
    try:
        log.publish(None, messages)
    except RejectInputError as error:
        if len(messages) == 1:
            _set_aside(log, messages[0], error)
            return
        # Halved until it is alone; events that went through come twice, which readers tolerate.
        middle = len(messages) // 2
        _publish(log, messages[:middle], keep)
        _publish(log, messages[middle:], keep)


def _set_aside(log: EventLog, refused: Message, error: RejectInputError) -> None:
    structlog.get_logger().error(
        "event not published: Kafka does not take it",
        topic=refused.topic,
        image_id=refused.key,
        bytes=refused.size,
        reason=str(error),
    )
    # A dead letter that is too large itself is told by the log line only.
    if refused.topic != REJECTED:
        rejected = ImageRejected(refused.key, "", error.code, str(error), "outbox")
        log.publish(None, [letter_without_origin(rejected)])


def outbox_size(conn: Connection) -> int:
    """Count the events that are not forwarded yet."""
    counted = conn.execute(queries()["outbox_size"]).fetchone()
    return int(counted[0]) if counted else 0


def _wait_for_events(conn: Connection) -> None:
    for _ in conn.notifies(timeout=_CHECK_INTERVAL_S, stop_after=1):
        pass


def _forward_until(log: EventLog, conn: Connection, lease: Lease, stop: threading.Event) -> None:
    """Forward events as the active relay until stopped; `LostLeaseError` when it is replaced."""
    renewed_at_s = time.monotonic()

    def keep() -> None:
        nonlocal renewed_at_s
        now_s = time.monotonic()
        if now_s - renewed_at_s > RENEW_S:
            # Kafka itself would not refuse a relay that was replaced.
            require_renewal(conn, [lease])
            # The time before it: the lease lasts from a moment after that.
            renewed_at_s = now_s

    while not stop.is_set():
        keep()
        if forward(log, conn, lease, keep) < _CHUNK_EVENTS:
            _wait_for_events(conn)
