"""What pretraining brings: exact search with the encoder of `tiny` adapted to the same captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model.network.base import SHIPPED, Base
from model.network.resize import resize
from model.progress import Progress
from model.retrieval.recall import recall_at
from model.training.adapt import AdaptConfig, adapt_towers
from model.training.contrastive import CaptionedImages
from ops.bench.corpus_manifests import Entries
from ops.evaluation_queries import EvaluationQueries, GalleryImage
from ops.jobs.known_items import Rank
from schemas.records import ByteArray, FloatArray, IntArray
from stream.images.store import ImageStore
from workers.runtime.pictures import StoredPictures

# Pictures embedded together.
_BATCH = 256


@dataclass(frozen=True, slots=True)
class AdaptedGallery:
    """The adapted encoder with its vectors of the N images of a gallery."""

    base: Base
    image_keys: IntArray
    """(N,) ascending."""
    vectors: FloatArray
    """(N, D)"""

    def recall(self, queries: EvaluationQueries) -> Mapping[str, float]:
        """R@1, R@5, R@10 and R@20 of exact search."""
        ranks: list[Rank] = []
        for batch in queries.batches():
            scores = self.base.encoder.embed_texts(list(batch.texts)) @ self.vectors.T
            rows = np.searchsorted(self.image_keys, batch.image_keys)
            for own, row in zip(scores, rows.tolist(), strict=True):
                ranks.append(1 + int((own > own[row]).sum()))
        return recall_at(ranks)


def adapt_tiny(
    store: ImageStore,
    images: Sequence[GalleryImage],
    train: Entries,
    config: AdaptConfig,
    progress: Progress,
) -> AdaptedGallery:
    """Adapt the shipped encoder to the training images as `sigma train` does, and embed them all.

    `images` in ascending key, as a gallery is read.
    """
    base = Base.load(SHIPPED)
    side = base.size.image_px

    def shrink(picture: ByteArray) -> ByteArray:
        return resize(picture, side)

    pictures = StoredPictures(store, [image.uri for image in images], shrink)
    captions = {entry.image_id: entry.captions for entry in train}
    rows = [row for row, image in enumerate(images) if image.image_id in captions]
    data = CaptionedImages(
        np.stack([pictures[row] for row in rows]),
        [captions[images[row].image_id] for row in rows],
    )
    adapt_towers(base, data, config, progress)
    parts: list[FloatArray] = []
    for start in range(0, len(pictures), _BATCH):
        parts.append(base.encoder.embed_images(pictures[start : start + _BATCH]))
    keys = np.array([image.image_key for image in images], np.int64)
    return AdaptedGallery(base, keys, np.concatenate(parts))
