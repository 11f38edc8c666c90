"""Images: accept, reject and delete them, look them up, and measure freshness.

Every transaction that accepts images first shares the set of generations, then locks the images by
ascending id (see this package's lock order).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
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
from workers.repository.deletions import (
    DeletedVersions,
    DeletionRequest,
    deleted_versions,
    own_deletions,
    share_deletions,
    store_deletions,
)
from workers.repository.erasures import blank_rejections, note_erasures, note_unused_image
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
    checksum: str = ""
    """SHA-256 of the bytes that arrived; empty for an image that was deleted before it came."""
    published_at: datetime | None = None
    """When this version was published first."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The key under which an accepted image is stored."""

    image_key: int
    is_new: bool
    """False for a replay, or a version older than the stored one: then the key is that one's."""
    conflict: str | None = None
    """The SHA-256 that is stored under the same version, when the accepted bytes are others."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion did, as image ids."""

    deleted: tuple[str, ...]
    untouched: tuple[str, ...]
    """Unknown, deleted before, or newer than the deletion; it holds for what is still to come."""


@dataclass(frozen=True, slots=True)
class LateArrival:
    """A version of an image that arrives after it was deleted."""

    image_id: str
    version: int
    arrived_at: datetime
    published_at: datetime


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
    checksum: str
    published_at: datetime


@dataclass(frozen=True, slots=True)
class _CurrentImage:
    """What is stored under an id after a call that accepts images."""

    image_key: int
    version: int
    checksum: str
    """Empty when the image is deleted."""
    is_new: bool = False


def accept_images(conn: Connection, images: Sequence[ImageAccepted]) -> list[StoredKey]:
    """Store images and return their keys, in the order given.

    A replayed or older version changes nothing. A higher version gets a new key, and the old
    version's postings are removed in the same transaction; a deleted image comes back with it. A
    version that was deleted before it came is stored as deleted. A version that is stored with
    other bytes is a conflict: the stored one stays.
    """
    with join_transaction(conn):
        # Before anything is read: a generation that begins to receive arrivals after this
        # transaction has looked would never get these images.
        share_set(conn)
        share_deletions(conn)
        newest = _newest_versions(_dated(conn, images))
        stored = _lock_images(conn, newest)
        gone = _gone_with(conn, newest, stored)
        current = _current(conn, newest, stored, gone)
        _note_unused(conn, images, stored, current)
    return [_stored_key(image, current[image.image_id]) for image in images]


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


def delete_images(
    conn: Connection,
    deletions: Iterable[DeletionRequest | ImageDeleted | str],
    late: Sequence[LateArrival] = (),
) -> Deletion:
    """Delete images, given as requests, events or ids, in one transaction.

    They are marked, their postings are removed from every generation, and tombstones tell the
    query workers. A deletion also holds for its versions that are still to come; it leaves newer
    ones alone, so that a replayed deletion is harmless. An id alone stands for every version that
    is known or was published until now. `late` are arrivals that an earlier deletion holds for.
    """
    named = list(deletions)
    with transaction(conn):
        own_deletions(conn)
        requests = _requests(conn, named)
        ids = {request.image_id for request in requests} | {image.image_id for image in late}
        stored = _lock_images(conn, ids)
        before = deleted_versions(conn, ids)
        after = {name: before.get(name, DeletedVersions(name)) for name in ids}
        for request in [*requests, *_of_known_versions(named, stored)]:
            after[request.image_id] = after[request.image_id].joined(request)
        for name, image in stored.items():
            after[name] = after[name].seen(image.version, image.published_at)
        for arrival in late:
            after[arrival.image_id] = after[arrival.image_id].seen(
                arrival.version, arrival.published_at
            )
        store_deletions(conn, before, after)
        known_late = _insert_deleted(
            conn, [image for image in late if image.image_id not in stored]
        )
        # Counters of the whole database come before generations in the lock order.
        count_up(conn, WHOLE_DATABASE, {"deleted": len(known_late)})
        taken = _take_away(conn, stored, after)
    untouched = tuple(
        {request.image_id: None for request in requests if request.image_id not in taken}
    )
    return Deletion(deleted=tuple(taken), untouched=untouched)


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


def next_version(stored: StoredImage | None, checksum: str | None, deleted: int = 0) -> int:
    """The version under which bytes are published, so that they become what is stored.

    Versions up to `deleted` are gone. What is stored keeps its version when it has this SHA-256;
    None stands for bytes that cannot be read.
    """
    if stored is None:
        return deleted + 1
    if stored.state == "deleted":
        return max(stored.version, deleted) + 1
    is_same = checksum is None or stored.checksum in ("", checksum)
    return stored.version if is_same else stored.version + 1


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


def accepted_images(conn: Connection) -> int:
    """How many images are accepted and in no generation: they wait for the first one."""
    row = fetch_row(conn, "accepted_images")
    return int(row[0]) if row else 0


def freshness(conn: Connection) -> Freshness:
    """Return the freshness of the newest 1,000 images of the last hour."""
    row = fetch_row(conn, "freshness")
    return Freshness(None, None) if row is None else Freshness(*row)


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
    conn: Connection, newest: Mapping[str, ImageAccepted], stored: Mapping[str, _LockedImage]
) -> dict[str, DeletedVersions]:
    """What is deleted of the images, now that these arrived; takes away what they show as gone."""
    before = deleted_versions(conn, newest)
    after = {}
    for image_id, deleted in before.items():
        image = newest[image_id]
        after[image_id] = deleted.seen(image.version, _published(image))
    store_deletions(conn, before, after)
    _take_away(conn, stored, after)
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


def _take_away(
    conn: Connection,
    stored: Mapping[str, _LockedImage],
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


def _current(
    conn: Connection,
    newest: Mapping[str, ImageAccepted],
    stored: Mapping[str, _LockedImage],
    gone: Mapping[str, DeletedVersions],
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
    late_keys = _insert_deleted(conn, late)
    _require_all([image.image_id for image in late], late_keys)
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
    keys = _upsert(conn, accepted, set(stored))
    _delete_rejections(conn, accepted)
    current = {
        image_id: _CurrentImage(
            image.image_key, image.version, _bytes_of(image, gone.get(image_id))
        )
        for image_id, image in stored.items()
    }
    for image_id, key in late_keys.items():
        current[image_id] = _CurrentImage(key, newest[image_id].version, "")
    for image in accepted:
        current[image.image_id] = _CurrentImage(
            keys[image.image_id], image.version, image.checksum, is_new=True
        )
    return current


def _note_unused(
    conn: Connection,
    images: Sequence[ImageAccepted],
    stored: Mapping[str, _LockedImage],
    current: Mapping[str, _CurrentImage],
) -> None:
    """Note the pictures of images that are not kept: deleted, replaced or in conflict."""
    for image in images:
        kept = current[image.image_id]
        is_current = image.version == kept.version
        # A replay has the picture of the row.
        if not is_current or kept.checksum != image.checksum:
            note_unused_image(conn, image, is_gone=not is_current or not kept.checksum)


def _bytes_of(image: _LockedImage, deleted: DeletedVersions | None) -> str:
    """The checksum that a replay is compared with; empty when the image is deleted."""
    is_gone = deleted is not None and image.version <= deleted.version
    return "" if is_gone or image.state == "deleted" else image.checksum


def _stored_key(image: ImageAccepted, current: _CurrentImage) -> StoredKey:
    is_same_version = image.version == current.version
    if is_same_version and current.checksum not in ("", image.checksum):
        return StoredKey(current.image_key, is_new=False, conflict=current.checksum)
    return StoredKey(current.image_key, is_new=current.is_new and is_same_version)


def _requests(
    conn: Connection, deletions: Sequence[DeletionRequest | ImageDeleted | str]
) -> list[DeletionRequest]:
    """The deletions as requests; one without a time of its own is published now."""
    ((moment,),) = fetch_rows(conn, "clock")
    requests = []
    for deletion in deletions:
        if isinstance(deletion, DeletionRequest):
            requests.append(deletion)
        elif isinstance(deletion, ImageDeleted):
            requests.append(DeletionRequest(deletion.image_id, deletion.version, moment))
        else:
            requests.append(DeletionRequest(deletion, None, moment))
    return requests


def _of_known_versions(
    deletions: Sequence[DeletionRequest | ImageDeleted | str],
    stored: Mapping[str, _LockedImage],
) -> list[DeletionRequest]:
    """Requests for the stored versions of the images that were given by their id alone.

    The clock of the log, by which images are published, may be ahead of the database's.
    """
    requests = []
    for deletion in deletions:
        if isinstance(deletion, str) and deletion in stored:
            image = stored[deletion]
            requests.append(DeletionRequest(deletion, image.version, image.published_at))
    return requests


def _insert_deleted(conn: Connection, late: Sequence[LateArrival]) -> dict[str, int]:
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


def _lock_images(conn: Connection, image_ids: Iterable[str]) -> dict[str, _LockedImage]:
    rows = fetch_rows(conn, "lock_images_by_id", image_ids=sorted(image_ids))
    return {row[1]: _LockedImage(row[0], *row[2:]) for row in rows}


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
    # Another worker inserted it after our lock, which cannot lock a row that does not exist.
    # The postings of its version were not removed, so our write must be undone.
    _require_all([image.image_id for image in images], keys)
    return keys


def _require_all(image_ids: Sequence[str], written: Mapping[str, int]) -> None:
    missed = ", ".join(image_id for image_id in image_ids if image_id not in written)
    if missed:
        raise RetryLaterError(
            f"image {missed} was accepted by another worker at the same moment; try again"
        )


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
