"""What all Kafka clients here share: how they connect, their limits, and records as events."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from schemas.errors import RejectInputError, RetryLaterError, brief
from schemas.records import EARLIEST, LATEST, storable_time
from schemas.service_settings import KafkaSettings
from stream.log.event_log import Event, Unreadable

# A killed member loses its partitions after this long: the least a broker allows by default.
SESSION_TIMEOUT_S = 6.0

# How often a member reports; four times within the session timeout, so that one may get lost.
HEARTBEAT_S = 1.5

# How long one request may take, so that an unavailable broker is noticed soon.
REQUEST_TIMEOUT_MS = 5_000

# How long publishing may take with all retries; room for one request that timed out.
DELIVERY_TIMEOUT_MS = 8_000

# The client's own limit is 30 seconds, long after a broker is back.
_RECONNECT_BACKOFF_MAX_MS = 1000


# No retry makes an event smaller.
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


def client_settings(settings: KafkaSettings) -> dict[str, Any]:
    """Return the keyword arguments with which every kafka-python client reaches the brokers."""
    arguments: dict[str, Any] = {
        "bootstrap_servers": list(settings.bootstrap),
        "client_id": "sigma",
        "reconnect_backoff_max_ms": _RECONNECT_BACKOFF_MAX_MS,
        "security_protocol": _security_protocol(settings),
    }
    if settings.username is not None:
        arguments["sasl_mechanism"] = settings.mechanism
        arguments["sasl_plain_username"] = settings.username
        arguments["sasl_plain_password"] = settings.password
    return arguments


def reader_settings(settings: KafkaSettings) -> dict[str, Any]:
    """Return the keyword arguments with which every consumer reads."""
    return client_settings(settings) | {
        # Events of a transaction that was aborted were never published.
        "isolation_level": "read_committed",
        # Committing by itself, it would report events whose transaction failed.
        "enable_auto_commit": False,
        # A new group starts at the oldest event; the default is the newest.
        "auto_offset_reset": "earliest",
        # A topic created by accident would have the wrong partitions.
        "allow_auto_create_topics": False,
    }


def event_of(record: Any, published_s: float) -> Event:
    """Convert a record of kafka-python, or a message of faust; `published_s` counts from 1970.

    A foreign producer may leave out key, value and headers, or write them in any bytes.
    """
    if isinstance(record.value, Unreadable):
        return _unreadable_event(record, record.value, published_s)
    key = (record.key or b"").decode("utf-8", "replace")
    return Event(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        # PostgreSQL's text cannot contain a null character.
        key=key.replace("\x00", "\ufffd"),
        value=record.value or b"",
        headers=headers_of(record),
        published_at=_moment(published_s),
    )


def _unreadable_event(record: Any, bad: Unreadable, published_s: float) -> Event:
    """An event that stands for offsets; its key is their place, for nothing is known of theirs."""
    return Event(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=f"{record.topic}/{record.partition}/{bad.first}",
        value=b"",
        headers={},
        published_at=_moment(published_s),
        unreadable=bad,
    )


def _moment(published_s: float) -> datetime:
    """A record's time; a producer may send any number as its own clock's."""
    try:
        return storable_time(datetime.fromtimestamp(published_s, UTC))
    except (OverflowError, ValueError, OSError):
        return EARLIEST if published_s < 0 else LATEST


def headers_of(record: Any) -> dict[str, str]:
    """Return a record's headers as text; clients give them as pairs or as a mapping."""
    headers = record.headers or {}
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    # PostgreSQL's text cannot contain a null character.
    return {
        name.replace("\x00", "\ufffd"): (value or b"")
        .decode("utf-8", "replace")
        .replace("\x00", "\ufffd")
        for name, value in pairs
    }


@contextmanager
def retry_later(action: str) -> Iterator[None]:
    """Raise errors of brokers and database as `RetryLaterError`; `action` completes "could not".

    An event that is too large stays so: it is a `RejectInputError`.
    """
    try:
        yield
    except TOO_LARGE as error:
        raise RejectInputError(
            "too-large",
            f"Kafka does not take an event of this size ({type(error).__name__}); "
            "send fewer or shorter captions, or raise the topic's max.message.bytes",
        ) from error
    except KafkaError as error:
        raise RetryLaterError(
            f"Kafka could not {action} ({type(error).__name__}: {error}); "
            "check that the brokers answer"
        ) from error
    except psycopg.OperationalError as error:
        raise RetryLaterError(
            f"the database does not answer ({brief(error)}); check that it runs"
        ) from error


def _security_protocol(settings: KafkaSettings) -> str:
    if settings.username is not None:
        return "SASL_SSL" if settings.tls else "SASL_PLAINTEXT"
    return "SSL" if settings.tls else "PLAINTEXT"
