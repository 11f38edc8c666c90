"""Look up images as the database stores them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from schemas.metadata import Metadata, canonical, stored_metadata
from workers.repository.connection import (
    Connection,
    fetch_row,
    fetch_rows,
)
from workers.repository.generations import watermark


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as the database stores it."""

    image_key: int
    """Changes with the version. Keys ascend but have gaps."""
    image_id: str
    version: int
    state: str
    """accepted, indexed or deleted"""
    uri: str
    normalized_uri: str
    captions: tuple[str, ...]
    test_captions: tuple[str, ...]
    split: str | None
    arrived_at: datetime
    indexed_at: datetime | None
    checksum: str = ""
    """SHA-256 of the bytes that arrived; empty for an image that was deleted before it came."""
    published_at: datetime | None = None
    """When this version was published first."""
    metadata: Metadata = field(default_factory=dict, hash=False)


def images_by_key(conn: Connection, image_keys: Sequence[int]) -> dict[int, StoredImage]:
    """Return images by key. Deleted images are among them, with their state."""
    rows = fetch_rows(conn, "images_by_key", image_keys=[int(key) for key in image_keys])
    images = [_stored_image(row) for row in rows]
    return {image.image_key: image for image in images}


def images_by_id(conn: Connection, image_ids: Sequence[str]) -> dict[str, StoredImage]:
    """Return images by id, whatever their state."""
    rows = fetch_rows(conn, "images_by_id", image_ids=list(image_ids))
    images = [_stored_image(row) for row in rows]
    return {image.image_id: image for image in images}


def missing_images(
    conn: Connection, generation: int, *, after: int = 0, limit: int = 1000
) -> list[StoredImage]:
    """Return images that a generation lacks, with keys above `after`, ascending."""
    known = watermark(conn, generation)
    rows = fetch_rows(
        conn,
        "missing_images",
        generation=generation,
        above=max(after, known.complete_to),
        unplaced=[key for key in known.unplaced if key > after],
        amount=limit,
    )
    return [_stored_image(row) for row in rows]


def newest_image(conn: Connection) -> int:
    """Return the highest image key.

    Under `generations.lock_set`, every image with a key up to it is committed and visible.
    """
    row = fetch_row(conn, "newest_image")
    return int(row[0]) if row else 0


def accepted_images(conn: Connection) -> int:
    """How many images are accepted and in no generation: they wait for the first one."""
    row = fetch_row(conn, "accepted_images")
    return int(row[0]) if row else 0


def next_version(
    stored: StoredImage | None, checksum: str | None, metadata: Metadata, deleted: int = 0
) -> int:
    """The version under which bytes and metadata are published, so that they become stored.

    Versions up to `deleted` are gone. What is stored keeps its version when it has this SHA-256,
    and this metadata; None stands for bytes that cannot be read.
    """
    if stored is None:
        return deleted + 1
    if stored.state == "deleted":
        return max(stored.version, deleted) + 1
    return stored.version if has_content(stored, checksum, metadata) else stored.version + 1


def has_content(stored: StoredImage, checksum: str | None, metadata: Metadata) -> bool:
    """Whether a stored image has these bytes, by their SHA-256 where it is known, and metadata."""
    has_bytes = checksum is None or stored.checksum in ("", checksum)
    return has_bytes and canonical(stored.metadata) == canonical(metadata)


def _stored_image(row: Sequence[Any]) -> StoredImage:
    image = StoredImage(*row)
    # JSON arrays come as lists.
    return replace(
        image,
        captions=tuple(image.captions),
        test_captions=tuple(image.test_captions),
        metadata=stored_metadata(image.metadata),
    )
