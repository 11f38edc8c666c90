"""Ingestion: publish a manifest's images to the stream, and wait until they are searchable."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from schemas.errors import RejectInputError, WorkFailedError
from schemas.events import ImageArrived
from schemas.records import JsonObject, ManifestEntry
from stream.images.file_checksum import file_checksum
from stream.images.sources import read_source
from stream.log.event_log import EventLog, Message, message
from stream.manifest import LeftOut
from workers.repository.connection import Connection, fetch_rows
from workers.repository.deletions import deleted_versions
from workers.repository.rejections import Rejection, rejections
from workers.repository.stored_images import (
    StoredImage,
    has_content,
    images_by_id,
    next_version,
)
from workers.runtime.services import Services
from workers.trainer.seeding import arrival

if TYPE_CHECKING:
    from stream.images.s3 import S3ImageStore

# Images looked up and published at once: bounds memory, and keeps the progress bar moving.
PUBLISH_BATCH = 500

# Oldest images that a waiting client looks at. Looking at all would cost more with every image.
WAIT_BATCH = 1000

POLL_INTERVAL_S = 0.1

# Image ids that an error names as examples.
SHOWN_IDS = 3

# Suffixes that an uploaded original may keep in its object name; others become `.bin`.
FILE_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


@dataclass(frozen=True, slots=True)
class Upload:
    """Where files of this machine go before they are announced: the workers may be elsewhere."""

    store: "S3ImageStore"
    cap_bytes: int
    """Larger files are refused here already."""


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """One file that did not become searchable, and why."""

    path: str
    reason: str
    code: str

    def to_json(self) -> dict[str, str]:
        """The form in the document of `sigma ingest`."""
        return {"path": self.path, "reason": self.reason, "code": self.code}


@dataclass(frozen=True, slots=True)
class PublishedImages:
    """What was published."""

    events: tuple[ImageArrived, ...]
    known: frozenset[str]
    """Ids that were indexed in the same version before, so nothing is left to wait for."""
    since: datetime
    """The database's clock before the first event: earlier rejections are not of these events."""
    paths: Mapping[str, str]
    """Image id to the file it was read from."""
    unreadable: tuple[RefusedFile, ...] = ()
    """Files and folders that were left out, could not be uploaded, or make too large an event."""
    checksums: Mapping[str, str | None] = field(default_factory=dict)
    """Image id to the SHA-256 of its file; None where it could not be read."""


@dataclass(frozen=True, slots=True)
class IngestOutcome:
    """What became of the published images."""

    indexed: int
    rejected: tuple[RefusedFile, ...]


def publish(
    conn: Connection,
    log: EventLog,
    entries: Sequence[ManifestEntry],
    version: int | None,
    tick: Callable[[int], None],
    upload: Upload | None = None,
) -> PublishedImages:
    """Publish an `ImageArrived` for each entry; `tick` is called with the number of entries done.

    Without a `version`, deleted images and those with a changed file or changed metadata come under
    the next one and all others keep theirs, so that ingesting a manifest twice changes nothing.
    """
    events: list[ImageArrived] = []
    unreadable: list[RefusedFile] = []
    known: set[str] = set()
    checksums: dict[str, str | None] = {}
    ((since,),) = fetch_rows(conn, "clock")
    for begin in range(0, len(entries), PUBLISH_BATCH):
        batch = entries[begin : begin + PUBLISH_BATCH]
        image_ids = [entry.image_id for entry in batch]
        stored = images_by_id(conn, image_ids)
        deleted = deleted_versions(conn, image_ids)
        ready: list[ImageArrived] = []
        messages: list[Message] = []
        for entry in batch:
            image = stored.get(entry.image_id)
            checksum = file_checksum(entry.path)
            checksums[entry.image_id] = checksum
            gone = deleted[entry.image_id].version if entry.image_id in deleted else 0
            event = arrival(entry, version or next_version(image, checksum, entry.metadata, gone))
            if _is_indexed(image, event, checksum):
                known.add(entry.image_id)
            try:
                announced = event if upload is None else _uploaded(event, upload)
                messages.append(message(announced, announced.image_id))
                ready.append(announced)
            except RejectInputError as error:
                unreadable.append(RefusedFile(entry.path, str(error), error.code))
        log.publish(None, messages)
        events += ready
        tick(len(batch))
    paths = {entry.image_id: entry.path for entry in entries}
    return PublishedImages(
        tuple(events), frozenset(known), since, paths, tuple(unreadable), checksums
    )


def with_left_out(published: PublishedImages, left_out: Sequence[LeftOut]) -> PublishedImages:
    """The same with the files and folders that were left out before anything was published."""
    refused = [RefusedFile(refusal.path, refusal.reason, refusal.code) for refusal in left_out]
    return replace(published, unreadable=(*refused, *published.unreadable))


def _is_indexed(stored: StoredImage | None, event: ImageArrived, checksum: str | None) -> bool:
    """Tell whether answers contain this version, or a newer one, so that nothing will change."""
    return stored is not None and stored.state == "indexed" and _answers(stored, event, checksum)


def _answers(stored: StoredImage, event: ImageArrived, checksum: str | None) -> bool:
    """Tell whether what is stored is this version with this content, or a newer version."""
    if stored.version == event.version and stored.state != "deleted":
        return has_content(stored, checksum, event.metadata)
    return stored.version >= event.version


def upload_to(services: Services) -> Upload | None:
    """With an S3 store, files of this machine are uploaded: the workers may be elsewhere."""
    if services.s3 is None:
        return None
    return Upload(services.s3, services.settings.max_image_bytes)


def _uploaded(event: ImageArrived, upload: Upload) -> ImageArrived:
    """Upload a file of this machine and name its copy; intake decides whether it is an image."""
    if not event.uri.startswith("file:"):
        return event
    data = read_source(event.uri, cap_bytes=upload.cap_bytes)
    suffix = Path(urlsplit(event.uri).path).suffix.lower()
    if not FILE_SUFFIX.fullmatch(suffix):
        suffix = ".bin"
    return replace(event, uri=upload.store.put_original(data, suffix))


def wait(
    conn: Connection,
    published: PublishedImages,
    *,
    serving: bool,
    timeout_s: float,
    tick: Callable[[int], None] = lambda _: None,
) -> IngestOutcome:
    """Wait until every image is searchable or rejected.

    With `serving`, an image counts when a query worker returns it, not when its row exists.
    `WorkFailedError` names what is left when nothing moves for `timeout_s` seconds.
    """
    waiting: dict[str, ImageArrived] = {}
    for event in published.events:
        if event.image_id not in published.known:
            waiting[event.image_id] = event
    # Counted by id: a manifest may name an image twice.
    indexed = len({event.image_id for event in published.events}) - len(waiting)
    tick(indexed)
    rejected: list[RefusedFile] = []
    last_progress = time.monotonic()
    while waiting:
        oldest = dict(islice(waiting.items(), WAIT_BATCH))
        searchable = _searchable(conn, oldest, published.checksums, serving)
        refused = _refused(conn, oldest, published)
        for image_id in searchable:
            refused.pop(image_id, None)
        rejected += refused.values()
        indexed += len(searchable)
        done = searchable | refused.keys()
        for image_id in done:
            del waiting[image_id]
        tick(len(done))
        if done:
            last_progress = time.monotonic()
        elif time.monotonic() - last_progress > timeout_s:
            raise WorkFailedError(_timeout_message(list(waiting), timeout_s))
        if waiting:
            time.sleep(POLL_INTERVAL_S)
    return IngestOutcome(indexed, tuple(sorted(rejected, key=lambda file: file.path)))


def _refused(
    conn: Connection, oldest: Mapping[str, ImageArrived], published: PublishedImages
) -> dict[str, RefusedFile]:
    """Return the images that were rejected since they were published, by id."""
    refused = {}
    for rejection in rejections(conn, list(oldest)):
        if _is_of_this_event(rejection, oldest[rejection.image_id], published.since):
            path = published.paths[rejection.image_id]
            refused[rejection.image_id] = RefusedFile(path, rejection.reason, rejection.code)
    return refused


def _is_of_this_event(rejection: Rejection, event: ImageArrived, since: datetime) -> bool:
    """Tell whether a rejection is of the event published now, not of an earlier attempt."""
    return rejection.version >= event.version and rejection.rejected_at >= since


def _searchable(
    conn: Connection,
    oldest: Mapping[str, ImageArrived],
    checksums: Mapping[str, str | None],
    serving: bool,
) -> set[str]:
    """Return the ids that answers can contain, and those that a deletion has removed again."""
    indexed: dict[int, str] = {}
    done: set[str] = set()
    for image_id, image in images_by_id(conn, list(oldest)).items():
        # Other content under the same version is not this event's: its rejection will follow.
        if not _answers(image, oldest[image_id], checksums.get(image_id)):
            continue
        if image.state == "deleted":
            done.add(image_id)
        elif image.state == "indexed":
            indexed[image.image_key] = image_id
    if not serving:
        return done | set(indexed.values())
    for (image_key,) in fetch_rows(conn, "visible_images", image_keys=list(indexed)):
        done.add(indexed[image_key])
    return done


def _timeout_message(waiting: Sequence[str], timeout_s: float) -> str:
    examples = ", ".join(waiting[:SHOWN_IDS])
    return (
        f"{len(waiting)} images are not searchable after {timeout_s:g} idle seconds"
        f" ({examples} …); they stay in line: see sigma status"
    )


def summary(published: PublishedImages, outcome: IngestOutcome | None) -> JsonObject:
    """Return the JSON document of `sigma ingest`."""
    refused = [*published.unreadable, *(outcome.rejected if outcome else ())]
    indexed = outcome.indexed if outcome else len(published.known)
    return {
        "published": len(published.events),
        "indexed": indexed,
        "rejected": [file.to_json() for file in refused],
    }
