"""Dead letters: events that could not be used, kept as events of the rejected topic with their origin in the headers.

The headers have the names that Kafka Connect gives them, so tools for its dead letter queues can read ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.errors import RejectInputError, UsageError
from schemas.events import REJECTED, ImageAccepted, ImageArrived, ImageRejected
from schemas.named_sql import queries
from stream.images.redaction import redact_text, redact_uri
from stream.log.event_log import Connection, Event, EventLog, Message, Partition, message

_PREFIX = "__connect.errors."
_TOPIC, _PARTITION, _OFFSET = _PREFIX + "topic", _PREFIX + "partition", _PREFIX + "offset"
_STAGE, _CLASS, _MESSAGE = (
    _PREFIX + "stage",
    _PREFIX + "exception.class.name",
    _PREFIX + "exception.message",
)
_CODE = "sigma_code"
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A rejected event, where it stands, and where its original stands in the log."""

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
        """How `sigma dead-letters show` names it."""
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay did: originals published again, and originals that the log no longer has."""

    replayed: int
    lost: int


def dead_letter(origin: Event, rejected: ImageRejected) -> Message:
    """The message that reports a refusal. Headers are text, so the origin's numbers are written as digits."""
    why = {
        _TOPIC: origin.topic,
        _PARTITION: str(origin.partition),
        _OFFSET: str(origin.offset),
        _STAGE: rejected.stage,
        _CLASS: f"{RejectInputError.__module__}.{RejectInputError.__qualname__}",
        _MESSAGE: rejected.reason,
        _CODE: rejected.code,
    }
    return message(rejected, rejected.image_id, cause=origin, extra_headers=why)


def rejection_of_image(
    image: ImageArrived | ImageAccepted, error: RejectInputError, *, stage: str
) -> ImageRejected:
    """Why an image is refused. An address may hold a password or a signature, and everybody may read dead letters: the letter says
    where the event stands that has it whole, and a replay takes that one."""
    return ImageRejected(
        image_id=image.image_id,
        uri=redact_uri(image.uri),
        code=error.code,
        reason=str(error),
        stage=stage,
        version=image.version,
    )


def rejection_of_event(origin: Event, error: RejectInputError, *, stage: str) -> ImageRejected:
    """The refusal of an event that could not even be parsed: its key stands for the image id."""
    return ImageRejected(
        image_id=origin.key, uri="", code=error.code, reason=str(error), stage=stage
    )


def dead_letters(log: EventLog, *, limit: int = 1000) -> list[DeadLetter]:
    """The newest dead letters, newest first."""
    found: list[Event] = []
    for (topic, partition), end in log.end_offsets([REJECTED]).items():
        found += log.read(topic, partition, first=max(0, end - limit), limit=limit)
    return [
        _letter(event)
        for event in sorted(
            found, key=lambda event: (event.published_at, event.offset), reverse=True
        )
    ][:limit]


@dataclass(frozen=True, slots=True)
class OriginContent:
    """The event that a dead letter reports, as text without secrets in addresses."""

    key: str
    headers: Mapping[str, str]
    value: str


@dataclass(frozen=True, slots=True)
class DeadLetterContent:
    """A dead letter with its headers, and its original if the log still has it. No secrets in addresses."""

    place: str
    headers: Mapping[str, str]
    value: str
    origin: OriginContent | None


def show(log: EventLog, place: str) -> DeadLetterContent:
    """One dead letter with all its headers, and its original but for secrets in addresses. `place` is `partition:offset`."""
    try:
        partition, offset = map(int, place.split(":"))
    except ValueError:
        raise UsageError(
            f"{place!r} is not the place of a dead letter; take one that `sigma dead-letters list` shows, such as 0:17"
        ) from None
    found = (
        log.read(REJECTED, partition, first=offset, limit=1)
        if (REJECTED, partition) in log.end_offsets([REJECTED])
        else []
    )
    if not found or found[0].offset != offset:
        raise UsageError(
            f"there is no dead letter at {place}; `sigma dead-letters list` shows those there are"
        )
    origin = _origin(log, found[0])
    letter = found[0]
    return DeadLetterContent(
        place=place,
        headers=_harmless_headers(letter),
        value=_harmless_value(letter),
        origin=None
        if origin is None
        else OriginContent(origin.key, _harmless_headers(origin), _harmless_value(origin)),
    )


def _harmless_headers(event: Event) -> dict[str, str]:
    return {name: redact_text(value) for name, value in event.headers.items()}


def _harmless_value(event: Event) -> str:
    return redact_text(event.value.decode("utf-8", "replace"))


def replay(log: EventLog, conn: Connection) -> Replay:
    """Publishes the originals of all dead letters whose image is still rejected again, each original once.

    So a second replay repeats nothing that the first one mended, and copies that failed again do not multiply: copies of
    one original are known by their key and content.
    """
    originals: dict[tuple[str, str, bytes], Message] = {}
    lost = 0
    for (topic, partition), end in sorted(log.end_offsets([REJECTED]).items()):
        first = 0
        while first < end:
            letters = log.read(topic, partition, first=first, limit=min(_CHUNK, end - first))
            if not letters:
                break
            first = letters[-1].offset + 1
            for letter in _open(conn, letters):
                origin = _origin(log, letter)
                if origin is None:
                    lost += 1
                    continue
                copy = Message(
                    topic=origin.topic, key=origin.key, value=origin.value, headers=origin.headers
                )
                originals[origin.topic, origin.key, origin.value] = copy
    log.publish(None, list(originals.values()))
    return Replay(len(originals), lost)


def _open(conn: Connection, letters: Sequence[Event]) -> list[Event]:
    """Letters whose image is rejected to this day."""
    found = conn.execute(
        queries()["still_rejected"], {"image_ids": sorted({letter.key for letter in letters})}
    )
    rejected = {image_id for (image_id,) in found}
    return [letter for letter in letters if letter.key in rejected]


def _letter(event: Event) -> DeadLetter:
    named = event.headers
    origin: Partition | None = (named[_TOPIC], int(named[_PARTITION])) if _TOPIC in named else None
    return DeadLetter(
        partition=event.partition,
        offset=event.offset,
        image_id=event.key,
        code=named.get(_CODE, ""),
        reason=named.get(_MESSAGE, ""),
        stage=named.get(_STAGE, ""),
        origin_topic=origin[0] if origin else None,
        origin_partition=origin[1] if origin else None,
        origin_offset=int(named[_OFFSET]) if origin else None,
        published_at=event.published_at,
    )


def _origin(log: EventLog, letter: Event) -> Event | None:
    named = letter.headers
    if _TOPIC not in named:
        return None
    offset = int(named[_OFFSET])
    found = log.read(named[_TOPIC], int(named[_PARTITION]), first=offset, limit=1)
    return found[0] if found and found[0].offset == offset else None
