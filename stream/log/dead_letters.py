"""Dead letters: events that could not be used, published to the rejected topic.

Their headers say where the original event is in the log. They have the names that Kafka Connect
gives them, so tools for its dead letter queues can read ours.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.errors import RejectInputError, UsageError, brief
from schemas.events import REJECTED, ImageAccepted, ImageArrived, ImageRejected
from schemas.named_sql import queries
from stream.images.redaction import redact_text, redact_uri
from stream.log.event_log import Event, EventLog, Message, message, record_of
from stream.manifest import MAX_ID_LENGTH
from stream.session import Connection

_PREFIX = "__connect.errors."
_TOPIC = _PREFIX + "topic"
_PARTITION = _PREFIX + "partition"
_OFFSET = _PREFIX + "offset"
_STAGE = _PREFIX + "stage"
_CLASS = _PREFIX + "exception.class.name"
_MESSAGE = _PREFIX + "exception.message"

# The header with our short code of the reason; Kafka Connect has none like it.
_CODE = "sigma_code"

# The header with the first of the offsets that cannot be read; the origin's is the last.
_FIRST = "sigma_first_offset"

# Dead letters that a replay reads at a time; bounds its memory.
_CHUNK_EVENTS = 1000


# Hexadecimal digits of the hash that stands for the end of a long key.
_HASH_DIGITS = 16

# Characters of a reason that are kept; more is a quotation of what was sent.
_REASON_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A rejected event, with its own position in the log and the position of its original."""

    partition: int
    offset: int
    image_id: str
    code: str
    reason: str
    stage: str
    origin_topic: str | None
    origin_partition: int | None
    origin_offset: int | None
    published_at: datetime

    @property
    def place(self) -> str:
        """How `sigma dead-letters show` names it: PARTITION:OFFSET."""
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class OriginContent:
    """The event that a dead letter reports, as text without secrets in addresses."""

    key: str
    headers: Mapping[str, str]
    value: str


@dataclass(frozen=True, slots=True)
class DeadLetterContent:
    """A dead letter with its headers and its original (None if the log no longer has it).

    All of it is text without secrets in addresses.
    """

    place: str
    headers: Mapping[str, str]
    value: str
    origin: OriginContent | None


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay did: originals published again, and dead letters whose original is gone.

    An original that cannot be read, still, counts as gone.
    """

    replayed: int
    lost: int


def dead_letter(origin: Event, rejected: ImageRejected) -> Message:
    """Make the message that reports a rejection of `origin`."""
    error_headers = {
        _TOPIC: origin.topic,
        # Headers are text in every log.
        _PARTITION: str(origin.partition),
        _OFFSET: str(origin.offset),
        _STAGE: rejected.stage,
        _CLASS: f"{RejectInputError.__module__}.{RejectInputError.__qualname__}",
        _MESSAGE: rejected.reason,
        _CODE: rejected.code,
    }
    if origin.unreadable is not None:
        error_headers[_FIRST] = str(origin.unreadable.first)
    return message(rejected, rejected.image_id, cause=origin, extra_headers=error_headers)


def letter_without_origin(rejected: ImageRejected) -> Message:
    """Make the message that reports an event which never came into the log."""
    error_headers = {
        _STAGE: rejected.stage,
        _CLASS: f"{RejectInputError.__module__}.{RejectInputError.__qualname__}",
        _MESSAGE: rejected.reason,
        _CODE: rejected.code,
    }
    return message(rejected, rejected.image_id, extra_headers=error_headers)


def rejection_of_image(
    image: ImageArrived | ImageAccepted, error: RejectInputError, *, stage: str
) -> ImageRejected:
    """Record why an image is rejected.

    Its address is redacted: it may have a password or a signature, and dead letters are read by
    many. A replay takes the original event, which has the whole address.
    """
    return ImageRejected(
        image_id=image.image_id,
        uri=redact_uri(image.uri),
        code=error.code,
        reason=_short_reason(error),
        stage=stage,
        version=image.version,
    )


def rejection_of_event(origin: Event, error: RejectInputError, *, stage: str) -> ImageRejected:
    """Record the rejection of an event that could not be parsed; its key serves as image id."""
    return ImageRejected(
        image_id=_short_id(origin.key),
        uri="",
        code=error.code,
        reason=_short_reason(error),
        stage=stage,
    )


def rejection_of_failure(origin: Event, error: Exception, *, stage: str) -> ImageRejected:
    """Record that working on an event fails, whatever the reason, each time it is tried."""
    if isinstance(error, RejectInputError):
        refusal = error
    else:
        refusal = RejectInputError(
            "failed",
            f"working on the event fails ({type(error).__name__}: {redact_text(brief(error))}); "
            "replay it when the cause is mended",
        )
    try:
        record = record_of(origin)
    # Reading the event may be what fails, in a way that nobody foresaw.
    except Exception:
        return rejection_of_event(origin, refusal, stage=stage)
    if isinstance(record, ImageArrived | ImageAccepted):
        return rejection_of_image(record, refusal, stage=stage)
    return rejection_of_event(origin, refusal, stage=stage)


def _short_id(key: str) -> str:
    """A key as image id: what is longer than an id may be ends in a part of its hash.

    PostgreSQL's index takes no key above 2,704 bytes, and a foreign producer may send any.
    """
    # In Postgres' log nothing has replaced it yet.
    key = key.replace("\x00", "\ufffd")
    if len(key) <= MAX_ID_LENGTH:
        return key
    digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:_HASH_DIGITS]
    return f"{key[: MAX_ID_LENGTH - _HASH_DIGITS - 1]}…{digest}"


def _short_reason(error: Exception) -> str:
    """The message of an error as it can be stored: it may quote what a producer sent."""
    text = str(error).replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH]}…"


def dead_letters(log: EventLog, *, limit: int = 1000) -> list[DeadLetter]:
    """Return the newest dead letters, newest first."""
    events: list[Event] = []
    # From each partition the whole limit, because the newest may all be in one.
    for (topic, partition), end in log.end_offsets([REJECTED]).items():
        events += log.read(topic, partition, first=max(0, end - limit), limit=limit)
    events.sort(key=lambda event: (event.published_at, event.offset), reverse=True)
    return [_parse(event) for event in events[:limit]]


def show(log: EventLog, place: str) -> DeadLetterContent:
    """Return one dead letter with its original; `place` is PARTITION:OFFSET.

    `UsageError` when the place is malformed or has no dead letter.
    """
    letter = _letter_at(log, place)
    origin = _origin(log, letter)
    return DeadLetterContent(
        place=place,
        headers=_redacted_headers(letter),
        value=_redacted_value(letter),
        origin=None
        if origin is None
        else OriginContent(origin.key, _redacted_headers(origin), _redacted_value(origin)),
    )


def replay(log: EventLog, conn: Connection) -> Replay:
    """Publish the originals of all dead letters whose image is still rejected, each once.

    A second replay does not repeat what the first one mended. Copies that failed again do not
    multiply: copies of one original are recognised by their key and content.
    """
    originals: dict[tuple[str, str, bytes], Message] = {}
    whole_batches: list[str] = []
    lost = 0
    for letters in _all_letters(log):
        for letter in _still_rejected(conn, letters):
            origins = _origins(log, letter)
            if not origins:
                lost += 1
                continue
            for origin in origins:
                originals[origin.topic, origin.key, origin.value] = Message(
                    topic=origin.topic, key=origin.key, value=origin.value, headers=origin.headers
                )
            if _FIRST in letter.headers:
                whole_batches.append(letter.key)
    # All at the end: an original is published once, however many dead letters report it.
    log.publish(None, list(originals.values()))
    # No image has the key of such a letter, so nothing else ends the rejection.
    conn.execute(queries()["forget_rejections"], {"image_ids": whole_batches})
    return Replay(len(originals), lost)


def count_letters(log: EventLog) -> int:
    """How many dead letters the log has; reads one of each partition at most."""
    total = 0
    for (topic, partition), end in log.end_offsets([REJECTED]).items():
        # Retention removes from the oldest on, so what is left begins at the first that is read.
        oldest = log.read(topic, partition, first=0, limit=1)
        if oldest:
            total += max(0, end - oldest[0].offset)
    return total


def _all_letters(log: EventLog) -> Iterator[list[Event]]:
    """Read the rejected topic from its oldest event, in chunks."""
    for (topic, partition), end in sorted(log.end_offsets([REJECTED]).items()):
        first = 0
        while first < end:
            limit = min(_CHUNK_EVENTS, end - first)
            letters = log.read(topic, partition, first=first, limit=limit)
            # Retention may have removed the rest meanwhile.
            if not letters:
                break
            yield letters
            first = letters[-1].offset + 1


def _still_rejected(conn: Connection, letters: Sequence[Event]) -> list[Event]:
    image_ids = sorted({letter.key for letter in letters})
    rows = conn.execute(queries()["still_rejected"], {"image_ids": image_ids})
    rejected = {image_id for (image_id,) in rows}
    return [letter for letter in letters if letter.key in rejected]


def _parse(event: Event) -> DeadLetter:
    # Anyone can publish to the topic, so each header may be missing.
    headers = event.headers
    has_origin = _TOPIC in headers
    return DeadLetter(
        partition=event.partition,
        offset=event.offset,
        image_id=event.key,
        code=headers.get(_CODE, ""),
        reason=headers.get(_MESSAGE, ""),
        stage=headers.get(_STAGE, ""),
        origin_topic=headers[_TOPIC] if has_origin else None,
        origin_partition=int(headers[_PARTITION]) if has_origin else None,
        origin_offset=int(headers[_OFFSET]) if has_origin else None,
        published_at=event.published_at,
    )


def _origin(log: EventLog, letter: Event) -> Event | None:
    """Read the original of a dead letter; None when it is unknown or retention removed it."""
    headers = letter.headers
    if _TOPIC not in headers:
        return None
    return _event_at(log, headers[_TOPIC], int(headers[_PARTITION]), int(headers[_OFFSET]))


def _origins(log: EventLog, letter: Event) -> list[Event]:
    """Read what a dead letter reports: one event, or all of a batch that could not be read.

    Empty when that is unknown, when retention removed it, or while it cannot be read.
    """
    if _FIRST not in letter.headers:
        origin = _origin(log, letter)
        return [] if origin is None or origin.unreadable is not None else [origin]
    place = (letter.headers[_TOPIC], int(letter.headers[_PARTITION]))
    first = int(letter.headers[_FIRST])
    end = int(letter.headers[_OFFSET]) + 1
    origins: list[Event] = []
    while first < end:
        span = log.read_span(*place, first=first, limit=min(_CHUNK_EVENTS, end - first))
        events = [event for event in span.events if event.offset < end]
        if any(event.unreadable is not None for event in events):
            return []
        origins += events
        if span.end <= first:
            break
        first = span.end
    return origins


def _letter_at(log: EventLog, place: str) -> Event:
    try:
        partition, offset = map(int, place.split(":"))
    except ValueError:
        raise UsageError(
            "the place of a dead letter must be PARTITION:OFFSET, such as 0:17, "
            f"got {place!r}; list them with: sigma dead-letters list"
        ) from None
    letter = None
    if (REJECTED, partition) in log.end_offsets([REJECTED]):
        letter = _event_at(log, REJECTED, partition, offset)
    if letter is None:
        raise UsageError(
            f"there is no dead letter at {place}; list them with: sigma dead-letters list"
        )
    return letter


def _event_at(log: EventLog, topic: str, partition: int, offset: int) -> Event | None:
    # A log without this offset returns the next later event.
    events = log.read(topic, partition, first=offset, limit=1)
    return events[0] if events and events[0].offset == offset else None


def _redacted_headers(event: Event) -> dict[str, str]:
    return {name: redact_text(value) for name, value in event.headers.items()}


def _redacted_value(event: Event) -> str:
    return redact_text(event.value.decode("utf-8", "replace"))
