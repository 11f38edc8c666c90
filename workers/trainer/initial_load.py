"""The initial load: the postings that a new generation begins with, made part by part, so that memory and transactions stay small."""

from collections.abc import Iterator

import numpy as np

from model.decoding.assign import BeamSearchAssigner, postings_with_primary
from model.decoding.decoder import Decoder
from model.network.sigma import SigmaModel
from model.progress import Progress
from schemas.records import BoolArray, FloatArray, HalfArray, Posting
from workers.repository.bulk_load import InitialLoad, bulk_append
from workers.repository.connection import Connection
from workers.repository.images import images_by_key
from workers.repository.postings import postings_of, present_images
from workers.repository.training_data import embeddings_of
from workers.runtime.pictures import StoredPictures
from workers.runtime.services import Services
from workers.trainer.plan import Plan

_BATCH, _PART = 64, 2048

Row = tuple[int, int, float, int]
"""leaf, image key, weight, suffix (-1 for an alternate)"""


class InitialLoader:
    """Loads the plan of one generation. Embeddings are given, or copied from the `parent` generation, whose encoder is the same."""

    def __init__(
        self, services: Services, conn: Connection, generation: int, sigma: SigmaModel
    ) -> None:
        self._services, self._conn, self._generation = services, conn, generation
        self._shape = sigma.profile.shape
        self._assigner = BeamSearchAssigner(Decoder(sigma), services.settings.retrieval.postings)

    def load(self, plan: Plan, embeddings: HalfArray, progress: Progress) -> None:
        """Postings of images with (M, D) embeddings in the plan's order."""
        with progress("post images", len(plan.image_keys)) as bar:
            for part in self._parts(plan):
                rows, confidences = self._generated(plan.rows(part))
                self._append(plan.rows(part), rows, embeddings[part], confidences)
                bar.update(int(part.sum()))

    def load_after(self, plan: Plan, parent: int, *, same_model: bool, progress: Progress) -> None:
        """The same after a parent. With the same model, an image that did not move has the postings that it had."""
        with progress("post images", len(plan.image_keys)) as bar:
            for mask in self._parts(plan):
                part = plan.rows(mask)
                stored = embeddings_of(self._conn, parent, part.image_keys)
                part = part.rows(stored.present)
                embeddings = stored.embeddings[stored.present]
                confidences = stored.confidences[stored.present]
                kept = ~part.moved if same_model else np.zeros(len(part.image_keys), np.bool_)
                rows, anew = self._generated(part.rows(~kept))
                confidences[~kept] = anew
                self._append(
                    part, rows + self._copied(part.rows(kept), parent), embeddings, confidences
                )
                bar.update(int(mask.sum()))

    def _parts(self, plan: Plan) -> Iterator[BoolArray]:
        """Masks of the images of each part that are not loaded yet."""
        for start in range(0, len(plan.image_keys), _PART):
            keys = plan.image_keys[start : start + _PART]
            present = present_images(self._conn, self._generation, keys.tolist())
            mask = np.zeros(len(plan.image_keys), np.bool_)
            mask[start : start + _PART] = [key not in present for key in keys.tolist()]
            if mask.any():
                yield mask

    def _generated(self, part: Plan) -> tuple[list[Row], FloatArray]:
        """Each identifier of a part with the model's best other leaves as alternates, and the model's confidences."""
        rows: list[Row] = []
        confidences = np.zeros(len(part.image_keys), dtype=np.float32)
        for start in range(0, len(part.image_keys), _BATCH):
            keys = part.image_keys[start : start + _BATCH].tolist()
            stored = images_by_key(self._conn, keys)
            there = [
                at
                for at, key in enumerate(keys, start)
                if key in stored and stored[key].state != "deleted"
            ]
            pictures = StoredPictures(
                self._services.store,
                [stored[int(part.image_keys[at])].normalized_uri for at in there],
            )[:]
            if not pictures:
                continue
            found, scores = self._assigner.search(pictures)
            for row, at in enumerate(there):
                confidences[at] = scores[row, 0]
                own = postings_with_primary(
                    int(part.leaves[at]), found[row], scores[row], self._assigner.postings
                )
                rows += _rows(own, int(part.image_keys[at]), int(part.suffixes[at]))
        return rows, confidences

    def _copied(self, part: Plan, parent: int) -> list[Row]:
        held = postings_of(self._conn, parent, part.image_keys.tolist())
        return [
            (
                posting.leaf,
                key,
                posting.weight,
                -1 if posting.suffix is None else posting.suffix,
            )
            for key in part.image_keys.tolist()
            for posting in held.get(key, ())
        ]

    def _append(
        self, part: Plan, rows: list[Row], embeddings: HalfArray, confidences: FloatArray
    ) -> None:
        if not rows:
            return
        leaves, keys, weights, suffixes = (np.array([row[at] for row in rows]) for at in range(4))
        # An image that was deleted this very moment has no postings any more, and must not get an embedding.
        posted = np.isin(part.image_keys, keys)
        load = InitialLoad(
            leaves=leaves.astype(np.int64),
            posted_keys=keys.astype(np.int64),
            weights=weights.astype(np.float32),
            suffixes=suffixes.astype(np.int64),
            image_keys=part.image_keys[posted],
            embeddings=embeddings[posted],
            confidences=confidences[posted],
            trained=part.trained[posted],
        )
        bulk_append(self._conn, self._generation, load, more=True)


def _rows(postings: tuple[Posting, ...], key: int, suffix: int) -> list[Row]:
    return [
        (posting.leaf, key, posting.weight, -1 if rank else suffix)
        for rank, posting in enumerate(postings)
    ]
