"""The outbox: events of database transactions on their way to Kafka.

A transaction writes its events to the outbox table; the relay forwards them after the commit, in
their order, and deletes them. A relay that dies between forwarding and deleting forwards some
events twice, with the same CloudEvents id; every consumer here tolerates that.
"""

import json
import threading
from collections.abc import Sequence

import psycopg
import structlog

from schemas.errors import RejectInputError, RetryLaterError, brief
from schemas.events import REJECTED, ImageRejected
from schemas.named_sql import queries
from stream.log.event_log import Connection, EventLog, Message, join_transaction, message

# Notified when a transaction that added events commits; the name is also in log.sql.
CHANNEL = "sigma_outbox"

# Events forwarded at a time: one database round trip and one acknowledged Kafka batch each.
_CHUNK_EVENTS = 1000

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

    `RetryLaterError` when the database or Kafka is unavailable.
    """
    try:
        # Before the first look, so that an event added between a look and a wait ends the wait.
        conn.execute(f"LISTEN {CHANNEL}".encode())
        is_active = False
        while not stop.is_set():
            # One active relay at a time keeps the order of events of one image.
            is_active = is_active or _claim_relay(conn)
            if not is_active:
                stop.wait(_CHECK_INTERVAL_S)
            elif forward(log, conn) < _CHUNK_EVENTS:
                _wait_for_events(conn)
    except psycopg.OperationalError as error:
        raise RetryLaterError(
            f"the database does not answer ({brief(error)}); events stay in the outbox"
        ) from error


def forward(log: EventLog, conn: Connection) -> int:
    """Forward the oldest events of the outbox, at most one chunk; return how many."""
    ids: list[int] = []
    messages: list[Message] = []
    for number, topic, key, value, headers in conn.execute(
        queries()["oldest_in_outbox"], {"amount": _CHUNK_EVENTS}
    ):
        ids.append(number)
        messages.append(Message(topic, key, value, headers))
    # Published before deleted: a relay that dies between repeats events instead of losing them.
    _publish(log, messages)
    if ids:
        conn.execute(queries()["delete_from_outbox"], {"ids": ids})
    return len(ids)


def _publish(log: EventLog, messages: Sequence[Message]) -> None:
    """Publish; an event that the log will never take is replaced by a dead letter about it."""
    try:
        log.publish(None, messages)
    except RejectInputError as error:
        if len(messages) == 1:
            _set_aside(log, messages[0], error)
            return
        # Halved until it is alone; events that went through come twice, which readers tolerate.
        middle = len(messages) // 2
        _publish(log, messages[:middle])
        _publish(log, messages[middle:])


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
        letter = ImageRejected(refused.key, "", error.code, str(error), "outbox")
        log.publish(None, [message(letter, refused.key)])


def outbox_size(conn: Connection) -> int:
    """Count the events that are not forwarded yet."""
    counted = conn.execute(queries()["outbox_size"]).fetchone()
    return int(counted[0]) if counted else 0


def _wait_for_events(conn: Connection) -> None:
    for _ in conn.notifies(timeout=_CHECK_INTERVAL_S, stop_after=1):
        pass


def _claim_relay(conn: Connection) -> bool:
    """Try to become the active relay. The claim ends with the connection."""
    claimed = conn.execute(queries()["claim_relay"]).fetchone()
    return bool(claimed and claimed[0])
