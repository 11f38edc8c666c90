"""Lock, mark and insert rows of images: the steps that accepting and deleting share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from schemas.errors import RetryLaterError
from schemas.metadata import Metadata, stored_metadata
from workers.repository.connection import (
    Connection,
    columns_of,
    execute,
    fetch_rows,
)
from workers.repository.counters import WHOLE_DATABASE, count_up
from workers.repository.deletions import (
    DeletedVersions,
)
from workers.repository.erasures import blank_rejections, note_erasures
from workers.repository.removal import remove


@dataclass(frozen=True, slots=True)
class LateArrival:
    """A version of an image that arrives after it was deleted."""

    image_id: str
    version: int
    arrived_at: datetime
    published_at: datetime


@dataclass(frozen=True, slots=True)
class LockedImage:
    """What the lock of an image row returns."""

    image_key: int
    version: int
    state: str
    checksum: str
    published_at: datetime
    metadata: Metadata = field(hash=False)


def lock_images(conn: Connection, image_ids: Iterable[str]) -> dict[str, LockedImage]:
    rows = fetch_rows(conn, "lock_images_by_id", image_ids=sorted(image_ids))
    return {row[1]: _locked_image(row) for row in rows}


def _locked_image(row: Sequence[Any]) -> LockedImage:
    image = LockedImage(row[0], *row[2:])
    return replace(image, metadata=stored_metadata(image.metadata))


def insert_deleted(conn: Connection, late: Sequence[LateArrival]) -> dict[str, int]:
    """Make rows for unknown images that are deleted already; their keys by id."""
    highest: dict[str, LateArrival] = {}
    for arrival in late:
        known = highest.get(arrival.image_id)
        if known is None or arrival.version > known.version:
            highest[arrival.image_id] = arrival
    if not highest:
        return {}
    columns = columns_of(
        list(highest.values()), "image_id", "version", "arrived_at", "published_at"
    )
    return {
        image_id: int(key) for image_id, key in fetch_rows(conn, "insert_deleted_images", **columns)
    }


def take_away(
    conn: Connection,
    stored: Mapping[str, LockedImage],
    gone: Mapping[str, DeletedVersions],
) -> dict[str, int]:
    """Mark stored images that are gone as deleted, with their postings; their keys by id."""
    keys: dict[str, int] = {}
    for image_id, deleted in gone.items():
        image = stored.get(image_id)
        if image is not None and image.state != "deleted" and image.version <= deleted.version:
            keys[image_id] = image.image_key
    # Counters of the whole database come before generations in the lock order.
    count_up(conn, WHOLE_DATABASE, {"deleted": len(keys)})
    remove(conn, list(keys.values()))
    # Also of images that never had a row: what refused arrivals left.
    note_erasures(conn, {name: deleted.version for name, deleted in gone.items()})
    blank_rejections(conn, list(gone))
    # Last: all of these need the rows as they were.
    if keys:
        execute(conn, "mark_deleted", image_keys=list(keys.values()))
    return keys


def require_all(image_ids: Sequence[str], written: Mapping[str, int]) -> None:
    missed = ", ".join(image_id for image_id in image_ids if image_id not in written)
    if missed:
        raise RetryLaterError(
            f"image {missed} was accepted by another worker at the same moment; try again"
        )
