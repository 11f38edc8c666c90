"""Dead letters: events that could not be used, kept as events of the rejected topic with their origin in the headers."""

from dataclasses import dataclass
from datetime import datetime

from schemas.errors import RejectInputError
from schemas.events import REJECTED, ImageRejected
from schemas.queries import queries
from stream.log import Connection, Event, EventLog, Message, message


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A rejected event and where its original stands in the log."""

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


def dead_letter(origin: Event, rejected: ImageRejected) -> Message:
    """The message that reports a refusal. Headers are text, so the origin's numbers are written as digits."""
    place = {"origin_topic": origin.topic, "origin_partition": str(origin.partition), "origin_offset": str(origin.offset)}
    why = {"stage": rejected.stage, "code": rejected.code, "reason": rejected.reason}
    return message(rejected, rejected.image_id, extra_headers=place | why)


def rejection(origin: Event, error: RejectInputError, *, stage: str) -> ImageRejected:
    """The refusal of an event that could not even be parsed: its key stands for the image id."""
    return ImageRejected(image_id=origin.key, uri="", code=error.code, reason=str(error), stage=stage)


def dead_letters(conn: Connection, *, limit: int = 1000) -> list[DeadLetter]:
    """Dead letters, newest first."""
    return [DeadLetter(*found) for found in conn.execute(queries()["dead_letters"], {"amount": limit})]


def replay(log: EventLog, *, first: int = 0) -> int:
    """Publishes the originals of all dead letters from `first` on again, each original once; returns how many.

    A dead letter that fails again becomes a new dead letter, behind those replayed, so this ends.
    """
    origins: dict[tuple[str, int, int], Message] = {}
    for topic, partition in sorted(log.end_offsets([REJECTED])):
        begin, end = first, log.end_offsets([REJECTED])[topic, partition]
        while begin < end:
            letters = log.read(topic, partition, first=begin, limit=min(1000, end - begin))
            if not letters:
                break
            begin = letters[-1].offset + 1
            for letter in letters:
                origin = _origin(log, letter)
                if origin is not None:
                    copy = Message(topic=origin.topic, key=origin.key, value=origin.value, headers=origin.headers)
                    origins[origin.topic, origin.partition, origin.offset] = copy
    log.publish(None, list(origins.values()))
    return len(origins)


def _origin(log: EventLog, letter: Event) -> Event | None:
    named = letter.headers
    if "origin_topic" not in named:
        return None
    offset = int(named["origin_offset"])
    found = log.read(named["origin_topic"], int(named["origin_partition"]), first=offset, limit=1)
    return found[0] if found and found[0].offset == offset else None
