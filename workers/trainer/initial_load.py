"""The initial load: the postings that a new generation begins with, in many small transactions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from model.decoding.assign import BeamSearchAssigner, postings_with_primary
from model.decoding.decoder import Decoder
from model.network.sigma import SigmaModel
from model.progress import Progress
from schemas.records import BoolArray, ByteArray, FloatArray, HalfArray, Posting
from stream.images.store import ImageStore
from workers.repository.bulk_load import InitialLoad, bulk_append
from workers.repository.connection import Connection
from workers.repository.postings import postings_of, present_images
from workers.repository.stored_images import images_by_key
from workers.repository.training_data import embeddings_of
from workers.runtime.pictures import StoredPictures
from workers.trainer.identifier_plan import IdentifierPlan

# Pictures that the model sees at a time.
_BATCH = 64

# Images loaded in one transaction.
_PART = 2048

# Stands for the suffix of an alternate posting.
_NO_SUFFIX = -1


class PostingRow(NamedTuple):
    """One posting of an image; an alternate has the suffix `_NO_SUFFIX`."""

    leaf: int
    image_key: int
    weight: float
    suffix: int


class InitialLoader:
    """Loads one generation. What a killed loader left is found and kept."""

    def __init__(
        self,
        conn: Connection,
        generation: int,
        sigma: SigmaModel,
        store: ImageStore,
        postings: int,
    ) -> None:
        self._conn = conn
        self._generation = generation
        self._store = store
        self._assigner = BeamSearchAssigner(Decoder(sigma), postings)

    def load(self, plan: IdentifierPlan, embeddings: HalfArray, progress: Progress) -> None:
        """Load planned images with their (M, D) embeddings, in the plan's order."""
        with progress("post images", len(plan)) as bar:
            for mask in self._parts_to_load(plan):
                part = plan.select(mask)
                rows, confidences = self._generated(part, embeddings[mask])
                self._append(part, rows, embeddings[mask], confidences)
                bar.update(int(mask.sum()))

    def load_from_parent(
        self, plan: IdentifierPlan, parent: int, *, same_model: bool, progress: Progress
    ) -> None:
        """Load planned images with the parent's embeddings of them: the encoder is the same.

        With the same model, an image that did not move keeps its postings.
        """
        with progress("post images", len(plan)) as bar:
            for mask in self._parts_to_load(plan):
                part = plan.select(mask)
                stored = embeddings_of(self._conn, parent, part.image_keys)
                part = part.select(stored.present)
                confidences = stored.confidences[stored.present]
                unchanged = ~part.moved if same_model else np.zeros(len(part), np.bool_)
                vectors = stored.embeddings[stored.present]
                rows, generated_confidences = self._generated(
                    part.select(~unchanged), vectors[~unchanged]
                )
                # Unchanged images keep the confidence that the same model had before.
                confidences[~unchanged] = generated_confidences
                rows += self._copied(part.select(unchanged), parent)
                self._append(part, rows, vectors, confidences)
                bar.update(int(mask.sum()))

    def _parts_to_load(self, plan: IdentifierPlan) -> Iterator[BoolArray]:
        """(M,) masks of the images of each part that are not loaded yet."""
        for start in range(0, len(plan), _PART):
            keys = plan.image_keys[start : start + _PART]
            # A killed loader left whole parts: each part is one transaction.
            present = present_images(self._conn, self._generation, keys.tolist())
            mask = np.zeros(len(plan), np.bool_)
            mask[start : start + _PART] = [key not in present for key in keys.tolist()]
            if mask.any():
                yield mask

    def _generated(
        self, part: IdentifierPlan, embeddings: HalfArray
    ) -> tuple[list[PostingRow], FloatArray]:
        """Postings of N images: the planned leaf, and the model's best other leaves as alternates.

        Also the (N,) confidences of the model. Images deleted meanwhile have no postings.
        `embeddings` (N, D) are read where the model reads vectors, and else the pictures.
        """
        rows: list[PostingRow] = []
        confidences = np.zeros(len(part), dtype=np.float32)
        for start in range(0, len(part), _BATCH):
            positions, uris = self._stored(part, start)
            if not positions:
                continue
            pictures: list[ByteArray] = []
            if not self._assigner.reads_vectors:
                pictures = StoredPictures(self._store, uris)[:]
            # (B, W) leaves and log-probabilities, the best beam first.
            vectors = embeddings[positions].astype(np.float32)
            leaves, scores = self._assigner.search(pictures, vectors)
            for row, position in enumerate(positions):
                # The best beam may be another leaf than the planned one; the confidence is the
                # model's own all the same, as for arrivals.
                confidences[position] = scores[row, 0]
                postings = postings_with_primary(
                    int(part.leaves[position]), leaves[row], scores[row], self._assigner.postings
                )
                key = int(part.image_keys[position])
                rows += posting_rows(postings, key, int(part.suffixes[position]))
        return rows, confidences

    def _stored(self, part: IdentifierPlan, start: int) -> tuple[list[int], list[str]]:
        """Positions of a batch's images that are stored still, and addresses of their pictures."""
        keys = part.image_keys[start : start + _BATCH].tolist()
        stored = images_by_key(self._conn, keys)
        positions = []
        uris = []
        for position, key in enumerate(keys, start):
            if key in stored and stored[key].state != "deleted":
                positions.append(position)
                uris.append(stored[key].normalized_uri)
        return positions, uris

    def _copied(self, part: IdentifierPlan, parent: int) -> list[PostingRow]:
        """The postings that the parent has of these images."""
        stored = postings_of(self._conn, parent, part.image_keys.tolist())
        rows = []
        for key in part.image_keys.tolist():
            for posting in stored.get(key, ()):
                suffix = _NO_SUFFIX if posting.suffix is None else posting.suffix
                rows.append(PostingRow(posting.leaf, key, posting.weight, suffix))
        return rows

    def _append(
        self,
        part: IdentifierPlan,
        rows: Sequence[PostingRow],
        embeddings: HalfArray,
        confidences: FloatArray,
    ) -> None:
        if not rows:
            return
        posted_keys = np.array([row.image_key for row in rows], np.int64)
        # An image deleted just now has no postings any more, and must not get an embedding.
        posted = np.isin(part.image_keys, posted_keys)
        load = InitialLoad(
            leaves=np.array([row.leaf for row in rows], np.int64),
            posted_keys=posted_keys,
            weights=np.array([row.weight for row in rows], np.float32),
            suffixes=np.array([row.suffix for row in rows], np.int64),
            image_keys=part.image_keys[posted],
            embeddings=embeddings[posted],
            confidences=confidences[posted],
            trained=part.trained[posted],
        )
        bulk_append(self._conn, self._generation, load, more=True)


def posting_rows(postings: Sequence[Posting], image_key: int, suffix: int) -> list[PostingRow]:
    """The rows of an image's postings; the first one is the primary and has the suffix."""
    rows = []
    for rank, posting in enumerate(postings):
        own_suffix = suffix if rank == 0 else _NO_SUFFIX
        rows.append(PostingRow(posting.leaf, image_key, posting.weight, own_suffix))
    return rows
