"""The material: images with captions that a training learns from, out of a manifest or out of the store."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.network.profiles import Profile
from model.network.resize import resize
from model.progress import Progress
from schemas.errors import UsageError
from schemas.records import BoolArray, IntArray, ManifestEntry
from stream.images.store import ImageStore
from workers.repository.connection import Connection
from workers.repository.images import images_by_key
from workers.runtime.pictures import StoredPictures
from workers.runtime.services import Services
from workers.trainer.seeding import seed_images

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Material:
    """N training images: keys (N,), addresses of their normalised pictures, their captions, and one query each for measuring,
    which is a caption that is held out where the image has one. `rejected` were left out, with reasons."""

    image_keys: IntArray
    uris: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    queries: tuple[str, ...]
    pictures: StoredPictures
    rejected: tuple[dict[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.uris)

    def rows(self, kept: BoolArray) -> "Material":
        """The material of some of its images, (N,) bool; itself when that is all of them."""
        if kept.all():
            return self
        at = np.flatnonzero(kept).tolist()
        return replace(
            self,
            image_keys=self.image_keys[kept],
            uris=tuple(self.uris[row] for row in at),
            captions=tuple(self.captions[row] for row in at),
            queries=tuple(self.queries[row] for row in at),
            pictures=self.pictures.rows(at),
        )


def pictures_of(store: ImageStore, uris: Sequence[str], profile: Profile) -> StoredPictures:
    """Training pictures; those of the `tiny` profile are shrunk to its square once and kept."""
    side = profile.tiny.image_px if profile.tiny else 0
    return StoredPictures(store, uris, (lambda image: resize(image, side)) if side else None)


def trainable(entries: Sequence[ManifestEntry]) -> list[ManifestEntry]:
    """Entries to train on: those of split `train` if the manifest has any, else all; each with a caption."""
    split = [entry for entry in entries if entry.split == "train"] or list(entries)
    captioned = [entry for entry in split if any(caption.strip() for caption in entry.captions)]
    if not captioned:
        raise UsageError(
            f"none of the {len(split)} training images has a caption, and the model learns from captions; add `captions`"
        )
    return captioned


def digest(entries: Sequence[ManifestEntry]) -> str:
    """A fingerprint of the ids and captions of a manifest."""
    return hashlib.sha256(
        repr([(entry.image_id, entry.captions) for entry in entries]).encode()
    ).hexdigest()[:16]


def from_manifest(
    services: Services,
    conn: Connection,
    entries: Sequence[ManifestEntry],
    profile: Profile,
    progress: Progress,
) -> Material:
    """The trainable entries, validated and stored as arrivals are, in manifest order."""
    seeded = seed_images(services, conn, entries, progress)
    kept = [entries[row] for row in seeded.rows]
    captions = tuple(_spoken(entry.captions) for entry in kept)
    queries = tuple(
        _query(entry.test_captions, own) for entry, own in zip(kept, captions, strict=True)
    )
    pictures = pictures_of(services.store, seeded.uris, profile)
    return Material(
        seeded.image_keys, tuple(seeded.uris), captions, queries, pictures, seeded.rejected
    )


def from_store(
    services: Services, conn: Connection, image_keys: IntArray, profile: Profile
) -> Material:
    """Stored images by key, in the order given. Those that were deleted or replaced meanwhile, or have no caption, are left out."""
    keys: list[int] = []
    uris: list[str] = []
    captions: list[tuple[str, ...]] = []
    queries: list[str] = []
    for start in range(0, len(image_keys), _PAGE):
        page = image_keys[start : start + _PAGE].tolist()
        found = images_by_key(conn, page)
        for key in page:
            image = found.get(key)
            own = _spoken(image.captions) if image is not None else ()
            if image is not None and image.state != "deleted" and own:
                keys.append(key)
                uris.append(image.normalized_uri)
                captions.append(own)
                queries.append(_query(image.test_captions, own))
    pictures = pictures_of(services.store, uris, profile)
    return Material(
        np.array(keys, np.int64), tuple(uris), tuple(captions), tuple(queries), pictures
    )


def _spoken(captions: Sequence[str]) -> tuple[str, ...]:
    return tuple(caption for caption in captions if caption.strip())


def _query(held_out: Sequence[str], captions: Sequence[str]) -> str:
    return (_spoken(held_out) or tuple(captions))[0]
