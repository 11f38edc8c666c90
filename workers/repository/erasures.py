"""Erasures: what deleted images and replaced versions leave outside of their rows.

Rows lose their content in the transaction that deletes or replaces it. Pictures in the store and
events in the log cannot go in a transaction; they are noted here, and erased by the job `prune`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.events import ImageAccepted
from stream.images.store import UPLOAD_SUFFIX
from workers.repository.connection import Connection, execute, fetch_column, fetch_rows

# Notes worked on at a time.
PAGE = 500

Place = tuple[str, int, int]
"""Topic, partition and offset of an event."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """What is to be erased of one image."""

    id: int
    image_id: str
    version: int
    """Events of this version and lower ones; 0 for none."""
    pictures: tuple[str, ...]
    """Addresses in the image store."""
    caption_hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ImageEvent:
    """An event of the embedded log about an image."""

    place: Place
    image_id: str
    value: bytes


def note_erasures(conn: Connection, versions: Mapping[str, int]) -> None:
    """Note what is left of images up to these versions, by id, before their rows lose it."""
    if versions:
        execute(conn, "note_erasures", image_ids=list(versions), versions=list(versions.values()))


def note_unused_image(conn: Connection, image: ImageAccepted, *, is_gone: bool) -> None:
    """Note the picture of an image that is not kept; `is_gone`: its events and captions too.

    They stay when the same version is kept with other bytes.
    """
    captions = [*image.captions, *image.test_captions] if is_gone else []
    execute(
        conn,
        "note_unused_image",
        image_id=image.image_id,
        version=image.version if is_gone else 0,
        pictures=[image.normalized_uri],
        hashes=[hashlib.sha256(caption.encode()).digest() for caption in captions],
    )


def blank_rejections(conn: Connection, image_ids: Sequence[str] | None = None) -> int:
    """Remove what rejections of deleted versions tell, of these images or of all."""
    wanted = None if image_ids is None else list(image_ids)
    return execute(conn, "blank_rejections", image_ids=wanted)


def due_erasures(conn: Connection, after: int) -> list[Erasure]:
    """Return the next page of notes with ids above `after`."""
    found = []
    for number, image_id, version, pictures, hashes in fetch_rows(
        conn, "due_erasures", after=after, amount=PAGE
    ):
        found.append(Erasure(number, image_id, version, tuple(pictures), tuple(hashes)))
    return found


def used_pictures(conn: Connection, pictures: Sequence[str]) -> set[str]:
    """Return those of the pictures that belong to an image that is not deleted."""
    used = set(fetch_column(conn, "used_pictures", pictures=list(pictures)))
    originals = [
        picture
        for picture in pictures
        if picture.startswith("s3:") or picture.endswith(UPLOAD_SUFFIX)
    ]
    if originals:
        used |= set(fetch_column(conn, "used_originals", pictures=originals))
    return used


def erase_queries(conn: Connection, erasures: Sequence[Erasure]) -> int:
    """Delete recorded queries that consist of a caption that is to be erased; return how many."""
    hashes = [digest for erasure in erasures for digest in erasure.caption_hashes]
    return execute(conn, "erase_queries", hashes=hashes) if hashes else 0


def events_of_images(conn: Connection, image_ids: Sequence[str]) -> list[ImageEvent]:
    """Return the events of the embedded log about these images, those that carry content."""
    rows = fetch_rows(conn, "events_of_images", image_ids=list(image_ids))
    return [
        ImageEvent((topic, partition, offset), key, bytes(value))
        for topic, partition, offset, key, value in rows
    ]


def erase_events(conn: Connection, places: Sequence[Place], consumed: Sequence[str]) -> set[Place]:
    """Delete events; of the `consumed` topics those that every group has read. Returns which."""
    rows = fetch_rows(
        conn,
        "erase_events",
        topics=[topic for topic, _, _ in places],
        partitions=[partition for _, partition, _ in places],
        offsets=[offset for _, _, offset in places],
        consumed=list(consumed),
    )
    return {(topic, partition, offset) for topic, partition, offset in rows}


def end_erasures(conn: Connection, erasures: Sequence[Erasure]) -> None:
    """Forget notes of what is erased."""
    execute(conn, "end_erasures", ids=[erasure.id for erasure in erasures])
