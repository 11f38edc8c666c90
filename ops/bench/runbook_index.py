"""Indexes that a runbook is run on: the interface, exact search, and the product's own.

Letters in shapes: N images of the runbook, n of a step, Q queries, D embedding width.
"""

import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from model.decoding.assign import BeamSearchAssigner
from model.decoding.decoder import Decoder
from model.network.checkpoint import Checkpoint
from ops.bench.runbook_images import RunbookImages
from ops.study.study_index import posting_rows
from schemas.records import BoolArray, FloatArray, IntArray, Posting
from schemas.retrieval_settings import RetrievalSettings
from workers.query.model_engine import ModelEngine
from workers.repository.follower import Changes, EmbeddingRows
from workers.repository.posting_rows import PostingRows

# Queries decoded together, as many as the query worker takes at once.
_QUERY_BATCH = 16

# Images that the model assigns together.
_IMAGE_BATCH = 64

# Bytes of an image key.
_KEY_BYTES = 8


class RunbookIndex(Protocol):
    """One index. It knows the images by their ids, and is asked the same queries each time."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    @property
    def setting(self) -> str:
        """Its numbers, in a few words."""
        ...

    @property
    def bytes(self) -> int:
        """Size of the index when it is written, vectors that it needs included."""
        ...

    @property
    def candidates(self) -> float | None:
        """Images whose similarity the last search computed for a query; None where unknown."""
        ...

    def insert(self, ids: IntArray) -> None:
        """Insert (n,) images."""
        ...

    def delete(self, ids: IntArray) -> None:
        """Delete (n,) images."""
        ...

    def search(self, count: int) -> list[IntArray]:
        """For each query the ids of the `count` best images, best first, or of fewer."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@dataclass(slots=True, eq=False)
class ExactIndex:
    """Compares each query with every image that is there: the yardstick."""

    images: RunbookImages
    alive: BoolArray
    """(N,)"""
    name: str = "exact search"
    setting: str = "every image that is there"

    @property
    def bytes(self) -> int:
        """Of the vectors that are there."""
        return int(self.alive.sum()) * self.images.vectors[0].nbytes

    @property
    def candidates(self) -> float:
        """All of them."""
        return float(self.alive.sum())

    def insert(self, ids: IntArray) -> None:
        """Insert (n,) images."""
        self.alive[ids] = True

    def delete(self, ids: IntArray) -> None:
        """Delete (n,) images."""
        self.alive[ids] = False

    def search(self, count: int) -> list[IntArray]:
        """The `count` best of each query; ties go to the lower id."""
        there = np.flatnonzero(self.alive)
        scores = self.images.query_vectors @ self.images.vectors[there].T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return list(there[best])

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True, eq=False)
class Assignments:
    """Where the generation's model posts each of the N images, and what it took."""

    postings: Sequence[tuple[Posting, ...]]
    seconds: float
    """Of all images together."""


def assign_all(
    checkpoint: Checkpoint, images: RunbookImages, settings: RetrievalSettings
) -> Assignments:
    """Assign every image inductively, as index workers do with arrivals."""
    assigner = BeamSearchAssigner(
        Decoder(checkpoint.sigma), settings.postings, checkpoint.codebook, settings.codebook_vote
    )
    began = time.perf_counter()
    postings: list[tuple[Posting, ...]] = []
    for start in range(0, len(images), _IMAGE_BATCH):
        rows = slice(start, start + _IMAGE_BATCH)
        leaves = assigner.assign(list(images.pixels[rows]), images.vectors[rows])
        postings += [each.postings for each in leaves]
    return Assignments(postings, time.perf_counter() - began)


class SigmaIndex:
    """The product's engine on a trained generation: trie, gallery, decoder, ranking."""

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        images: RunbookImages,
        assignments: Assignments,
        settings: RetrievalSettings,
        folder: Path,
    ) -> None:
        """`folder` is for files that may be lost."""
        self.name = name
        self.setting = (
            f"{settings.beams} beams, {settings.postings} postings, fusion weight"
            f" {settings.fusion_weight:g}"
        )
        self.candidates: float | None = None
        self._engine = ModelEngine.open(1, checkpoint, folder)
        self._images = images
        self._assignments = assignments
        self._settings = settings

    @property
    def bytes(self) -> int:
        """Of the trie as it would be written, and the gallery's keys and vectors."""
        gallery = self._engine.gallery
        return (
            len(pickle.dumps(self._engine.trie))
            + gallery.embeddings.nbytes
            + _KEY_BYTES * gallery.size
        )

    def insert(self, ids: IntArray) -> None:
        """Post (n,) images where they were assigned."""
        embeddings = EmbeddingRows(
            image_keys=ids,
            # In half precision, as the database stores them.
            embeddings=self._images.vectors[ids].astype(np.float16),
            confidences=np.zeros(len(ids), np.float32),
            trained=np.zeros(len(ids), np.bool_),
        )
        own = [self._assignments.postings[number] for number in ids.tolist()]
        # No suffix is decoded here, so they may repeat.
        rows = posting_rows(ids, own, [0] * len(ids))
        self._engine.apply(Changes(rows, embeddings, deleted=np.empty(0, np.int64)))

    def delete(self, ids: IntArray) -> None:
        """Delete (n,) images."""
        nothing = EmbeddingRows(
            np.empty(0, np.int64),
            np.empty((0, 0), np.float16),
            np.empty(0, np.float32),
            np.empty(0, np.bool_),
        )
        none = np.empty(0, np.int64)
        postings = PostingRows(none, none, np.empty(0, np.float32), none)
        self._engine.apply(Changes(postings, nothing, deleted=ids))

    def search(self, count: int) -> list[IntArray]:
        """Decode leaves of each query and rank their images; the queries' vectors are given."""
        found: list[IntArray] = []
        scored = 0
        for start in range(0, len(self._images.queries), _QUERY_BATCH):
            rows = slice(start, start + _QUERY_BATCH)
            texts, vectors = self._images.queries[rows], self._images.query_vectors[rows]
            for answer in self._engine.answer_vectors(texts, vectors, count, self._settings):
                found.append(answer.image_keys)
                scored += answer.candidates
        self.candidates = scored / max(1, len(found))
        return found

    def close(self) -> None:
        """Free the gallery's file."""
        self._engine.close()


def vectors_of(images: RunbookImages, ids: IntArray) -> FloatArray:
    """(n, D) float32 contiguous vectors of some images, as the peers want them."""
    return np.ascontiguousarray(images.vectors[ids], dtype=np.float32)
