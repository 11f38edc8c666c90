"""`sigma bench query`: our answers a second beside exact dense search over the same images, in one process."""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from model.identifiers.codebook import CodebookConfig, fit_codebook
from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint
from model.network.parts import parts_from_base
from model.network.profiles import profile
from ops.bench.rows import Row
from schemas.records import FloatArray, IntArray
from schemas.settings import RetrievalSettings
from workers.query.engine import ModelEngine
from workers.repository.follower import EmbeddingRows

_WORDS = (
    "a",
    "small",
    "large",
    "red",
    "blue",
    "circle",
    "square",
    "on",
    "navy",
    "grey",
    "dotted",
    "striped",
    "left",
    "right",
    "star",
)
_QUERIES, _BATCH = 128, 16


def texts(count: int, seed: int) -> list[str]:
    """Made-up queries, each unlike the others."""
    noise = np.random.default_rng(seed)
    return [f"{' '.join(noise.choice(_WORDS, 7).tolist())} {number}" for number in range(count)]


def engine(images: int, seed: int, folder: Path, kind: str = "torch") -> ModelEngine:
    """An engine with the shipped base's model, identifier tokens untrained, and images at random places."""
    noise = np.random.default_rng(seed)
    parts = parts_from_base(Base.load(SHIPPED), profile("tiny"))
    shape = parts.sigma.profile.shape
    width = parts.encoder.embed_texts(["width"]).shape[1]
    sample = noise.standard_normal((2000, width)).astype(np.float32)
    made = ModelEngine.open(
        0,
        Checkpoint(parts.sigma, fit_codebook(sample, CodebookConfig(shape)), parts.encoder),
        folder,
        engine=kind,
    )
    keys = np.arange(1, images + 1)
    for begin in range(0, images, 10_000):
        part = keys[begin : begin + 10_000]
        vectors = noise.standard_normal((len(part), width)).astype(np.float32)
        made.add_embeddings(_embeddings(part, vectors))
    for rank in range(3):
        suffixes = np.zeros(images, np.int64) if rank == 0 else np.full(images, -1)
        leaves = noise.integers(0, shape.leaves, images)
        made.trie.insert(
            leaves, made.gallery.slots(keys), np.full(images, -float(rank), np.float32), suffixes
        )
    return made


def _embeddings(keys: IntArray, vectors: FloatArray) -> EmbeddingRows:
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    return EmbeddingRows(keys, unit, np.zeros(len(keys), np.float32), np.zeros(len(keys), np.bool_))


def query(seed: int) -> list[Row]:
    """Rows at growing numbers of images."""
    rows = []
    for images in (10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            made = engine(images, seed, Path(folder))
            asked = texts(_QUERIES, seed)
            ours = rate(partial(made.answer, count=10, settings=RetrievalSettings()), asked, _BATCH)
            exact = rate(partial(_exact, made), asked, _BATCH)
            rows.append(
                Row(
                    f"queries, {images:,} images, 20 beams",
                    ours,
                    exact,
                    "exact dense search",
                    "queries/s",
                    _QUERIES,
                )
            )
            made.close()
    return rows


def _exact(made: ModelEngine, part: Sequence[str]) -> object:
    return made.answer_exact(made.encoder.embed_texts(part), 10)


def rate(answer: Callable[[Sequence[str]], object], asked: Sequence[str], batch: int) -> float:
    """Queries a second, after one batch to warm up."""
    answer(asked[:batch])
    began = time.perf_counter()
    for begin in range(0, len(asked), batch):
        answer(asked[begin : begin + batch])
    return len(asked) / (time.perf_counter() - began)
