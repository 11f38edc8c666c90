"""Redaction: no dead letter, and nothing that shows one, gives away what an address held."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import cast

import pytest

from schemas.errors import RejectInputError
from schemas.events import ARRIVED, REJECTED, ImageArrived, decode, encode
from stream.images.redaction import redact_text, redact_uri, uri_for_message
from stream.log.dead_letters import dead_letter, rejection_of_event, rejection_of_image, show
from stream.log.event_log import Event, EventLog, Message

ADDRESSES = (
    "https://user:hunter2@host/a.jpg",
    "https://host/a.jpg?X-Amz-Signature=hunter2",
    "https://host/a.jpg#hunter2",
    "https://user:hun ter2 hunter2@host/a.jpg",
    "https://user:hunter2'\"\u0000@host/a.jpg",
    "s3://key:hunter2@bucket/a.jpg",
    "HTTPS:\\\\user:hunter2@host/a.jpg",
    "https:/user:hunter2@host/a.jpg",
)


class OneLog:
    """A log with one original and its dead letter."""

    def __init__(self, origin: Event, letter: Message) -> None:
        self._events = {
            ARRIVED: origin,
            REJECTED: Event(
                REJECTED, 0, 0, letter.key, letter.value, letter.headers, origin.published_at
            ),
        }

    def end_offsets(self, topics: list[str]) -> dict[tuple[str, int], int]:
        return {(topic, 0): 1 for topic in topics}

    def read(self, topic: str, partition: int, *, first: int = 0, limit: int = 100) -> list[Event]:
        return [self._events[topic]]


@pytest.mark.parametrize("uri", ADDRESSES)
def test_a_dead_letter_and_what_shows_it_hold_no_secret_while_the_original_stays_whole(
    uri: str,
) -> None:
    payload = json.dumps(
        {"image_id": "a", "uri": uri, "arrived_at": "2026-11-25T12:00:00Z"}
    ).encode()
    origin = Event(ARRIVED, 0, 0, "a", payload, {"source": uri}, datetime.now(UTC))
    try:
        record = decode(ARRIVED, payload)
        assert isinstance(record, ImageArrived)
        rejected = rejection_of_image(
            record, RejectInputError("unreadable", "it cannot be read"), stage="intake"
        )
    except RejectInputError as error:
        # Some of these break the schema; its message must not quote them.
        rejected = rejection_of_event(origin, error, stage="intake")
    letter = dead_letter(origin, rejected)
    assert b"hunter2" not in letter.value
    assert "hunter2" not in json.dumps(dict(letter.headers))
    content = show(cast(EventLog, OneLog(origin, letter)), "0:0")
    assert "hunter2" not in json.dumps(asdict(content))
    assert content.origin is not None
    assert json.loads(content.origin.value)["image_id"] == "a"
    assert origin.value == payload


def test_paths_of_this_machine_stay_whole() -> None:
    assert redact_uri("file:///pictures/a b#1?.jpg") == "file:///pictures/a b#1?.jpg"
    assert "hunter2" not in redact_uri("file://user:hunter2@host/a.jpg")
    event = ImageArrived("a", "file:///pictures/a.jpg")
    assert redact_text(encode(event).decode()) == encode(event).decode()


def test_text_that_is_no_json_is_searched_for_addresses() -> None:
    assert redact_text('{"uri": "https://u:hunter2@host/a?sig=hunter2') == '{"uri": "https://host/a'
    assert redact_text("plain: text / 12:30") == "plain: text / 12:30"
    assert redact_text("0") == "0"


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("https://user:pa/ss@host/a.jpg?sig=x#y", "https://host/a.jpg"),
        ("https://user:pa#ss@host/", "https://[hidden]"),
        ("https://user:12?@host/", "https://[hidden]"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("https://host:443/a\nb", "https://host:443/a?b"),
        ("https://" + "a" * 500, "https://" + "a" * 192),
    ],
)
def test_messages_show_no_credentials(uri: str, text: str) -> None:
    assert uri_for_message(uri) == text
