"""The events on the topics: frozen records, their JSON form, and the JSON Schema of each version."""

import json
import re
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any, ClassVar

from jsonschema import Draft202012Validator

from schemas.compiled_schema import Check, compile_check
from schemas.errors import RejectInputError, UsageError
from schemas.records import require_aware

ARRIVED = "sigma.images.arrived"
ACCEPTED = "sigma.images.accepted"
REJECTED = "sigma.images.rejected"
INDEXED = "sigma.images.indexed"
DELETED = "sigma.images.deleted"
SERVED = "sigma.queries.served"
OPERATIONS = "sigma.ops.events"

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class ImageArrived:
    """A producer has an image. A higher `version` replaces what is stored under the same `image_id`."""

    TOPIC: ClassVar[str] = ARRIVED
    NAME: ClassVar[str] = "image_arrived"

    image_id: str
    uri: str
    version: int = 1
    captions: tuple[str, ...] = ()
    test_captions: tuple[str, ...] = ()
    split: str | None = None
    arrived_at: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        require_aware("arrived_at", self.arrived_at)


@dataclass(frozen=True, slots=True)
class ImageAccepted:
    """The image was readable and is stored. `checksum` is SHA-256 of the bytes that arrived; sizes are theirs, upright.

    `arrived_at` is what the producer says, `published_at` when its event was written to the log: freshness counts from there.
    """

    TOPIC: ClassVar[str] = ACCEPTED
    NAME: ClassVar[str] = "image_accepted"

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

    def __post_init__(self) -> None:
        require_aware("arrived_at", self.arrived_at)
        require_aware("published_at", self.published_at)


@dataclass(frozen=True, slots=True)
class ImageRejected:
    """A dead letter: `code` for machines, `reason` as a sentence, `stage` that refused it."""

    TOPIC: ClassVar[str] = REJECTED
    NAME: ClassVar[str] = "image_rejected"

    image_id: str
    uri: str
    code: str
    reason: str
    stage: str
    version: int = 1


@dataclass(frozen=True, slots=True)
class ImageIndexed:
    """The image stands in the trie of a generation: `identifier` is its primary, `leaves` all it is posted under."""

    TOPIC: ClassVar[str] = INDEXED
    NAME: ClassVar[str] = "image_indexed"

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
    """The image must not be returned any more. With `version`, only that version and older ones."""

    TOPIC: ClassVar[str] = DELETED
    NAME: ClassVar[str] = "image_deleted"

    image_id: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class QueryServed:
    """One answered query: what was asked, by which generation, what came back, how long it took in milliseconds."""

    TOPIC: ClassVar[str] = SERVED
    NAME: ClassVar[str] = "query_served"

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
    """Something the person on call wants to know: a switch, a spill, an alarm."""

    TOPIC: ClassVar[str] = OPERATIONS
    NAME: ClassVar[str] = "operations_event"

    kind: str
    message: str
    happened_at: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        require_aware("happened_at", self.happened_at)


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
    event.TOPIC: event
    for event in (
        ImageArrived,
        ImageAccepted,
        ImageRejected,
        ImageIndexed,
        ImageDeleted,
        QueryServed,
        OperationsEvent,
    )
}


def encode(event: EventRecord) -> bytes:
    """The event as compact UTF-8 JSON; times in ISO 8601 with their offset, absent values left out."""
    present = {
        f.name: value for f in fields(event) if (value := getattr(event, f.name)) is not None
    }
    return json.dumps(
        present, ensure_ascii=False, separators=(",", ":"), default=datetime.isoformat
    ).encode()


def decode(topic: str, payload: bytes) -> EventRecord:
    """The event of a payload. Unknown fields are tolerated and null means absent; `RejectInputError` with code `bad-event` otherwise."""
    kind = EVENTS.get(topic)
    if kind is None:
        raise UsageError(
            f"topic {topic} carries no event known here; known are {', '.join(EVENTS)}"
        )
    document = _parse(kind, payload)
    quick = _quick(kind.NAME)
    problem = (
        None
        if quick is not None and quick(document)
        else next(validator(kind.NAME).iter_errors(document), None)
    )
    if problem is not None:
        place = "/".join(str(part) for part in problem.absolute_path) or "the document"
        # The message quotes the value, and an address may hold a secret.
        rule = (
            f"it breaks the rule {problem.validator} {problem.validator_value}"
            if place.endswith("uri")
            else problem.message
        )
        raise _bad_event(kind, f"{place}: {rule[:300]}")
    try:
        return kind(
            **{f.name: _value(f.name, document[f.name]) for f in fields(kind) if f.name in document}
        )
    except (ValueError, UsageError) as error:
        raise _bad_event(kind, str(error)) from error


def headers(
    event: EventRecord, key: str = "", cause: Mapping[str, str] | None = None, source: str = "sigma"
) -> dict[str, str]:
    """CloudEvents attributes of an event in binary mode (Kafka protocol binding 1.0), and its W3C trace context.

    An event that another one led to continues that one's trace: `cause` are its headers.
    """
    return {
        "ce_specversion": "1.0",
        "ce_id": str(uuid.uuid4()),
        "ce_source": source,
        "ce_type": f"sigma.{event.NAME}.v1",
        "ce_subject": key,
        "ce_time": now().isoformat(),
        "content-type": "application/json",
        "traceparent": traceparent(cause or {}),
    }


def traceparent(cause: Mapping[str, str]) -> str:
    """A trace parent with a span id of its own, in the trace of the cause if that has a valid one."""
    found = _TRACEPARENT.fullmatch(cause.get("traceparent", ""))
    trace = found[1] if found and set(found[1]) != {"0"} else secrets.token_hex(16)
    return f"00-{trace}-{secrets.token_hex(8)}-{found[2] if found else '01'}"


def trace_of(found: Mapping[str, str]) -> str:
    """The trace id in an event's headers, empty if there is none: what joins the log lines of one image."""
    match = _TRACEPARENT.fullmatch(found.get("traceparent", ""))
    return match[1] if match else ""


@cache
def validator(name: str) -> Draft202012Validator:
    """The validator of version 1 of an event's JSON Schema, by the event's NAME."""
    file = resources.files("schemas").joinpath("events").joinpath(f"{name}.v1.json")
    return Draft202012Validator(json.loads(file.read_text(encoding="utf-8")))


@cache
def _quick(name: str) -> Check | None:
    schema = validator(name).schema
    return compile_check(schema) if isinstance(schema, dict) else None


def _parse(kind: type[EventRecord], payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload.decode("utf-8"))
        # A lone surrogate is legal JSON, but neither Kafka nor Postgres can store it as text.
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise _bad_event(kind, str(error)) from error
    if not isinstance(document, dict):
        raise _bad_event(
            kind, f"the document is a {type(document).__name__}, an object is expected"
        )
    return {name: value for name, value in document.items() if value is not None}


def _value(name: str, value: Any) -> Any:
    if name.endswith("_at"):
        return datetime.fromisoformat(value)
    return tuple(value) if isinstance(value, list) else value


def _bad_event(kind: type[EventRecord], found: str) -> RejectInputError:
    return RejectInputError(
        "bad-event",
        f"the payload is not a valid {kind.NAME} event: {found}; correct the producer and publish again",
    )
