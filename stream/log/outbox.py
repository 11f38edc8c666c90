"""The outbox relay: forwards events that transactions left in the outbox to Kafka, in their order, then deletes them.

A relay that dies between the two forwards some of them twice, with the same CloudEvents id; every consumer here tolerates that.
"""

import threading

import psycopg

from schemas.errors import RetryLaterError
from schemas.named_sql import queries
from stream.log.event_log import Connection, EventLog, Message
from stream.log.kafka import OUTBOX_CHANNEL

_CHUNK, _LOOK_S = 1000, 0.5


def relay(log: EventLog, conn: Connection, stop: threading.Event) -> None:
    """Forward until stopped, if no other relay does; wait for its end otherwise. `RetryLaterError` when a service is away."""
    try:
        conn.execute(f"LISTEN {OUTBOX_CHANNEL}".encode())
        claimed = False
        while not stop.is_set():
            claimed = claimed or _claim_relay(conn)
            if claimed and forward(log, conn) == _CHUNK:
                continue
            if claimed:
                for _ in conn.notifies(timeout=_LOOK_S, stop_after=1):
                    pass
            else:
                stop.wait(_LOOK_S)
    except psycopg.OperationalError as error:
        raise RetryLaterError(
            f"the database does not answer ({str(error).strip()[:300]}); events wait in the outbox"
        ) from error


def forward(log: EventLog, conn: Connection) -> int:
    """Forward the oldest events of the outbox; returns how many."""
    found = conn.execute(queries()["outbox_oldest"], {"amount": _CHUNK}).fetchall()
    log.publish(
        None, [Message(topic, key, value, headers) for _, topic, key, value, headers in found]
    )
    if found:
        conn.execute(queries()["outbox_drop"], {"ids": [row[0] for row in found]})
    return len(found)


def outbox_size(conn: Connection) -> int:
    """Events that wait to be forwarded."""
    found = conn.execute(queries()["outbox_size"]).fetchone()
    return int(found[0]) if found else 0


def _claim_relay(conn: Connection) -> bool:
    found = conn.execute(queries()["outbox_claim_relay"]).fetchone()
    return bool(found and found[0])
