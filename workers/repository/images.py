"""Images: accepting, rejecting and deleting them, and what an answer shows of them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from schemas.errors import RetryLaterError
from schemas.events import ImageAccepted, ImageDeleted, ImageRejected, now
from workers.repository.connection import Connection, joining, row, rows, run, transaction
from workers.repository.counters import WHOLE_DATABASE, count_up
from workers.repository.generations import share_set
from workers.repository.removal import remove

VISIBILITY_KEPT = 10_000
"""Rows of freshness measurements; status looks at the newest 1,000."""


_COLUMNS = (
    "image_id",
    "version",
    "uri",
    "normalized_uri",
    "checksum",
    "width",
    "height",
    "split",
    "arrived_at",
    "published_at",
)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as the database knows it. `image_key` changes with the version; keys ascend but are not dense."""

    image_key: int
    image_id: str
    version: int
    state: str
    uri: str
    normalized_uri: str
    captions: tuple[str, ...]
    test_captions: tuple[str, ...]
    split: str | None
    arrived_at: datetime
    indexed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion did: ids now gone, and ids that were unknown, gone before, or newer than the deletion."""

    deleted: tuple[str, ...]
    untouched: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an image was refused."""

    image_id: str
    version: int
    uri: str
    code: str
    reason: str
    stage: str
    rejected_at: datetime


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The key under which an accepted image is stored, and whether accepting it changed the database."""

    image_key: int
    is_new: bool
    """False for a replay, or for a version older than the stored one: the key is then that one's."""


def accept_image(conn: Connection, image: ImageAccepted) -> StoredKey:
    """`accept_images` for one."""
    return accept_images(conn, [image])[0]


def accept_images(conn: Connection, images: Sequence[ImageAccepted]) -> list[StoredKey]:
    """Stores images and returns (image_key, fresh) of each, in the order given.

    A replayed or older version is harmless: not fresh, and the key is that of the stored version. A higher version gets a
    new key; the old version's postings go in the same transaction, and a deleted image comes back.
    """
    newest: dict[str, ImageAccepted] = {}
    for image in images:
        if image.image_id not in newest or image.version > newest[image.image_id].version:
            newest[image.image_id] = image
    with joining(conn):
        share_set(conn)
        stored = {
            i: (key, version, state)
            for key, i, version, state in rows(conn, "lock_images_by_id", image_ids=sorted(newest))
        }
        fresh = [
            newest[i] for i in sorted(newest) if i not in stored or newest[i].version > stored[i][1]
        ]
        remove(
            conn,
            [
                stored[image.image_id][0]
                for image in fresh
                if image.image_id in stored and stored[image.image_id][2] == "indexed"
            ],
        )
        keys = {image_id: key for image_id, (key, _, _) in stored.items()}
        keys |= _upsert(conn, fresh, set(stored))
        _forget_rejections(conn, fresh)
    versions = {image.image_id: image.version for image in fresh}
    return [
        StoredKey(keys[image.image_id], versions.get(image.image_id) == image.version)
        for image in images
    ]


def reject_image(conn: Connection, rejected: ImageRejected) -> bool:
    """Remembers a refusal and counts it once, however often it is replayed. Returns whether it is new."""
    with joining(conn):
        found = row(
            conn,
            "insert_rejection",
            image_id=rejected.image_id,
            version=rejected.version,
            uri=rejected.uri,
            code=rejected.code,
            reason=rejected.reason,
            stage=rejected.stage,
        )
        fresh = bool(found and found[0])
        count_up(conn, WHOLE_DATABASE, {"rejected": int(fresh)})
    return fresh


def rejections(
    conn: Connection, image_ids: Sequence[str] | None = None, *, limit: int = 1000
) -> list[Rejection]:
    """Refused images, newest first; of these ids, or of all."""
    found = rows(
        conn, "rejections", image_ids=None if image_ids is None else list(image_ids), amount=limit
    )
    return [Rejection(*one) for one in found]


def delete_images(conn: Connection, deletions: Iterable[ImageDeleted | str]) -> Deletion:
    """Deletes images: marks them, removes their postings from every generation and writes tombstones, in one transaction.

    A deletion that names a version leaves newer versions alone, so that a replayed deletion is harmless.
    """
    wanted = {
        d if isinstance(d, str) else d.image_id: None if isinstance(d, str) else d.version
        for d in deletions
    }
    with transaction(conn):
        doomed: dict[str, int] = {}
        for key, image_id, version, state in rows(
            conn, "lock_images_by_id", image_ids=sorted(wanted)
        ):
            bound = wanted[image_id]
            if state != "deleted" and (bound is None or version <= bound):
                doomed[image_id] = key
        count_up(conn, WHOLE_DATABASE, {"deleted": len(doomed)})
        remove(conn, list(doomed.values()))
        run(conn, "mark_deleted", image_keys=list(doomed.values()))
    return Deletion(deleted=tuple(doomed), untouched=tuple(i for i in wanted if i not in doomed))


def images_by_key(conn: Connection, image_keys: Sequence[int]) -> dict[int, StoredImage]:
    """Images by key; keys of deleted images are there too, with their state."""
    return {
        found[0]: _stored(found)
        for found in rows(conn, "images_by_key", image_keys=[int(key) for key in image_keys])
    }


def images_by_id(conn: Connection, image_ids: Sequence[str]) -> dict[str, StoredImage]:
    """Images by id, whatever their state."""
    return {
        found[1]: _stored(found) for found in rows(conn, "images_by_id", image_ids=list(image_ids))
    }


def missing_images(
    conn: Connection, generation: int, *, after: int = 0, limit: int = 1000
) -> list[StoredImage]:
    """Images that a generation does not hold yet, keys above `after` ascending: what it must catch up."""
    return [
        _stored(found)
        for found in rows(conn, "missing_images", generation=generation, after=after, amount=limit)
    ]


def newest_image(conn: Connection) -> int:
    """The highest image key. Under `lock_set`, every image with a key up to it is there for all to see."""
    found = row(conn, "newest_image")
    return int(found[0]) if found else 0


def record_visibility(
    conn: Connection, worker: str, image_keys: Sequence[int], searchable_at: datetime | None = None
) -> list[float]:
    """Notes when a query worker began to return these images; keeps the newest rows only. Returns seconds since they were appended."""
    with transaction(conn):
        keys = [int(key) for key in image_keys]
        found = rows(
            conn,
            "record_visibility",
            worker=worker,
            image_keys=keys,
            searchable_at=searchable_at or now(),
        )
        run(conn, "prune_visibility", keep=VISIBILITY_KEPT)
    return [float(seconds) for (seconds,) in found]


@dataclass(frozen=True, slots=True)
class Freshness:
    """Seconds from publishing to searchable; None where nothing was measured."""

    p50_s: float | None
    p95_s: float | None


def freshness(conn: Connection) -> Freshness:
    """p50 and p95 of seconds from publishing to searchable, over the newest 1,000 images of the last hour; None if there was none."""
    found = row(conn, "freshness")
    return Freshness(None, None) if found is None else Freshness(*found)


def _upsert(conn: Connection, images: Sequence[ImageAccepted], known: set[str]) -> dict[str, int]:
    """Keys of images that are new or newer, by their ids; `known` are those that our lock found."""
    columns: dict[str, list[Any]] = {
        name: [getattr(image, name) for image in images] for name in _COLUMNS
    }
    columns |= {
        name: [json.dumps(getattr(image, name), ensure_ascii=False) for image in images]
        for name in ("captions", "test_captions")
    }
    written = rows(conn, "upsert_images", **columns) if images else []
    keys = {
        image_id: int(key)
        for image_id, key, inserted in written
        if inserted is not (image_id in known)
    }
    if len(keys) < len(images):
        # Somebody inserted it between our lock, which found nothing, and our write: its postings were not removed.
        missed = ", ".join(image.image_id for image in images if image.image_id not in keys)
        raise RetryLaterError(
            f"image {missed} was accepted by another worker at the same moment; try again"
        )
    return keys


def _forget_rejections(conn: Connection, images: Sequence[ImageAccepted]) -> None:
    forgotten = run(
        conn,
        "delete_rejections",
        image_ids=[i.image_id for i in images],
        versions=[i.version for i in images],
    )
    count_up(conn, WHOLE_DATABASE, {"rejected": -forgotten})


def _stored(found: tuple[Any, ...]) -> StoredImage:
    (
        key,
        image_id,
        version,
        state,
        uri,
        normalized_uri,
        captions,
        test_captions,
        split,
        arrived_at,
        indexed_at,
    ) = found
    return StoredImage(
        image_key=key,
        image_id=image_id,
        version=version,
        state=state,
        uri=uri,
        normalized_uri=normalized_uri,
        captions=tuple(captions),
        test_captions=tuple(test_captions),
        split=split,
        arrived_at=arrived_at,
        indexed_at=indexed_at,
    )
