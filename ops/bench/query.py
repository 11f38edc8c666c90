"""`sigma bench query`: queries a second, beside exact dense search over the same images."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook
from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint
from model.network.parts import parts_from_base
from model.network.profiles import profile
from ops.bench.comparison import Comparison
from ops.bench.query_texts import query_texts
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray, IntArray
from schemas.retrieval_settings import RetrievalSettings
from workers.query.model_engine import ModelEngine
from workers.repository.follower import EmbeddingRows

# Images of the index.
SIZES = (10_000, 100_000)

# Queries that are timed.
_QUERIES = 128

# Queries at once: the largest batch of a query worker.
_BATCH = 16

# Images of each answer.
_RESULTS = 10

# Random embeddings that the codebook is fitted to; its quality does not matter here.
_CODEBOOK_SAMPLE = 2000

# Embeddings that are made at a time, which bounds memory.
_CHUNK_IMAGES = 10_000

# Leaves of an image, as the settings have it by default.
_POSTINGS = 3

# Answers a batch of queries.
Answer = Callable[[Sequence[str]], object]


def query(seed: int) -> list[Comparison]:
    """Compare the engine with exact search at each of `SIZES`."""
    return [_compare(images, seed) for images in SIZES]


def _compare(images: int, seed: int) -> Comparison:
    texts = query_texts(_QUERIES, seed)
    settings = RetrievalSettings()
    with tempfile.TemporaryDirectory() as folder:
        engine = open_random_engine(images, seed, Path(folder))

        def answer(batch: Sequence[str]) -> object:
            return engine.answer(batch, _RESULTS, settings)

        def answer_exact(batch: Sequence[str]) -> object:
            # Embedding the text is part of both: neither can answer without it.
            return engine.answer_exact(engine.encoder.embed_texts(batch), _RESULTS)

        comparison = Comparison(
            name=f"queries, {images:,} images, 20 beams",
            ours=_queries_per_second(answer, texts),
            peer=_queries_per_second(answer_exact, texts),
            peer_name="exact dense search",
            unit="queries/s",
            n=_QUERIES,
        )
        engine.close()
    return comparison


def _queries_per_second(answer: Answer, texts: Sequence[str]) -> float:
    # One batch to warm up: the first call allocates buffers.
    answer(texts[:_BATCH])
    began = time.perf_counter()
    for start in range(0, len(texts), _BATCH):
        answer(texts[start : start + _BATCH])
    return len(texts) / (time.perf_counter() - began)


def open_random_engine(images: int, seed: int, folder: Path) -> ModelEngine:
    """An engine with the shipped base's model, identifier tokens untrained, and random images.

    Speed depends on neither: the beam search reads as many tokens either way.
    """
    rng = np.random.default_rng(seed)
    parts = parts_from_base(Base.load(SHIPPED), profile("tiny"))
    shape = parts.sigma.profile.shape
    width = parts.encoder.embed_texts(["width"]).shape[1]
    codebook = _random_codebook(rng, shape, width)
    engine = ModelEngine.open(0, Checkpoint(parts.sigma, codebook, parts.encoder), folder)
    _add_embeddings(engine, images, width, rng)
    _add_postings(engine, images, rng)
    return engine


def _random_codebook(rng: np.random.Generator, shape: IdentifierShape, width: int) -> Codebook:
    sample = rng.standard_normal((_CODEBOOK_SAMPLE, width)).astype(np.float32)
    return fit_codebook(sample, CodebookConfig(shape))


def _add_embeddings(engine: ModelEngine, images: int, width: int, rng: np.random.Generator) -> None:
    keys = _image_keys(images)
    for start in range(0, images, _CHUNK_IMAGES):
        chunk = keys[start : start + _CHUNK_IMAGES]
        vectors = rng.standard_normal((len(chunk), width)).astype(np.float32)
        engine.index.add_embeddings(_embedding_rows(chunk, vectors))


def _embedding_rows(keys: IntArray, vectors: FloatArray) -> EmbeddingRows:
    # Unit vectors of half precision, as the database stores them.
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    confidences = np.zeros(len(keys), np.float32)
    trained = np.zeros(len(keys), np.bool_)
    return EmbeddingRows(keys, unit, confidences, trained)


def _add_postings(engine: ModelEngine, images: int, rng: np.random.Generator) -> None:
    """A primary posting and two alternates of every image, in random leaves."""
    slots = engine.gallery.slots(_image_keys(images))
    for rank in range(_POSTINGS):
        is_primary = rank == 0
        # -1 marks an alternate.
        suffixes = np.zeros(images, np.int64) if is_primary else np.full(images, -1)
        leaves = rng.integers(0, engine.shape.leaves, images)
        weights = np.full(images, -float(rank), np.float32)
        engine.trie.insert(leaves, slots, weights, suffixes)


def _image_keys(images: int) -> IntArray:
    return np.arange(1, images + 1)
