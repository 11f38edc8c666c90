"""The events on the topics: frozen records, their JSON form, and the JSON Schema of each.

Published schemas never change (`schemas/events/published.json` holds their hashes): a new version
gets a file beside them, and `schemas.compatibility` checks that all versions read each other.
"""

import json
import re
import secrets
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from typing import Any, ClassVar

from schemas.errors import RejectInputError, UsageError
from schemas.event_schemas import schema_problem, validator
from schemas.metadata import Metadata, checked_metadata, stored_metadata
from schemas.records import JsonObject, require_aware, storable_time

# Topic names and the NAMEs of events are stored and published: they never change.
ARRIVED = "sigma.images.arrived"
ACCEPTED = "sigma.images.accepted"
REJECTED = "sigma.images.rejected"
INDEXED = "sigma.images.indexed"
DELETED = "sigma.images.deleted"
SERVED = "sigma.queries.served"
OPERATIONS = "sigma.ops.events"

# W3C Trace Context, version 00.
_TRACEPARENT = re.compile(r"00-(?P<trace>[0-9a-f]{32})-[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})")
# Flags of a new trace: it is recorded.
_SAMPLED = "01"

# Most bytes of an event's JSON. Events that follow from it are a little larger, and Kafka's default
# limit is 1 MiB a message; a producer may have compressed more into one.
MAX_EVENT_BYTES = 768 * 1024

# PostgreSQL's int and bigint; JSON's integers have no bound.
_INT_MAX = 2**31 - 1
_BIGINT_MAX = 2**63 - 1


def now() -> datetime:
    """Return the current time, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class ImageArrived:
    """A producer has an image.

    A higher `version` replaces what is stored under the same `image_id`.
    """

    TOPIC: ClassVar[str] = ARRIVED
    NAME: ClassVar[str] = "image_arrived"
    SCHEMA: ClassVar[int] = 2

    image_id: str
    uri: str
    version: int = 1
    captions: tuple[str, ...] = ()
    test_captions: tuple[str, ...] = ()
    split: str | None = None
    arrived_at: datetime = field(default_factory=now)
    # A dictionary has no hash.
    metadata: Metadata = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        require_aware("arrived_at", self.arrived_at)


@dataclass(frozen=True, slots=True)
class ImageAccepted:
    """The image was readable and is stored.

    `checksum` is the SHA-256 of the bytes that arrived; `width` and `height` are pixels of that
    image, turned upright. `arrived_at` is the producer's own clock; `published_at` is when its
    event was written to the log, and freshness is measured from there.
    """

    TOPIC: ClassVar[str] = ACCEPTED
    NAME: ClassVar[str] = "image_accepted"
    SCHEMA: ClassVar[int] = 2

    image_id: str
    uri: str
    normalized_uri: str
    checksum: str
    width: int
    height: int
    arrived_at: datetime
    version: int = 1
    captions: tuple[str, ...] = ()
    test_captions: tuple[str, ...] = ()
    split: str | None = None
    published_at: datetime | None = None
    metadata: Metadata = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        require_aware("arrived_at", self.arrived_at)
        require_aware("published_at", self.published_at)


@dataclass(frozen=True, slots=True)
class ImageRejected:
    """A dead letter: `code` for programs, `reason` for people, and the `stage` that refused it."""

    TOPIC: ClassVar[str] = REJECTED
    NAME: ClassVar[str] = "image_rejected"
    SCHEMA: ClassVar[int] = 1

    image_id: str
    uri: str
    code: str
    reason: str
    stage: str
    version: int = 1


@dataclass(frozen=True, slots=True)
class ImageIndexed:
    """The image is in the trie of a generation.

    `identifier` is its primary one, `leaves` are all that it is posted under; `confidence` is the
    log-probability of the primary.
    """

    TOPIC: ClassVar[str] = INDEXED
    NAME: ClassVar[str] = "image_indexed"
    SCHEMA: ClassVar[int] = 1

    image_id: str
    version: int
    generation: int
    identifier: tuple[int, ...]
    leaves: tuple[int, ...]
    confidence: float
    arrived_at: datetime
    indexed_at: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        require_aware("arrived_at", self.arrived_at)
        require_aware("indexed_at", self.indexed_at)


@dataclass(frozen=True, slots=True)
class ImageDeleted:
    """The image must no longer be returned. With `version`, only that version and older ones."""

    TOPIC: ClassVar[str] = DELETED
    NAME: ClassVar[str] = "image_deleted"
    SCHEMA: ClassVar[int] = 1

    image_id: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class QueryServed:
    """One answered query: its text, the generation that answered, and what it answered.

    `image_ids` and `scores` are in the order of the answer; `took_ms` is milliseconds.
    """

    TOPIC: ClassVar[str] = SERVED
    NAME: ClassVar[str] = "query_served"
    SCHEMA: ClassVar[int] = 1

    query: str
    generation: int
    took_ms: float
    image_ids: tuple[str, ...]
    scores: tuple[float, ...]
    query_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    served_at: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        require_aware("served_at", self.served_at)


@dataclass(frozen=True, slots=True)
class OperationsEvent:
    """Something that the person on call wants to know: a switch, a spill, an alarm."""

    TOPIC: ClassVar[str] = OPERATIONS
    NAME: ClassVar[str] = "operations_event"
    SCHEMA: ClassVar[int] = 1

    kind: str
    message: str
    happened_at: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        require_aware("happened_at", self.happened_at)


# The record that each topic carries.
EventRecord = (
    ImageArrived
    | ImageAccepted
    | ImageRejected
    | ImageIndexed
    | ImageDeleted
    | QueryServed
    | OperationsEvent
)
EVENTS: Mapping[str, type[EventRecord]] = {
    ARRIVED: ImageArrived,
    ACCEPTED: ImageAccepted,
    REJECTED: ImageRejected,
    INDEXED: ImageIndexed,
    DELETED: ImageDeleted,
    SERVED: QueryServed,
    OPERATIONS: OperationsEvent,
}


def encode(event: EventRecord) -> bytes:
    """Encode an event as compact UTF-8 JSON.

    Times are ISO 8601 with their offset; absent values are left out.
    """
    document = {member.name: getattr(event, member.name) for member in fields(event)}
    present = {name: value for name, value in document.items() if value is not None}
    # As UTF-8 and not escaped: captions in other scripts would take twice the space.
    text = json.dumps(
        present, ensure_ascii=False, separators=(",", ":"), default=datetime.isoformat
    )
    return text.encode()


def decode(topic: str, payload: bytes) -> EventRecord:
    """Decode the payload of an event. Unknown fields are ignored; null means absent.

    What it returns can be stored and read back: times are in UTC and inside PostgreSQL's range,
    numbers that the schema calls integers are integers, texts are UTF-8. Raises `RejectInputError`
    with code `bad-event` for a payload that its schema does not allow, and `too-large`.
    """
    kind = EVENTS.get(topic)
    if kind is None:
        raise UsageError(f"topic must be one of {', '.join(EVENTS)}, got {topic}; correct it")
    document = _parse(kind, payload)
    if "metadata" in document:
        document["metadata"] = _checked_metadata(kind, document["metadata"])
    problem = schema_problem(kind.NAME, kind.SCHEMA, document)
    if problem:
        raise _bad_event(kind, problem)
    values = {}
    for member in fields(kind):
        if member.name in document:
            values[member.name] = document[member.name]
    try:
        record = kind(**{name: _value(kind, name, value) for name, value in values.items()})
    except (ValueError, ArithmeticError, UsageError) as error:
        raise _bad_event(kind, str(error)) from error
    # The JSON of a record is hardly ever longer than the payload that it came from.
    if len(payload) > MAX_EVENT_BYTES and len(encode(record)) > MAX_EVENT_BYTES:
        raise RejectInputError(
            "too-large",
            f"the event must have at most {MAX_EVENT_BYTES:,} bytes of JSON, "
            f"got {len(payload):,}; send fewer or shorter captions",
        )
    return record


def headers(
    event: EventRecord,
    key: str = "",
    cause: Mapping[str, str] | None = None,
    source: str = "sigma",
) -> dict[str, str]:
    """Build the headers of an event: CloudEvents attributes and its W3C trace context.

    `cause` are the headers of the event that led to this one, whose trace it continues.
    Source: CloudEvents Kafka protocol binding 1.0, binary content mode.
    """
    return {
        "ce_specversion": "1.0",
        "ce_id": str(uuid.uuid4()),
        "ce_source": source,
        "ce_type": f"sigma.{event.NAME}.v{event.SCHEMA}",
        "ce_subject": key,
        "ce_time": now().isoformat(),
        "content-type": "application/json",
        "traceparent": traceparent(cause or {}),
    }


def traceparent(cause: Mapping[str, str]) -> str:
    """Make a trace parent with a new span id, in the cause's trace if that has a valid one."""
    given = _TRACEPARENT.fullmatch(cause.get("traceparent", ""))
    flags = given["flags"] if given else _SAMPLED
    trace = given["trace"] if given else ""
    # All zeros, or nothing, is no trace: begin one.
    if not trace.strip("0"):
        trace = secrets.token_hex(16)
    span = secrets.token_hex(8)
    return f"00-{trace}-{span}-{flags}"


def trace_of(event_headers: Mapping[str, str]) -> str:
    """Return the trace id in an event's headers, or "": it joins the log lines of one image."""
    given = _TRACEPARENT.fullmatch(event_headers.get("traceparent", ""))
    return given["trace"] if given else ""


def _parse(kind: type[EventRecord], payload: bytes) -> JsonObject:
    try:
        # NaN and Infinity are no JSON, but Python's and Go's encoders write them: as if absent.
        document = json.loads(payload.decode("utf-8"), parse_constant=lambda _: None)
    # RecursionError: brackets nested deeply enough exhaust the parser's stack.
    except (ValueError, RecursionError) as error:
        raise _bad_event(kind, str(error)) from error
    if not isinstance(document, dict):
        raise _bad_event(kind, f"it must be an object, got a {type(document).__name__}")
    known = {member.name for member in fields(kind)}
    present = {
        name: value for name, value in document.items() if name in known and value is not None
    }
    try:
        # A lone surrogate is legal JSON, but neither Kafka nor Postgres can store it as text.
        json.dumps(present, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise _bad_event(kind, str(error)) from error
    return present


def _checked_metadata(kind: type[EventRecord], document: object) -> JsonObject:
    """Metadata in one form, before the schema is asked: these messages say what to correct."""
    try:
        metadata = checked_metadata(document)
    except UsageError as error:
        raise _bad_event(kind, str(error)) from error
    # Tags as lists again, which a JSON Schema knows.
    return {name: list(v) if isinstance(v, tuple) else v for name, v in metadata.items()}


def _value(kind: type[EventRecord], name: str, value: Any) -> Any:
    """Turn a JSON value into that of the field: times by their name, lists into tuples."""
    if name == "metadata":
        return stored_metadata(value)
    if name.endswith("_at"):
        return storable_time(datetime.fromisoformat(value))
    if name == "image_id" and value.endswith("\n"):
        # The schema's pattern ends in $, which in Python matches before a last line end too.
        raise UsageError("image_id must have no control characters, got a line end")
    if name in _integer_fields(kind.NAME, kind.SCHEMA):
        if isinstance(value, list):
            return tuple(_integer(name, item, _BIGINT_MAX) for item in value)
        return _integer(name, value, _INT_MAX)
    return tuple(value) if isinstance(value, list) else value


def _integer(name: str, value: int | float, most: int) -> int:
    """JSON Schema counts 1.0 as an integer; Python and PostgreSQL do not."""
    if value > most:
        # An integer of hundreds of digits is more than a float can hold.
        shown = f"{value:.3e}" if value <= sys.float_info.max else "more than 1e308"
        raise UsageError(f"{name} must be at most {most}, got {shown}; send a smaller number")
    return int(value)


@cache
def _integer_fields(name: str, version: int) -> frozenset[str]:
    """The fields of an event that its schema calls integers, or lists of integers."""
    schema = validator(name, version).schema
    properties = schema["properties"] if isinstance(schema, dict) else {}
    found = set()
    for field_name, rule in properties.items():
        if "integer" in (rule.get("type"), rule.get("items", {}).get("type")):
            found.add(field_name)
    return frozenset(found)


def _bad_event(kind: type[EventRecord], problem: str) -> RejectInputError:
    return RejectInputError(
        "bad-event",
        f"the payload is not a valid {kind.NAME} event ({problem}); "
        "correct the producer and publish again",
    )
