"""Seeding: training images pass the same checks as arrivals and stand in the same tables and store."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from model.progress import Progress
from schemas.errors import UsageError
from schemas.events import ImageAccepted, ImageArrived, ImageRejected, now
from schemas.records import IntArray, ManifestEntry
from stream.images.decode_pool import DecodePool
from stream.images.sources import read_source
from stream.validation import accept
from workers.repository.connection import Connection
from workers.repository.images import accept_images, images_by_id
from workers.runtime.services import Services

_BATCH = 256
_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Seeded:
    """Images that are stored: `rows` of the entries, their `image_keys` (N,) and normalised `uris`; `rejected` with reasons."""

    rows: list[int]
    image_keys: IntArray
    uris: list[str]
    rejected: tuple[dict[str, str], ...]


def arrival(entry: ManifestEntry, version: int = 1) -> ImageArrived:
    """The event of a manifest's entry."""
    return ImageArrived(
        image_id=entry.image_id,
        uri=Path(entry.path).as_uri(),
        version=version,
        captions=entry.captions,
        test_captions=entry.test_captions,
        split=entry.split,
        arrived_at=entry.arrived_at or now(),
    )


def seed_images(
    services: Services, conn: Connection, entries: Sequence[ManifestEntry], progress: Progress
) -> Seeded:
    """Validate, normalise and store the images of a training set. Bad ones are left out, with their reasons."""
    store = services.store
    source = partial(read_source, cap_bytes=services.settings.max_image_bytes)
    rows: list[int] = []
    keys: list[int] = []
    uris: list[str] = []
    rejected: list[dict[str, str]] = []
    with (
        progress("read images", len(entries)) as bar,
        DecodePool(services.limits, processes=_PROCESSES) as pool,
        ThreadPoolExecutor(_PROCESSES) as threads,
    ):
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            events = list(
                threads.map(lambda entry: accept(arrival(entry), store, pool, source), batch)
            )
            good = [event for event in events if isinstance(event, ImageAccepted)]
            bad = [
                (entry.path, event.reason)
                for entry, event in zip(batch, events, strict=True)
                if isinstance(event, ImageRejected)
            ]
            rejected += [{"path": path, "reason": reason} for path, reason in bad]
            accept_images(conn, good)
            stored = images_by_id(conn, [event.image_id for event in good])
            for offset, event in enumerate(events):
                known = stored.get(event.image_id)
                if known is not None and known.state != "deleted":
                    rows.append(start + offset)
                    keys.append(known.image_key)
                    uris.append(known.normalized_uri)
            bar.update(len(batch))
    if not rows:
        raise UsageError(
            f"none of the {len(entries)} training images can be used; the first: {rejected[0]['reason'] if rejected else 'deleted'}"
        )
    return Seeded(rows, np.array(keys, np.int64), uris, tuple(rejected))
