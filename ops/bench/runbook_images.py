"""What a runbook is run on: rendered scenes in the order of its ids, and queries for all of them.

Letters in shapes: N images, Q queries, D embedding width.
"""

from dataclasses import dataclass, replace

import numpy as np

from model.identifiers.codebook import nearest
from model.identifiers.kmeans import minibatch_centres
from model.network.encoder import Encoder
from model.network.profiles import profile
from model.network.resize import resize
from model.progress import Progress
from ops.scenes.corpus import CorpusConfig, samples
from schemas.records import ByteArray, FloatArray, IntArray

# Keeps the scenes apart from those that the generation is trained on.
_WORLD = "corpus"

# Starts of the k-means that orders the ids.
_STARTS = 3


@dataclass(frozen=True, slots=True, eq=False)
class RunbookImages:
    """N images, row i being that of id i, and the same Q queries for every search."""

    pixels: ByteArray
    """(N, side, side, 3) uint8"""
    vectors: FloatArray
    """(N, D) unit length"""
    queries: tuple[str, ...]
    query_vectors: FloatArray
    """(Q, D) unit length"""
    asked: IntArray
    """(Q,) id of the image that each query is a held-out caption of."""

    def __len__(self) -> int:
        return len(self.vectors)

    def ordered(self, order: IntArray) -> "RunbookImages":
        """The same images under other ids: row i becomes what row order[i] was."""
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return replace(
            self,
            pixels=self.pixels[order],
            vectors=self.vectors[order],
            asked=place[self.asked],
        )


def draw_images(
    count: int, queries: int, seed: int, encoder: Encoder, progress: Progress
) -> RunbookImages:
    """Draw `count` scenes in random order; `queries` of them are asked for, by a caption."""
    size = profile("tiny").tiny
    assert size is not None  # other profiles have none
    corpus = CorpusConfig(count, seed=seed, captions=0, world=_WORLD)
    pixels: list[ByteArray] = []
    captions: list[str] = []
    with progress("draw scenes", count) as bar:
        for sample in samples(corpus):
            pixels.append(resize(sample.pixels(corpus.side_px), size.image_px))
            captions.append(sample.test_captions[0])
            bar.update(1)
    asked = np.random.default_rng((seed, 12)).permutation(count)[:queries].astype(np.int64)
    texts = tuple(captions[row] for row in asked.tolist())
    return RunbookImages(
        np.stack(pixels), encoder.embed_images(pixels), texts, encoder.embed_texts(texts), asked
    )


def clustered(images: RunbookImages, clusters: int, seed: int) -> tuple[RunbookImages, list[int]]:
    """The images cluster by cluster, as the track's clustered data sets are, and cluster sizes."""
    count = min(clusters, len(images))
    centres = minibatch_centres(images.vectors, count, starts=_STARTS, seed=seed)
    labels = nearest(images.vectors, centres)
    sizes = np.bincount(labels, minlength=count).tolist()
    return images.ordered(np.argsort(labels, kind="stable")), sizes
