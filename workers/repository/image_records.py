"""Image records: all that is stored of an image, and where each generation has it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from schemas.metadata import Metadata, stored_metadata
from workers.repository.connection import Connection, fetch_column, fetch_rows
from workers.repository.postings import StoredPosting


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image that is not deleted."""

    image_key: int
    image_id: str
    version: int
    state: str
    """accepted or indexed"""
    uri: str
    normalized_uri: str
    captions: tuple[str, ...]
    width: int
    height: int
    """Pixels of the picture that arrived, turned upright."""
    split: str | None
    checksum: str
    """SHA-256 of the bytes that arrived."""
    arrived_at: datetime
    indexed_at: datetime | None
    metadata: Metadata = field(hash=False)


def image_records(conn: Connection, image_ids: Sequence[str]) -> list[ImageRecord]:
    """Return images in the order of their ids; unknown and deleted ones are left out."""
    records = []
    for row in fetch_rows(conn, "image_records", image_ids=list(image_ids)):
        record = ImageRecord(*row)
        # JSON arrays come as lists.
        records.append(
            replace(
                record,
                captions=tuple(record.captions),
                metadata=stored_metadata(record.metadata),
            )
        )
    return records


def image_page(conn: Connection, after: str | None, amount: int) -> list[ImageRecord]:
    """Return images whose ids come after one, in their order, at most `amount`."""
    return image_records(conn, fetch_column(conn, "image_ids_after", after=after, amount=amount))


def newest_images(conn: Connection, before: int | None, amount: int) -> list[ImageRecord]:
    """Return the images accepted last, newest first, at most `amount`; those older than a key."""
    ids = fetch_column(conn, "image_ids_before", before=before, amount=amount)
    return sorted(image_records(conn, ids), key=lambda image: -image.image_key)


def places_of(conn: Connection, image_key: int) -> dict[int, list[StoredPosting]]:
    """Return an image's postings by generation, the primary of each first."""
    places: dict[int, list[StoredPosting]] = {}
    for generation, leaf, suffix, weight in fetch_rows(
        conn, "places_of_image", image_key=image_key
    ):
        places.setdefault(generation, []).append(StoredPosting(leaf, suffix, weight))
    return places
