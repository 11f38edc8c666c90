"""A clustered gallery: a searcher over images that lie in clusters as codes do, on skewed leaves.

The model is the `tiny` one, which does all of its work; its opinions are replaced by those of a
codebook that is exactly right, because what an untrained model says would lead nowhere, and recall
beside exact search would say nothing.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.decoding.beam import DecodingState
from model.decoding.decoder import Decoder, Prompts
from model.network.base import SHIPPED, Base
from model.network.parts import parts_from_base
from model.network.profiles import profile
from model.network.sketch import Sketch
from model.retrieval.guidance import READING_TEXTS
from ops.bench.query_texts import query_texts
from ops.bench.trie import POSTINGS, SHAPE, SkewedPostings
from schemas.generation_config import GenerationConfig
from schemas.identifiers import LEVELS
from schemas.records import ByteArray, FloatArray, IntArray
from schemas.retrieval_settings import RetrievalSettings
from stream.images.store import LocalImageStore, store_uri
from workers.query.descriptions import DescribedImages, Descriptions, ImageMemory
from workers.query.engine import QueryEngine
from workers.query.gallery import Gallery
from workers.query.residents import SLICE_IMAGES
from workers.query.searcher import Searcher
from workers.query.served import ServedGenerations
from workers.query.server import UPDATES_S
from workers.query.shadowing import ShadowQueue
from workers.query.trie_engine import TrieEngine
from workers.query.updates import ChangesApplied, EngineUpdate, GenerationLoaded, GenerationPromoted
from workers.repository.follower import Changes, EmbeddingRows
from workers.repository.generations import Generation
from workers.repository.posting_rows import PostingRows
from workers.repository.stored_images import StoredImage
from workers.runtime.query_metrics import QueryMetrics

# Images of each answer.
RESULTS = 10

# Images that are made at a time, which bounds memory.
_CHUNK_IMAGES = 50_000

# How far the vectors of each level's codes, and what is an image's own, are from those above.
_LEVEL_SPREADS = (1.0, 0.8, 0.6, 0.5)
_OWN_SPREAD = 0.7

# How far a query is from the image that it is made of.
_QUERY_SPREAD = 0.2

# Images whose vectors a sketch is fitted to.
_SKETCHED = 4096

_MS = 1e3

_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)

_PICTURE = store_uri(f"00/{'0' * 62}.png")


class ClusteredImages:
    """Images whose vectors are sums of vectors of their codes and of something of their own."""

    def __init__(self, width: int, seed: int) -> None:
        self.width = width
        self._rng = np.random.default_rng(seed)
        self._skewed = SkewedPostings(seed)
        self.tables: list[FloatArray] = []
        """(prefixes, D) of each of the first three levels; (K, D) of the last, one for all."""
        for level, spread in enumerate(_LEVEL_SPREADS):
            rows = SHAPE.codes[3] if level == LEVELS - 1 else SHAPE.prefixes(level + 1)
            self.tables.append(self._normal(rows) * spread)

    def arrivals(self, first: int, count: int) -> Changes:
        """Images with keys from `first` on: a primary, and alternates beside it."""
        primary = self._skewed.leaves(count)
        leaves = np.stack([primary, self._sibling(primary, 1), self._sibling(primary, 32)], axis=1)
        keys = np.arange(first, first + count)
        ranks = np.tile(np.arange(POSTINGS), count)
        suffixes = np.where(ranks == 0, 0, -1)
        weights = (-0.5 * ranks).astype(np.float32)
        postings = PostingRows(leaves.ravel(), np.repeat(keys, POSTINGS), weights, suffixes)
        vectors = self.of_leaves(primary) + self._normal(count) * _OWN_SPREAD
        embeddings = EmbeddingRows(
            keys,
            unit(vectors).astype(np.float16),
            np.zeros(count, np.float32),
            np.zeros(count, np.bool_),
        )
        return Changes(postings, embeddings, np.empty(0, np.int64))

    def of_leaves(self, leaves: IntArray) -> FloatArray:
        """(N, D) sums of the vectors of codes."""
        total = self.tables[3][leaves % SHAPE.codes[3]]
        for level in range(LEVELS - 1):
            total = (
                total + self.tables[level][leaves // (SHAPE.leaves // SHAPE.prefixes(level + 1))]
            )
        return total

    def sketch(self, seed: int) -> Sketch:
        """The directions in which they differ most, as a training finds them."""
        leaves = np.random.default_rng(seed).integers(0, SHAPE.leaves, _SKETCHED)
        return Sketch.fit(unit(self.of_leaves(leaves)).astype(np.float16), seed)

    def near(self, vectors: FloatArray) -> FloatArray:
        """Unit vectors (N, D) near those of images, as queries are."""
        return unit(vectors + self._normal(len(vectors)) * _QUERY_SPREAD)

    def _sibling(self, leaves: IntArray, step: int) -> IntArray:
        """Another leaf below the same two codes: `step` is how many leaves to go."""
        below = SHAPE.leaves // SHAPE.prefixes(2)
        return leaves - leaves % below + (leaves % below + step) % below

    def _normal(self, count: int) -> FloatArray:
        values = self._rng.standard_normal((count, self.width), np.float32)
        return values / math.sqrt(self.width)


def unit(vectors: FloatArray) -> FloatArray:
    """(N, D) of length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class KnownVectors:
    """An encoder whose vectors of texts are known."""

    def __init__(self, width: int, scale: float, vectors: Mapping[str, FloatArray]) -> None:
        self.width = width
        self.scale = scale
        self._vectors = vectors

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D)"""
        return np.stack([self._vectors[text] for text in texts])

    def embed_images(self, images: Sequence[ByteArray]) -> FloatArray:
        """Nobody asks with a picture."""
        raise AssertionError("this benchmark asks with texts")


@dataclass(frozen=True, slots=True)
class KnownPrompt:
    """Prompts that the decoder reads, and the (B, D) vectors of their texts."""

    prompts: Prompts
    vectors: Tensor


class KnownCodes:
    """A decoder whose numbers are computed, and replaced by those of a codebook that is right."""

    def __init__(self, decoder: Decoder, images: ClusteredImages, scale: float) -> None:
        self._decoder = decoder
        self.tables = [torch.from_numpy(table) for table in images.tables]
        self.scale = scale

    def read_texts(self, texts: Sequence[str], vectors: FloatArray | None = None) -> KnownPrompt:
        """See `model.decoding.beam.TextDecodingEngine`."""
        assert vectors is not None
        return KnownPrompt(self._decoder.read_texts(texts), torch.from_numpy(vectors))

    def begin(self, prompt: KnownPrompt) -> "KnownState":
        """See `model.decoding.beam.DecodingEngine`."""
        return KnownState(self._decoder.begin(prompt.prompts), self, prompt.vectors)


class KnownState:
    """A `model.decoding.beam.DecodingState` around the decoder's own."""

    def __init__(self, own: DecodingState, codes: KnownCodes, vectors: Tensor) -> None:
        self.batch = own.batch
        self.device = own.device
        self._own = own
        self._codes = codes
        self._vectors = vectors

    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        """(B, W, K) of the codebook, after the model's."""
        self._own.score(level, prefixes, parents, alive)
        table = self._codes.tables[level]
        if level < LEVELS - 1:
            table = table.view(-1, SHAPE.codes[level], table.shape[-1])[prefixes]
            logits = torch.einsum("bd,bwkd->bwk", self._vectors, table)
        else:
            logits = (self._vectors @ table.T).unsqueeze(1).expand(-1, prefixes.shape[1], -1)
        return torch.log_softmax(self._codes.scale * logits, -1)


class KnownDescriptions(Descriptions):
    """What an answer says about images, without a database: reading twenty rows by key is not what
    grows with them."""

    def __init__(self) -> None:
        self.memory = ImageMemory()

    def read(self, keys: Collection[int], needed: Collection[int]) -> DescribedImages:
        """All of them exist."""
        stored = {key: _stored(key) for key in keys}
        return DescribedImages(stored, dict.fromkeys(keys, (0, 0, 0, 0, 0)))

    def close(self) -> None:
        """Nothing is open."""


class _NoFollower:
    """In place of a follower: changes are made here."""

    def close(self) -> None:
        """Nothing is open."""


class ClusteredGallery:
    """A searcher over some images, and the changes that wait for it."""

    def __init__(self, size: int, width: int, seed: int, folder: Path) -> None:
        self.size = size
        self.images = ClusteredImages(width, seed)
        parts = parts_from_base(Base.load(SHIPPED), replace(profile("tiny"), shape=SHAPE))
        self._vectors: dict[str, FloatArray] = {}
        scale = parts.encoder.scale
        self.engine = TrieEngine(
            1,
            SHAPE,
            KnownVectors(width, scale, self._vectors),
            KnownCodes(Decoder(parts.sigma), self.images, scale),
            Gallery.open(folder),
            guidance=READING_TEXTS,
            sketch=self.images.sketch(seed),
        )
        generation = Generation(
            1, "live", None, None, SHAPE, GenerationConfig(), _MOMENT, None, None
        )
        nobody: Any = _NoFollower()
        self.searcher: Searcher[QueryEngine] = Searcher(
            generation,
            self.engine,
            KnownDescriptions(),
            nobody,
            LocalImageStore(folder),
            RetrievalSettings(),
        )
        self.updates: SimpleQueue[EngineUpdate] = SimpleQueue()
        metrics = QueryMetrics()
        shadows = ShadowQueue(0.0, metrics, lambda _: None)
        self.served = ServedGenerations(metrics, shadows, lambda _: None, lambda _: None)
        self.served.take(GenerationLoaded(self.searcher))
        self.served.take(GenerationPromoted(self.searcher))
        self._next_key = 1
        for begin in range(0, size, _CHUNK_IMAGES):
            self.engine.apply(self._arrivals(min(_CHUNK_IMAGES, size - begin)))

    def texts(self, count: int, seed: int) -> list[str]:
        """Texts whose vectors are near those of images of this gallery."""
        texts = query_texts(count, seed)
        rng = np.random.default_rng(seed)
        rows = self.engine.gallery.embeddings[rng.integers(0, self.size, count)]
        vectors = self.images.near(rows.astype(np.float32))
        self._vectors.update(zip(texts, vectors, strict=True))
        return texts

    def change(self, arrivals: int, deletions: int) -> None:
        """Let changes wait, in slices as a follower sends them; the oldest images go."""
        changes = self._arrivals(arrivals)
        oldest = self._next_key - arrivals - self.engine.images
        doomed = np.arange(oldest, oldest + deletions)
        for own in replace(changes, deleted=doomed).slices(SLICE_IMAGES):
            self.updates.put(ChangesApplied(self.searcher, own))

    def ask(self, text: str) -> tuple[float, float]:
        """Milliseconds that a query waits for changes, and until it is answered."""
        began_s = time.thread_time()
        self.served.take_waiting(self.updates, UPDATES_S)
        held_s = time.thread_time() - began_s
        self.searcher.search([text], RESULTS)
        return held_s * _MS, (time.thread_time() - began_s) * _MS

    def recall(self, texts: Sequence[str]) -> float:
        """The share of exact search's images that are found."""
        found = 0
        # All at once: exact search reads the whole gallery each time.
        exact = self.engine.answer_exact(self.engine.encoder.embed_texts(texts), RESULTS)
        for text, wanted in zip(texts, exact, strict=True):
            (answer,) = self.engine.answer([text], RESULTS, RetrievalSettings())
            found += len(np.intersect1d(answer.image_keys, wanted.image_keys))
        return found / (RESULTS * len(texts))

    def _arrivals(self, count: int) -> Changes:
        first = self._next_key
        self._next_key += count
        return self.images.arrivals(first, count)


def _stored(key: int) -> StoredImage:
    return StoredImage(key, f"i{key}", 1, "indexed", "", _PICTURE, (), (), None, _MOMENT, _MOMENT)
