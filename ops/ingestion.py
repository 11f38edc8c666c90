"""Ingesting: publishing a manifest's images to the stream, and waiting until they are searchable."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from schemas.errors import RejectInputError, WorkFailedError
from schemas.events import ImageArrived
from schemas.records import ManifestEntry
from stream.images.sources import read_source
from stream.log.event_log import EventLog, message
from workers.repository.connection import Connection, fetch_rows
from workers.repository.images import Rejection, StoredImage, images_by_id, rejections
from workers.runtime.services import Services
from workers.trainer.seeding import arrival

_BATCH = 500
_LOOK_S = 0.1
_WINDOW = 1000
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


@dataclass(frozen=True, slots=True)
class Published:
    """What was published `since` when: the events with their files' `paths`, the ids that were indexed in the same version
    before, and files that could not even be read to be uploaded."""

    events: tuple[ImageArrived, ...]
    known: frozenset[str]
    since: datetime
    paths: Mapping[str, str]
    unreadable: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the images published. `pending` ids had neither answer when the time was over."""

    indexed: int
    rejected: tuple[dict[str, str], ...]
    pending: tuple[str, ...] = ()


def publish(
    services: Services,
    conn: Connection,
    log: EventLog,
    entries: Sequence[ManifestEntry],
    version: int | None,
    tick: Callable[[int], None],
) -> Published:
    """Publish an `ImageArrived` for each entry.

    Without a `version`, images that were deleted come back under the next one; all others keep theirs, so that ingesting
    a manifest twice changes nothing.
    """
    events: list[ImageArrived] = []
    unreadable: list[dict[str, str]] = []
    known: set[str] = set()
    ((since,),) = fetch_rows(conn, "clock")
    for start in range(0, len(entries), _BATCH):
        part = entries[start : start + _BATCH]
        stored = images_by_id(conn, [entry.image_id for entry in part])
        made = []
        for entry in part:
            event = replace(arrival(entry), version=version or _version(stored.get(entry.image_id)))
            try:
                made.append(_reachable(services, event))
            except RejectInputError as error:
                unreadable.append({"path": entry.path, "reason": str(error), "code": error.code})
        log.publish(None, [message(event, event.image_id) for event in made])
        known |= {
            e.image_id
            for e in made
            if e.image_id in stored
            and stored[e.image_id].state == "indexed"
            and stored[e.image_id].version >= e.version
        }
        events += made
        tick(len(part))
    paths = {entry.image_id: entry.path for entry in entries}
    return Published(tuple(events), frozenset(known), since, paths, tuple(unreadable))


def _reachable(services: Services, event: ImageArrived) -> ImageArrived:
    """With an S3 store, files of this machine are uploaded first: the workers are elsewhere. Judging them stays the intake's."""
    if services.s3 is None or not event.uri.startswith("file:"):
        return event
    data = read_source(event.uri, cap_bytes=services.settings.max_image_bytes)
    suffix = Path(urlsplit(event.uri).path).suffix.lower()
    return replace(
        event, uri=services.s3.put_original(data, suffix if _SUFFIX.fullmatch(suffix) else ".bin")
    )


def _version(stored: StoredImage | None) -> int:
    if stored is None:
        return 1
    return stored.version + 1 if stored.state == "deleted" else stored.version


def wait(
    conn: Connection,
    published: Published,
    *,
    serving: bool,
    timeout_s: float,
    tick: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Wait until every image is searchable or rejected; `WorkFailedError` names what is left when nothing moves for `timeout_s`.

    With `serving`, an image counts when a query worker has begun to return it, not when its row is there.
    """
    left = {event.image_id: event for event in published.events}
    indexed = sum(image_id in published.known for image_id in left)
    left = {image_id: event for image_id, event in left.items() if image_id not in published.known}
    tick(indexed)
    rejected: list[dict[str, str]] = []
    moved = time.monotonic()
    while left:
        # The oldest ones only: they are the next to be done, and looking at all would cost more with every image.
        window = dict(islice(left.items(), _WINDOW))
        found = _searchable(conn, window, serving)
        refused = {
            one.image_id: one
            for one in rejections(conn, list(window))
            if _applies(one, window, published.since)
        }
        rejected += [
            {"path": published.paths[i], "reason": one.reason, "code": one.code}
            for i, one in refused.items()
            if i not in found
        ]
        indexed += len(found)
        gone = found | refused.keys()
        left = {image_id: event for image_id, event in left.items() if image_id not in gone}
        tick(len(gone))
        if gone:
            moved = time.monotonic()
        elif time.monotonic() - moved > timeout_s:
            some = ", ".join(list(left)[:3])
            raise WorkFailedError(
                f"{len(left)} images are not searchable after {timeout_s:g} idle seconds ({some} …); they stay in line: see sigma status"
            )
        if left:
            time.sleep(_LOOK_S)
    return Outcome(indexed, tuple(sorted(rejected, key=lambda one: one["path"])))


def _applies(found: Rejection, window: dict[str, ImageArrived], since: datetime) -> bool:
    """Whether a rejection is of what was published now, not of an earlier attempt."""
    return found.version >= window[found.image_id].version and found.rejected_at >= since


def _searchable(conn: Connection, left: dict[str, ImageArrived], serving: bool) -> set[str]:
    stored = images_by_id(conn, list(left))
    done = {
        i: one
        for i, one in stored.items()
        if one.version >= left[i].version and one.state in ("indexed", "deleted")
    }
    if serving:
        seen = {
            key
            for (key,) in fetch_rows(
                conn, "visible_images", image_keys=[one.image_key for one in done.values()]
            )
        }
        done = {
            i: one for i, one in done.items() if one.image_key in seen or one.state == "deleted"
        }
    return set(done)


def summary(published: Published, outcome: Outcome | None) -> dict[str, Any]:
    """The JSON document of `sigma ingest`."""
    rejected = [*published.unreadable, *(outcome.rejected if outcome else ())]
    indexed = outcome.indexed if outcome else len(published.known)
    return {"published": len(published.events), "indexed": indexed, "rejected": rejected}
