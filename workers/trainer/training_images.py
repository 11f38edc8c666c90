"""The training images: images of a manifest or of the store, to be learnt, captioned or not."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.network.profiles import Profile
from model.network.resize import resize
from model.progress import Progress
from schemas.errors import UsageError
from schemas.records import BoolArray, ByteArray, IntArray, ManifestEntry
from stream.images.decode_pool import DecodeLimits
from stream.images.decode_protocol import LONGEST_SIDE
from stream.images.store import ImageStore
from workers.repository.connection import Connection
from workers.repository.stored_images import StoredImage, images_by_key
from workers.runtime.pictures import StoredPictures
from workers.trainer.seeding import RejectedEntry, seed_images

# Images read from the database in one query.
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class TrainingImages:
    """N images to train on."""

    image_keys: IntArray
    """(N,)"""
    uris: tuple[str, ...]
    """Addresses of their normalised pictures in the store."""
    captions: tuple[tuple[str, ...], ...]
    queries: tuple[str, ...]
    """One text of each to measure with: a held-out caption where the image has one, empty where it
    has none at all."""
    pictures: StoredPictures
    rejected: tuple[RejectedEntry, ...] = ()
    """Entries of the manifest that were left out."""

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def captioned(self) -> BoolArray:
        """(N,) which have a caption to learn from."""
        return np.array([bool(own) for own in self.captions], np.bool_)

    @property
    def originals(self) -> StoredPictures:
        """The pictures as the store has them, for an encoder with a size of its own."""
        return self.pictures.as_stored()

    def select(self, mask: BoolArray) -> "TrainingImages":
        """Some of the images, (N,) bool; the same object when that is all of them."""
        if mask.all():
            # Pictures of the `tiny` profile are kept in memory: do not lose them.
            return self
        rows = np.flatnonzero(mask).tolist()
        return replace(
            self,
            image_keys=self.image_keys[mask],
            uris=tuple(self.uris[row] for row in rows),
            captions=tuple(self.captions[row] for row in rows),
            queries=tuple(self.queries[row] for row in rows),
            pictures=self.pictures.rows(rows),
        )


def training_pictures(store: ImageStore, uris: Sequence[str], profile: Profile) -> StoredPictures:
    """Pictures to train on; those of the `tiny` profile are shrunk to its square once and kept."""
    if profile.tiny is None:
        return StoredPictures(store, uris)
    side = profile.tiny.image_px

    def shrink(picture: ByteArray) -> ByteArray:
        return resize(picture, side)

    return StoredPictures(store, uris, shrink)


def trainable(entries: Sequence[ManifestEntry]) -> list[ManifestEntry]:
    """The entries to train on: those of split `train`, or all without such a split.

    `UsageError` when there is none.
    """
    split = [entry for entry in entries if entry.split == "train"] or list(entries)
    if not split:
        raise UsageError("the manifest must name at least one image, got none; add some")
    return split


def manifest_fingerprint(entries: Sequence[ManifestEntry]) -> str:
    """16 hexadecimal digits that change with the ids and captions of a manifest."""
    # Stored with the generation: a change of this text would refuse to resume older trainings.
    content = repr([(entry.image_id, entry.captions) for entry in entries])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def from_manifest(
    conn: Connection,
    store: ImageStore,
    limits: DecodeLimits,
    entries: Sequence[ManifestEntry],
    profile: Profile,
    progress: Progress,
    longest_side: int = LONGEST_SIDE,
) -> TrainingImages:
    """Validate and store the trainable entries as arrivals are; in the order of the manifest."""
    seeded = seed_images(conn, store, limits, entries, progress, longest_side)
    captions = []
    queries = []
    for row in seeded.rows:
        entry = entries[row]
        captions.append(without_blank(entry.captions))
        queries.append(query_of(entry.captions, entry.test_captions))
    return TrainingImages(
        image_keys=seeded.image_keys,
        uris=tuple(seeded.uris),
        captions=tuple(captions),
        queries=tuple(queries),
        pictures=training_pictures(store, seeded.uris, profile),
        rejected=seeded.rejected,
    )


def from_store(
    conn: Connection, store: ImageStore, image_keys: IntArray, profile: Profile
) -> TrainingImages:
    """Stored images by key, in the order given.

    Those that were deleted or replaced meanwhile are left out.
    """
    images: list[StoredImage] = []
    for start in range(0, len(image_keys), _PAGE):
        page = image_keys[start : start + _PAGE].tolist()
        stored = images_by_key(conn, page)
        for key in page:
            if key in stored and stored[key].state != "deleted":
                images.append(stored[key])
    uris = [image.normalized_uri for image in images]
    return TrainingImages(
        image_keys=np.array([image.image_key for image in images], np.int64),
        uris=tuple(uris),
        captions=tuple(without_blank(image.captions) for image in images),
        queries=tuple(query_of(image.captions, image.test_captions) for image in images),
        pictures=training_pictures(store, uris, profile),
    )


def without_blank(captions: Sequence[str]) -> tuple[str, ...]:
    """The captions that have any letter."""
    return tuple(caption for caption in captions if caption.strip())


def query_of(captions: Sequence[str], held_out: Sequence[str]) -> str:
    """The text that an image is measured with: the first held-out caption, or the first of all.

    Empty without any.
    """
    texts = (*without_blank(held_out), *without_blank(captions))
    return texts[0] if texts else ""
