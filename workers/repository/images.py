"""Images: accept, reject and delete them, look them up, and measure freshness.

Every transaction that accepts images first shares the set of generations, then locks the images by
ascending id (see this package's lock order).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from schemas.errors import RetryLaterError
from schemas.events import ImageAccepted, ImageDeleted, ImageRejected, now
from workers.repository.connection import (
    Connection,
    columns_of,
    execute,
    fetch_row,
    fetch_rows,
    join_transaction,
    transaction,
)
from workers.repository.counters import WHOLE_DATABASE, count_up
from workers.repository.generations import share_set
from workers.repository.removal import remove

# Rows of freshness measurements that are kept; `freshness` looks at the newest 1,000.
VISIBILITY_KEPT = 10_000


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


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The key under which an accepted image is stored."""

    image_key: int
    is_new: bool
    """False for a replay, or a version older than the stored one: then the key is that one's."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion did, as image ids."""

    deleted: tuple[str, ...]
    untouched: tuple[str, ...]
    """Unknown, deleted before, or newer than the deletion."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an image was rejected."""

    image_id: str
    version: int
    uri: str
    code: str
    reason: str
    stage: str
    rejected_at: datetime


@dataclass(frozen=True, slots=True)
class Freshness:
    """Seconds from publishing to searchable; None where nothing was measured."""

    p50_s: float | None
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class _LockedImage:
    """What the lock of an image row returns."""

    image_key: int
    version: int
    state: str


def accept_images(conn: Connection, images: Sequence[ImageAccepted]) -> list[StoredKey]:
    """Store images and return their keys, in the order given.

    A replayed or older version changes nothing. A higher version gets a new key, and the old
    version's postings are removed in the same transaction; a deleted image comes back with it.
    """
    newest = _newest_versions(images)
    with join_transaction(conn):
        # Before anything is read: a generation that begins to receive arrivals after this
        # transaction has looked would never get these images.
        share_set(conn)
        stored = _lock_images(conn, newest)
        accepted = [
            newest[image_id]
            for image_id in sorted(newest)
            if image_id not in stored or newest[image_id].version > stored[image_id].version
        ]
        replaced = [stored[image.image_id] for image in accepted if image.image_id in stored]
        # Only indexed images have postings. Removed while their rows still have the old keys.
        remove(conn, [image.image_key for image in replaced if image.state == "indexed"])
        keys = {image_id: image.image_key for image_id, image in stored.items()}
        keys |= _upsert(conn, accepted, set(stored))
        _delete_rejections(conn, accepted)
    new_versions = {image.image_id: image.version for image in accepted}
    return [
        StoredKey(keys[image.image_id], is_new=new_versions.get(image.image_id) == image.version)
        for image in images
    ]


def reject_image(conn: Connection, rejected: ImageRejected) -> bool:
    """Store a rejection and count it once, however often it is replayed.

    Returns whether it is new.
    """
    with join_transaction(conn):
        row = fetch_row(
            conn,
            "insert_rejection",
            image_id=rejected.image_id,
            version=rejected.version,
            uri=rejected.uri,
            code=rejected.code,
            reason=rejected.reason,
            stage=rejected.stage,
        )
        is_new = bool(row and row[0])
        count_up(conn, WHOLE_DATABASE, {"rejected": int(is_new)})
    return is_new


def rejections(
    conn: Connection, image_ids: Sequence[str] | None = None, *, limit: int = 1000
) -> list[Rejection]:
    """Return rejections, of these ids or of all, newest first."""
    # NULL matches every image in the query.
    wanted = None if image_ids is None else list(image_ids)
    rows = fetch_rows(conn, "rejections", image_ids=wanted, amount=limit)
    return [Rejection(*columns) for columns in rows]


def delete_images(conn: Connection, deletions: Iterable[ImageDeleted | str]) -> Deletion:
    """Delete images, given as events or ids, in one transaction.

    They are marked, their postings are removed from every generation, and tombstones tell the
    query workers. A deletion that names a version leaves newer versions alone, so that a replayed
    deletion is harmless.
    """
    highest_version: dict[str, int | None] = {}
    for deletion in deletions:
        if isinstance(deletion, str):
            highest_version[deletion] = None
        else:
            highest_version[deletion.image_id] = deletion.version
    with transaction(conn):
        keys: dict[str, int] = {}
        for image_id, image in _lock_images(conn, highest_version).items():
            bound = highest_version[image_id]
            if image.state != "deleted" and (bound is None or image.version <= bound):
                keys[image_id] = image.image_key
        # Counters of the whole database come before generations in the lock order.
        count_up(conn, WHOLE_DATABASE, {"deleted": len(keys)})
        remove(conn, list(keys.values()))
        # Last: the removal needs the rows as they were.
        execute(conn, "mark_deleted", image_keys=list(keys.values()))
    untouched = tuple(image_id for image_id in highest_version if image_id not in keys)
    return Deletion(deleted=tuple(keys), untouched=untouched)


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
    rows = fetch_rows(conn, "missing_images", generation=generation, after=after, amount=limit)
    return [_stored_image(row) for row in rows]


def newest_image(conn: Connection) -> int:
    """Return the highest image key.

    Under `generations.lock_set`, every image with a key up to it is committed and visible.
    """
    row = fetch_row(conn, "newest_image")
    return int(row[0]) if row else 0


def record_visibility(
    conn: Connection, worker: str, image_keys: Sequence[int], searchable_at: datetime | None = None
) -> list[float]:
    """Record when a query worker began to return these images; `searchable_at` is now by default.

    Returns the seconds since each was appended.
    """
    with transaction(conn):
        rows = fetch_rows(
            conn,
            "record_visibility",
            worker=worker,
            image_keys=[int(key) for key in image_keys],
            searchable_at=searchable_at or now(),
        )
        execute(conn, "prune_visibility", keep=VISIBILITY_KEPT)
    return [float(seconds) for (seconds,) in rows]


def freshness(conn: Connection) -> Freshness:
    """Return the freshness of the newest 1,000 images of the last hour."""
    row = fetch_row(conn, "freshness")
    return Freshness(None, None) if row is None else Freshness(*row)


def _newest_versions(images: Sequence[ImageAccepted]) -> dict[str, ImageAccepted]:
    """The highest version of each image id of one call; the first of several equal ones."""
    newest: dict[str, ImageAccepted] = {}
    for image in images:
        if image.image_id not in newest or image.version > newest[image.image_id].version:
            newest[image.image_id] = image
    return newest


def _lock_images(conn: Connection, image_ids: Iterable[str]) -> dict[str, _LockedImage]:
    rows = fetch_rows(conn, "lock_images_by_id", image_ids=sorted(image_ids))
    return {image_id: _LockedImage(key, version, state) for key, image_id, version, state in rows}


def _upsert(conn: Connection, images: Sequence[ImageAccepted], known: set[str]) -> dict[str, int]:
    """Write images that are new or newer; return their new keys by id.

    `known` are the ids that our lock returned.
    """
    rows = fetch_rows(conn, "upsert_images", **_upsert_columns(images)) if images else []
    keys = {}
    for image_id, key, inserted in rows:
        # Expected: a known image is updated, an unknown one inserted.
        if inserted is not (image_id in known):
            keys[image_id] = int(key)
    if len(keys) < len(images):
        # Another worker inserted it after our lock, which cannot lock a row that does not exist.
        # The postings of its version were not removed, so our write must be undone.
        missed = ", ".join(image.image_id for image in images if image.image_id not in keys)
        raise RetryLaterError(
            f"image {missed} was accepted by another worker at the same moment; try again"
        )
    return keys


def _upsert_columns(images: Sequence[ImageAccepted]) -> dict[str, list[Any]]:
    columns = columns_of(
        images,
        "image_id",
        "version",
        "uri",
        "normalized_uri",
        "checksum",
        "width",
        "height",
        "captions",
        "test_captions",
        "split",
        "arrived_at",
        "published_at",
    )
    # As JSON text: `unnest` would flatten an array of arrays.
    for name in ("captions", "test_captions"):
        columns[name] = [json.dumps(texts, ensure_ascii=False) for texts in columns[name]]
    return columns


def _delete_rejections(conn: Connection, images: Sequence[ImageAccepted]) -> None:
    deleted = execute(
        conn,
        "delete_rejections",
        image_ids=[image.image_id for image in images],
        versions=[image.version for image in images],
    )
    count_up(conn, WHOLE_DATABASE, {"rejected": -deleted})


def _stored_image(row: Sequence[Any]) -> StoredImage:
    image = StoredImage(*row)
    # JSON arrays come as lists.
    return replace(image, captions=tuple(image.captions), test_captions=tuple(image.test_captions))
