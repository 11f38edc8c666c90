"""The pool of the drift benchmark: scenes as the monitors see them.

They are embedded, assigned and queried by a model that was trained on other scenes.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from model.drift.monitors import NOVEL_SHARE, ArrivalWindow, DriftReference, RecallCount
from model.network.base import SHIPPED, Base
from model.network.parts import ModelParts, parts_from_base
from model.network.profiles import Profile, profile
from ops.bench.drift_scenes import TOPICS, DrawRequest, draw_images
from ops.study.learning import StudyGeneration, train_fully
from ops.study.streams import Stream
from ops.study.study_corpus import StudyCorpus
from ops.study.study_index import StudyIndex
from schemas.records import BoolArray, IntArray
from schemas.retrieval_settings import RetrievalSettings

# Ordinary images that the model is trained on; the monitors see others.
_TRAINED = 600

# Images that are posted at a time.
_CHUNK_IMAGES = 1000


@dataclass(frozen=True, slots=True, eq=False)
class PooledImages:
    """Images as the monitors see them, and whether a query finds them."""

    window: ArrivalWindow
    """n images"""
    found: BoolArray
    """(n,) whether each is among the ten best for its held-out caption, in one gallery of all
    images of the pool"""

    def __len__(self) -> int:
        return len(self.found)

    def take(self, rows: IntArray) -> "PooledImages":
        """Some rows, in the order given; they may repeat."""
        window = replace(
            self.window,
            codes=self.window.codes[rows],
            embeddings=self.window.embeddings[rows],
            confidences=self.window.confidences[rows],
            agreement=self.window.agreement[rows],
            leaf_loads=self.window.leaf_loads[rows],
        )
        return PooledImages(window, self.found[rows])

    def join(self, other: "PooledImages") -> "PooledImages":
        """The rows of both."""
        first = self.window
        second = other.window
        window = ArrivalWindow(
            codes=np.concatenate([first.codes, second.codes]),
            embeddings=np.concatenate([first.embeddings, second.embeddings]),
            confidences=np.concatenate([first.confidences, second.confidences]),
            agreement=np.concatenate([first.agreement, second.agreement]),
            leaf_loads=np.concatenate([first.leaf_loads, second.leaf_loads]),
            query_scores=first.query_scores,
        )
        return PooledImages(window, np.concatenate([self.found, other.found]))

    def recall(self, reference: DriftReference) -> RecallCount:
        """What the hourly job would learn by querying the most novel images."""
        queries = round(NOVEL_SHARE * len(self))
        most_novel = reference.by_novelty(self.window.embeddings)[:queries]
        found = self.found[most_novel]
        return RecallCount(hits=int(found.sum()), queries=len(found))


@dataclass(frozen=True, slots=True)
class DriftPool:
    """All images that windows are drawn from."""

    ordinary: PooledImages
    topics: dict[str, PooledImages]
    """Those of each new topic."""


def make_pool(seed: int, ordinary: int, topical: int) -> DriftPool:
    """Make a pool of `ordinary` images and `topical` ones of each topic.

    Trains the model first, on ordinary images that are not in the pool.
    """
    # Drawn together, in this order: trained, ordinary, then topic by topic.
    requests = [DrawRequest((), seed, _TRAINED + ordinary)]
    for new in TOPICS.values():
        requests.append(DrawRequest(new, seed, topical))
    stream = draw_images(requests, seed)
    pooled = _pool(stream, seed)
    topics = {}
    first = ordinary
    for name in TOPICS:
        topics[name] = pooled.take(np.arange(first, first + topical))
        first += topical
    return DriftPool(pooled.take(np.arange(ordinary)), topics)


def _pool(stream: Stream, seed: int) -> PooledImages:
    """Train on the first images of a stream, then assign and query the others."""
    tiny = profile("tiny")
    parts = parts_from_base(Base.load(SHIPPED), tiny)
    training_numbers = np.arange(_TRAINED, dtype=np.int64)
    trained = _train(tiny, parts, _part(stream, training_numbers), seed)
    # Only training needs captions' embeddings, the teacher's scores and visual tokens.
    corpus = StudyCorpus(
        stream,
        encoder=parts.encoder,
        embeddings=parts.encoder.embed_images(list(stream.pixels)),
        query_embeddings=np.empty((0, 0), np.float32),
        visual=torch.empty(0),
        soft_labels=[],
    )
    arrivals = np.arange(_TRAINED, len(stream.pixels), dtype=np.int64)
    with tempfile.TemporaryDirectory() as folder:
        index = StudyIndex.open(trained.checkpoint, corpus, Path(folder), RetrievalSettings())
        index.load(training_numbers, trained.codes)
        for start in range(0, len(arrivals), _CHUNK_IMAGES):
            index.append(arrivals[start : start + _CHUNK_IMAGES])
        # In the full gallery: an image that arrives has all others as rivals.
        found = np.array([rank is not None for rank in index.ranks(arrivals)])
        pooled = PooledImages(_arrival_window(index, arrivals), found)
        index.close()
    return pooled


def _train(tiny: Profile, parts: ModelParts, stream: Stream, seed: int) -> StudyGeneration:
    """A model trained on all images of a stream."""
    corpus = StudyCorpus.prepare(stream, parts, seed)
    numbers = np.arange(len(stream.pixels), dtype=np.int64)
    return train_fully(SHIPPED, tiny, corpus, numbers, seed)


def _part(stream: Stream, numbers: IntArray) -> Stream:
    """The stream of these images alone."""
    chosen = numbers.tolist()
    return replace(
        stream,
        pixels=stream.pixels[numbers],
        captions=[stream.captions[number] for number in chosen],
        queries=[stream.queries[number] for number in chosen],
        later=stream.later[numbers],
    )


def _arrival_window(index: StudyIndex, numbers: IntArray) -> ArrivalWindow:
    """What the index worker would have stored of (n,) images.

    No leaf is near full, and no query is looked at.
    """
    codes = index.codes[numbers]
    # As the database stores them.
    embeddings = index.corpus.embeddings[numbers].astype(np.float16).astype(np.float32)
    codebook_codes = index.checkpoint.codebook.encode(embeddings)
    return ArrivalWindow(
        codes=codes,
        embeddings=embeddings,
        confidences=index.confidences[numbers],
        agreement=np.asarray(codebook_codes[:, 0] == codes[:, 0]),
        leaf_loads=np.zeros(len(numbers), np.int64),
        query_scores=np.zeros(0, np.float32),
    )
