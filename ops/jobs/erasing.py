"""Erasing: what deleted images and replaced versions left in the store and in the embedded log.

Part of the job `prune`. Pictures are stored under the hash of their content, so one goes only when
no other image has it, and when nobody has stored it again lately: an arrival whose row is still to
come may have.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from schemas.errors import RejectInputError
from schemas.events import ACCEPTED, ARRIVED, DELETED, now
from stream.images.store import ImageStore
from stream.log.event_log import EventLog
from stream.log.offsets import committed
from workers.repository.connection import Connection
from workers.repository.erasures import (
    Erasure,
    ImageEvent,
    Place,
    blank_rejections,
    due_erasures,
    end_erasures,
    erase_events,
    erase_queries,
    events_of_images,
    used_pictures,
)

# Time from an arrival's picture being stored to its row, at most: pictures that were stored more
# recently stay for the next run.
GRACE = timedelta(hours=1)

# Topics whose events are kept until every consumer group of the workers has read them.
CONSUMED_TOPICS = (ARRIVED, ACCEPTED, DELETED)


@dataclass(frozen=True, slots=True)
class Erased:
    """How much was erased, and how many notes wait for a later run."""

    pictures: int = 0
    events: int = 0
    queries: int = 0
    waiting: int = 0

    def plus(self, other: "Erased") -> "Erased":
        """Both together."""
        return Erased(
            self.pictures + other.pictures,
            self.events + other.events,
            self.queries + other.queries,
            self.waiting + other.waiting,
        )


def erase(
    conn: Connection, store: ImageStore, log: EventLog, *, embedded_log: bool, grace: timedelta
) -> Erased:
    """Erase what was noted and may go; what may not yet is left for the next run.

    With `embedded_log` the events in PostgreSQL too; Kafka keeps its events for their retention.
    """
    blank_rejections(conn)
    moment = now()
    # An accepted image that waits for longer than the grace may need a picture that looks unused.
    pictures_may_go = oldest_waiting(conn, log, moment) <= grace
    total, after = Erased(), 0
    while page := due_erasures(conn, after):
        after = page[-1].id
        total = total.plus(
            _erase_page(conn, store, page, moment - grace, pictures_may_go, embedded_log)
        )
    return total


def oldest_waiting(conn: Connection, log: EventLog, moment: datetime) -> timedelta:
    """How long the oldest accepted image waits to be indexed."""
    done = committed(log, conn, "index", [ACCEPTED])
    oldest = moment
    for (topic, partition), end in log.end_offsets([ACCEPTED]).items():
        first = done.get((topic, partition), 0)
        if first < end:
            for event in log.read(topic, partition, first=first, limit=1):
                oldest = min(oldest, event.published_at)
    return moment - oldest


def _erase_page(
    conn: Connection,
    store: ImageStore,
    page: Sequence[Erasure],
    unused_since: datetime,
    pictures_may_go: bool,
    embedded_log: bool,
) -> Erased:
    used = used_pictures(conn, [picture for erasure in page for picture in erasure.pictures])
    kept: set[str] = set()
    pictures = 0
    for picture in {picture for erasure in page for picture in erasure.pictures} - used:
        if pictures_may_go and _removed(store, picture, unused_since):
            pictures += 1
        else:
            kept.add(picture)
    queries = erase_queries(conn, page)
    left = events_to_erase(page, events_of_images(conn, [e.image_id for e in page]))
    gone = erase_events(conn, list(left), CONSUMED_TOPICS) if embedded_log and left else set()
    unread = {left[place] for place in left if place not in gone} if embedded_log else set()
    finished = [
        erasure
        for erasure in page
        if not kept & set(erasure.pictures) and erasure.image_id not in unread
    ]
    end_erasures(conn, finished)
    return Erased(pictures, len(gone), queries, len(page) - len(finished))


def _removed(store: ImageStore, picture: str, unused_since: datetime) -> bool:
    try:
        return store.remove(picture, unused_since)
    except RejectInputError:
        # An address of another store: there is nothing of it here.
        return True


def events_to_erase(page: Sequence[Erasure], events: Sequence[ImageEvent]) -> dict[Place, str]:
    """The places of events of versions that are to be erased, with the id of their image."""
    versions: dict[str, int] = {}
    for erasure in page:
        versions[erasure.image_id] = max(erasure.version, versions.get(erasure.image_id, 0))
    places = {}
    for event in events:
        if _version_of(event.value) <= versions[event.image_id]:
            places[event.place] = event.image_id
    return places


def _version_of(value: bytes) -> int:
    """The version that an event tells; 1 where it tells none or cannot be read."""
    try:
        version = json.loads(value).get("version", 1)
    except (ValueError, AttributeError):
        return 1
    return version if isinstance(version, int) else 1
