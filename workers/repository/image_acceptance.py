"""Accept images.

Every transaction that accepts images first shares the set of generations, then locks the images by
ascending id (see this package's lock order).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from schemas.events import ImageAccepted
from schemas.metadata import Metadata, canonical
from workers.repository.connection import (
    Connection,
    columns_of,
    execute,
    fetch_rows,
    join_transaction,
)
from workers.repository.counters import WHOLE_DATABASE, count_up
from workers.repository.deletions import (
    DeletedVersions,
    deleted_versions,
    share_deletions,
    store_deletions,
)
from workers.repository.erasures import note_erasures, note_unused_image
from workers.repository.generations import share_set
from workers.repository.image_rows import (
    LateArrival,
    LockedImage,
    insert_deleted,
    lock_images,
    require_all,
    take_away,
)
from workers.repository.rejections import delete_rejections
from workers.repository.removal import remove


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The key under which an accepted image is stored."""

    image_key: int
    is_new: bool
    """False for a replay, or a version older than the stored one: then the key is that one's."""
    conflict: str | None = None
    """The SHA-256 that is stored under the same version, when the accepted bytes, or the metadata,
    are others."""
    outdated: bool = False
    """A newer version is stored under this key: nothing of the accepted one belongs there."""


@dataclass(frozen=True, slots=True)
class _CurrentImage:
    """What is stored under an id after a call that accepts images."""

    image_key: int
    version: int
    checksum: str
    """Empty when the image is deleted."""
    metadata: Metadata
    is_new: bool = False


def accept_images(
    conn: Connection, images: Sequence[ImageAccepted], *, indexed: bool = False
) -> list[StoredKey]:
    """Store images and return their keys, in the order given.

    A replayed or older version changes nothing. A higher version gets a new key, and the old
    version's postings are removed in the same transaction; a deleted image comes back with it. A
    version that was deleted before it came is stored as deleted. A version that is stored with
    other bytes or other metadata is a conflict: the stored one stays.

    With `indexed`, what is new is stored as indexed: the caller appends it in this transaction.
    """
    with join_transaction(conn):
        # Before anything is read: a generation that begins to receive arrivals after this
        # transaction has looked would never get these images.
        share_set(conn)
        share_deletions(conn)
        newest = _newest_versions(_dated(conn, images))
        stored = lock_images(conn, newest)
        gone = _gone_with(conn, newest, stored)
        current = _current(conn, newest, stored, gone, indexed=indexed)
        _note_unused(conn, images, stored, current)
    return [_stored_key(image, current[image.image_id]) for image in images]


def _dated(conn: Connection, images: Sequence[ImageAccepted]) -> list[ImageAccepted]:
    """The images with the time of their publication, which is now where none is known."""
    if all(image.published_at is not None for image in images):
        return list(images)
    ((moment,),) = fetch_rows(conn, "clock")
    return [replace(image, published_at=image.published_at or moment) for image in images]


def _published(image: ImageAccepted) -> datetime:
    assert image.published_at is not None, "the image was dated before"
    return image.published_at


def _newest_versions(images: Sequence[ImageAccepted]) -> dict[str, ImageAccepted]:
    """The highest version of each image id of one call; the first of several equal ones.

    With the time at which that version was published first.
    """
    newest: dict[str, ImageAccepted] = {}
    for image in images:
        known = newest.get(image.image_id)
        if known is None or image.version > known.version:
            newest[image.image_id] = image
        elif image.version == known.version:
            first = min(_published(known), _published(image))
            newest[image.image_id] = replace(known, published_at=first)
    return newest


def _gone_with(
    conn: Connection, newest: Mapping[str, ImageAccepted], stored: Mapping[str, LockedImage]
) -> dict[str, DeletedVersions]:
    """What is deleted of the images, now that these arrived; takes away what they show as gone."""
    before = deleted_versions(conn, newest)
    after = {}
    for image_id, deleted in before.items():
        image = newest[image_id]
        after[image_id] = deleted.seen(image.version, _published(image))
    store_deletions(conn, before, after)
    take_away(conn, stored, after)
    repeated = [
        (stored[image_id].image_key, _published(image))
        for image_id, image in newest.items()
        if image_id in stored
        and image.version == stored[image_id].version
        and _published(image) < stored[image_id].published_at
    ]
    if repeated:
        keys, moments = zip(*repeated, strict=True)
        execute(conn, "publish_earlier", image_keys=list(keys), published_at=list(moments))
    return after


def _current(
    conn: Connection,
    newest: Mapping[str, ImageAccepted],
    stored: Mapping[str, LockedImage],
    gone: Mapping[str, DeletedVersions],
    *,
    indexed: bool,
) -> dict[str, _CurrentImage]:
    """Write images that are new or newer and not deleted; what is stored of each id then."""
    accepted: list[ImageAccepted] = []
    late: list[LateArrival] = []
    for image_id in sorted(newest):
        image = newest[image_id]
        if image_id in stored and image.version <= stored[image_id].version:
            continue
        if image_id not in gone or image.version > gone[image_id].version:
            accepted.append(image)
        elif image_id not in stored:
            late.append(LateArrival(image_id, image.version, image.arrived_at, _published(image)))
    late_keys = insert_deleted(conn, late)
    require_all([image.image_id for image in late], late_keys)
    count_up(conn, WHOLE_DATABASE, {"deleted": len(late_keys)})
    replaced = [stored[image.image_id] for image in accepted if image.image_id in stored]
    # Only indexed images have postings. Removed while their rows still have the old keys.
    remove(conn, [image.image_key for image in replaced if image.state == "indexed"])
    note_erasures(
        conn,
        {
            image.image_id: stored[image.image_id].version
            for image in accepted
            if image.image_id in stored
        },
    )
    keys = _upsert(conn, accepted, set(stored), indexed=indexed)
    delete_rejections(conn, accepted)
    current = {
        image_id: _CurrentImage(
            image.image_key,
            image.version,
            _bytes_of(image, gone.get(image_id)),
            image.metadata,
        )
        for image_id, image in stored.items()
    }
    for image_id, key in late_keys.items():
        current[image_id] = _CurrentImage(key, newest[image_id].version, "", {})
    for image in accepted:
        current[image.image_id] = _CurrentImage(
            keys[image.image_id], image.version, image.checksum, image.metadata, is_new=True
        )
    return current


def _note_unused(
    conn: Connection,
    images: Sequence[ImageAccepted],
    stored: Mapping[str, LockedImage],
    current: Mapping[str, _CurrentImage],
) -> None:
    """Note the pictures of images that are not kept: deleted, replaced or in conflict."""
    for image in images:
        kept = current[image.image_id]
        is_current = image.version == kept.version
        # A replay has the picture of the row.
        if not is_current or kept.checksum != image.checksum:
            note_unused_image(conn, image, is_gone=not is_current or not kept.checksum)


def _bytes_of(image: LockedImage, deleted: DeletedVersions | None) -> str:
    """The checksum that a replay is compared with; empty when the image is deleted."""
    is_gone = deleted is not None and image.version <= deleted.version
    return "" if is_gone or image.state == "deleted" else image.checksum


def _stored_key(image: ImageAccepted, current: _CurrentImage) -> StoredKey:
    is_same_version = image.version == current.version
    if is_same_version and current.checksum and _is_other(image, current):
        return StoredKey(current.image_key, is_new=False, conflict=current.checksum)
    return StoredKey(
        current.image_key,
        is_new=current.is_new and is_same_version,
        outdated=not is_same_version,
    )


def _is_other(image: ImageAccepted, current: _CurrentImage) -> bool:
    """Whether an image has other bytes or other metadata than what is stored of its version."""
    if image.checksum != current.checksum:
        return True
    return canonical(image.metadata) != canonical(current.metadata)


def _upsert(
    conn: Connection, images: Sequence[ImageAccepted], known: set[str], *, indexed: bool
) -> dict[str, int]:
    """Write images that are new or newer; return their new keys by id.

    `known` are the ids that our lock returned.
    """
    rows = []
    if images:
        rows = fetch_rows(conn, "upsert_images", indexed=indexed, **_upsert_columns(images))
    keys = {}
    for image_id, key, inserted in rows:
        # Expected: a known image is updated, an unknown one inserted.
        if inserted is not (image_id in known):
            keys[image_id] = int(key)
    # Another worker inserted it after our lock, which cannot lock a row that does not exist.
    # The postings of its version were not removed, so our write must be undone.
    require_all([image.image_id for image in images], keys)
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
        "metadata",
    )
    # As JSON text: `unnest` would flatten an array of arrays.
    for name in ("captions", "test_captions"):
        columns[name] = [json.dumps(texts, ensure_ascii=False) for texts in columns[name]]
    columns["metadata"] = [canonical(metadata) for metadata in columns["metadata"]]
    return columns
