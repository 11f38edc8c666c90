"""Events: a round trip through JSON, and everything wrong with a payload is one clear refusal."""

import json
from datetime import UTC, datetime

import pytest

from ops.bench.fuzz_events import StoredPicture, fuzzed_messages
from schemas.errors import RejectInputError, UsageError
from schemas.event_schemas import validator
from schemas.events import (
    ACCEPTED,
    ARRIVED,
    DELETED,
    EVENTS,
    EventRecord,
    ImageAccepted,
    ImageArrived,
    ImageDeleted,
    ImageIndexed,
    ImageRejected,
    OperationsEvent,
    QueryServed,
    decode,
    encode,
    headers,
    trace_of,
)

MOMENT = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
EXAMPLES: list[EventRecord] = [
    ImageArrived(
        "ü 1",
        "file:///a.jpg",
        version=3,
        captions=("ein Bild", "绘画"),
        test_captions=("x",),
        split="train",
        arrived_at=MOMENT,
        metadata={"year": 2026, "of": "ü", "tags": ("a", "b"), "is": True, "at": "1.5"},
    ),
    ImageAccepted(
        "a",
        "file:///a.jpg",
        "file:///b.png",
        "0" * 64,
        10,
        20,
        MOMENT,
        published_at=MOMENT,
        metadata={"year": 2026},
    ),
    ImageRejected("a", "file:///a.jpg", "truncated", "cut short", "intake"),
    ImageIndexed("a", 1, 2, (1, 2, 3, 0, 5), (10, 11), -0.5, MOMENT, MOMENT),
    ImageDeleted("a", 2),
    QueryServed("a query", 1, 2.5, ("a", "b"), (1.0, 0.5), "one", MOMENT),
    OperationsEvent("no-room", "leaf 3 is full", MOMENT),
]


def test_every_event_has_an_example_here() -> None:
    assert {type(example) for example in EXAMPLES} == set(EVENTS.values())


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_survives_its_journey_and_satisfies_its_schema(event: EventRecord) -> None:
    payload = encode(event)
    assert decode(event.TOPIC, payload) == event
    assert not list(validator(event.NAME, event.SCHEMA).iter_errors(json.loads(payload)))


def test_unknown_fields_are_tolerated_for_producers_of_tomorrow() -> None:
    assert decode(DELETED, b'{"image_id": "a", "reason": "new field"}') == ImageDeleted("a")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"uri": "file:///a"}',
        b'{"image_id": "", "uri": "file:///a"}',
        b'{"image_id": "a\\u0000b", "uri": "file:///a"}',
        b'{"image_id": "\\ud800", "uri": "file:///a"}',
        b'{"image_id": "a", "uri": "file:///a", "version": 0}',
        b'{"image_id": "a", "uri": "file:///a", "captions": "one"}',
        b'{"image_id": "a", "uri": "file:///a", "arrived_at": "2026-01-31T12:00:00"}',
        b'{"image_id": "a", "uri": "file:///a", "arrived_at": "yesterday"}',
        b"[" * 100_000,
    ],
)
def test_a_bad_payload_is_one_rejection_with_a_code(payload: bytes) -> None:
    with pytest.raises(RejectInputError) as refused:
        decode(ARRIVED, payload)
    assert refused.value.code == "bad-event"
    assert "not a valid image_arrived event" in str(refused.value)


@pytest.mark.parametrize("digits", [10, 20, 400, 4000, 5000])
@pytest.mark.parametrize(
    ("topic", "field"),
    [(ARRIVED, "version"), (DELETED, "version"), (ACCEPTED, "version"), (ACCEPTED, "width")],
)
def test_a_number_of_any_length_is_refused_with_its_reason(
    topic: str, field: str, digits: int
) -> None:
    document = {
        "image_id": '"a"',
        "uri": '"file:///a"',
        "normalized_uri": '"file:///b"',
        "checksum": f'"{"0" * 64}"',
        "width": "8",
        "height": "8",
        "arrived_at": '"2026-01-01T00:00:00Z"',
        field: "7" * digits,
    }
    payload = "{" + ",".join(f'"{name}": {raw}' for name, raw in document.items()) + "}"
    with pytest.raises(RejectInputError) as refused:
        decode(topic, payload.encode())
    assert refused.value.code == "bad-event"


def test_a_thousand_mutated_payloads_are_read_or_refused_with_a_reason() -> None:
    ends = set()
    for sent in fuzzed_messages(1000, 11, [StoredPicture("file:///a.png", "file:///b.png")]):
        try:
            decode(sent.topic, sent.value)
            ends.add("read")
        except RejectInputError as refusal:
            ends.add(refusal.code)
    assert ends <= {"read", "bad-event", "too-large"}
    assert len(ends) > 1


def test_a_topic_without_events_is_refused() -> None:
    with pytest.raises(UsageError, match=r"topic must be one of .*, got sigma\.nothing"):
        decode("sigma.nothing", b"{}")


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(UsageError, match="time zone"):
        ImageArrived("a", "file:///a", arrived_at=datetime(2026, 1, 31))


def test_headers_are_cloudevents_in_binary_mode_and_carry_the_trace_on() -> None:
    first = headers(EXAMPLES[0], "ü 1")
    assert first["ce_specversion"] == "1.0"
    assert first["ce_type"] == "sigma.image_arrived.v2"
    assert first["ce_subject"] == "ü 1"
    assert first["content-type"] == "application/json"
    assert datetime.fromisoformat(first["ce_time"]).tzinfo is not None
    assert len(trace_of(first)) == 32
    second = headers(EXAMPLES[1], "ü 1", first)
    assert trace_of(second) == trace_of(first)
    assert second["traceparent"] != first["traceparent"]
    assert second["ce_id"] != first["ce_id"]


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "00-abc",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "ff-" + "a" * 32 + "-" + "1" * 16 + "-01\r\n",
    ],
)
def test_a_broken_trace_parent_begins_a_new_trace(broken: str) -> None:
    trace = trace_of(headers(EXAMPLES[1], cause={"traceparent": broken}))
    assert len(trace) == 32
    assert trace not in broken
