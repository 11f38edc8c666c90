"""Seeding: training images pass the same checks as arrivals, and are stored in the same tables."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from model.progress import Progress
from schemas.errors import UsageError
from schemas.events import ImageAccepted, ImageArrived, ImageRejected, now
from schemas.records import IntArray, ManifestEntry
from stream.images.decode_pool import DecodeLimits, DecodePool
from stream.images.decode_protocol import LONGEST_SIDE
from stream.images.file_checksum import file_checksum
from stream.images.sources import read_source
from stream.images.store import ImageStore
from stream.validation import accept
from workers.repository.connection import Connection
from workers.repository.image_acceptance import accept_images
from workers.repository.stored_images import (
    StoredImage,
    has_content,
    images_by_id,
    next_version,
)

# Images accepted in one transaction, which locks them.
_BATCH = 256

# Images decoded at the same time, each in a process of its own.
_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class RejectedEntry:
    """An entry of a manifest that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SeededImages:
    """N images of a manifest that are stored now."""

    rows: list[int]
    """Their places among the entries, ascending."""
    image_keys: IntArray
    """(N,)"""
    uris: list[str]
    """Addresses of their normalised pictures."""
    rejected: tuple[RejectedEntry, ...]


def arrival(entry: ManifestEntry, version: int = 1) -> ImageArrived:
    """The event that a manifest's entry arrives with."""
    return ImageArrived(
        image_id=entry.image_id,
        uri=Path(entry.path).as_uri(),
        version=version,
        captions=entry.captions,
        test_captions=entry.test_captions,
        split=entry.split,
        arrived_at=entry.arrived_at or now(),
        metadata=entry.metadata,
    )


def seed_images(
    conn: Connection,
    store: ImageStore,
    limits: DecodeLimits,
    entries: Sequence[ManifestEntry],
    progress: Progress,
    longest_side: int = LONGEST_SIDE,
) -> SeededImages:
    """Validate, normalise and store the images of a manifest. Bad ones are left out, with reasons.

    Pictures are stored with at most `longest_side` pixels a side, unless they are stored already.
    `UsageError` when none can be used.
    """
    source = partial(read_source, cap_bytes=limits.max_bytes)
    rows: list[int] = []
    images: list[StoredImage] = []
    rejected: list[RejectedEntry] = []
    with (
        progress("read images", len(entries)) as bar,
        DecodePool(limits, processes=_PROCESSES) as pool,
        ThreadPoolExecutor(_PROCESSES) as threads,
    ):

        def validate(entry: ManifestEntry) -> ImageAccepted | ImageRejected:
            return accept(arrival(entry), store, pool, source, longest_side=longest_side)

        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            found = _stored_before(conn, store, batch)
            unknown = [offset for offset in range(len(batch)) if offset not in found]
            # Threads keep the decoding processes busy; the database sees one batch at a time.
            events = list(threads.map(validate, [batch[offset] for offset in unknown]))
            rejected += _rejections([batch[offset] for offset in unknown], events)
            for place, image in _store(conn, events):
                found[unknown[place]] = image
            for offset in sorted(found):
                rows.append(start + offset)
                images.append(found[offset])
            bar.update(len(batch))
    if not rows:
        first = rejected[0].reason if rejected else "deleted"
        raise UsageError(f"none of the {len(entries)} images can be used; the first: {first}")
    keys = np.array([image.image_key for image in images], np.int64)
    uris = [image.normalized_uri for image in images]
    return SeededImages(rows, keys, uris, tuple(rejected))


def _stored_before(
    conn: Connection, store: ImageStore, batch: Sequence[ManifestEntry]
) -> dict[int, StoredImage]:
    """Entries that are stored as they are, by their place: they need no decoding again.

    So a training goes on quickly that was killed while it read its images.
    """
    stored = images_by_id(conn, [entry.image_id for entry in batch])
    found: dict[int, StoredImage] = {}
    for offset, entry in enumerate(batch):
        image = stored.get(entry.image_id)
        if image is None or image.state == "deleted" or not image.checksum:
            continue
        # A manifest that says nothing of an image takes nothing of it away.
        metadata = entry.metadata or image.metadata
        checksum = file_checksum(entry.path)
        same = checksum == image.checksum and has_content(image, checksum, metadata)
        if same and store.exists(image.normalized_uri):
            found[offset] = image
    return found


def _rejections(
    batch: Sequence[ManifestEntry], events: Sequence[ImageAccepted | ImageRejected]
) -> list[RejectedEntry]:
    rejected = []
    for entry, event in zip(batch, events, strict=True):
        if isinstance(event, ImageRejected):
            rejected.append(RejectedEntry(entry.path, event.reason))
    return rejected


def _store(
    conn: Connection, events: Sequence[ImageAccepted | ImageRejected]
) -> list[tuple[int, StoredImage]]:
    """Accept a batch; what is stored now, with the place of its event, less deleted images.

    A file that has changed since it was stored is stored as the next version.
    """
    accepted = [event for event in events if isinstance(event, ImageAccepted)]
    before = images_by_id(conn, [event.image_id for event in accepted])
    versions = []
    for event in accepted:
        version = next_version(before.get(event.image_id), event.checksum, event.metadata)
        # A deleted image stays deleted: training brings nothing back.
        if event.image_id in before and before[event.image_id].state == "deleted":
            version = event.version
        versions.append(replace(event, version=version))
    accept_images(conn, versions)
    stored = images_by_id(conn, [event.image_id for event in accepted])
    images = []
    for offset, outcome in enumerate(events):
        image = stored.get(outcome.image_id)
        if image is not None and image.state != "deleted":
            images.append((offset, image))
    return images
