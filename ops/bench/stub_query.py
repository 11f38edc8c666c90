"""The stub's query side: the real trie, beam search and ranking, and a hash for a model."""

import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ops.api_maintenance import api_maintenance
from ops.bench.stub import WIDTH, noise_of, unit_vector
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import ByteArray, FloatArray
from workers.query import http
from workers.query.engine import QueryEngine
from workers.query.gallery import Gallery
from workers.query.loading import follow
from workers.query.searcher import Searcher
from workers.query.trie_engine import TrieEngine
from workers.query.updates import LoadSearcher
from workers.repository.generations import Generation
from workers.runtime.services import Services


class StubEncoder:
    """A `model.network.encoder.Encoder` whose embeddings are a hash."""

    width = WIDTH
    scale = 1.0

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors: the same text always has the same."""
        vectors = [unit_vector(noise_of(text.encode())) for text in texts]
        return np.stack(vectors).astype(np.float32)

    def embed_images(self, images: Sequence[ByteArray]) -> FloatArray:
        """(N, D) float32 unit vectors."""
        vectors = [unit_vector(noise_of(image.tobytes())) for image in images]
        return np.stack(vectors).astype(np.float32)


class StubDecodingEngine:
    """A `model.decoding.beam.TextDecodingEngine` whose probability of each code is a hash."""

    device = torch.device("cpu")

    def __init__(self, shape: IdentifierShape) -> None:
        self.shape = shape

    def read_texts(self, texts: Sequence[str], vectors: FloatArray | None = None) -> list[bytes]:
        """Prompts of B queries."""
        return [text.encode() for text in texts]

    def begin(self, prompt: list[bytes]) -> "StubDecodingState":
        """Begin a beam search."""
        return StubDecodingState(self, prompt)


class StubDecodingState:
    """A beam search over prompts (`model.decoding.beam.DecodingState`)."""

    def __init__(self, engine: StubDecodingEngine, prompt: list[bytes]) -> None:
        self.batch = len(prompt)
        self.device = engine.device
        self._shape = engine.shape
        self._prompt = prompt

    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        """(B, W, K) float32 log-probabilities, the same behind every prefix."""
        count = self._shape.suffixes if level == LEVELS else self._shape.codes[level]
        logits = []
        for text in self._prompt:
            logits.append(noise_of(text + bytes([level])).standard_normal(count))
        scores = torch.log_softmax(torch.from_numpy(np.stack(logits)).float(), -1)
        return scores.unsqueeze(1).expand(-1, prefixes.shape[1], -1)


def stub_searcher_loader(services: Services) -> LoadSearcher:
    """Return a function that loads the stub engine of a generation."""

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        engine = TrieEngine(
            generation.id,
            generation.shape,
            StubEncoder(),
            StubDecodingEngine(generation.shape),
            Gallery.open(services.cache),
        )
        return follow(services, generation, engine)

    return load


def serve(services: Services, stop: threading.Event) -> None:
    """Run one query worker until stopped."""
    # As `sigma worker` does by default: the other workers need the other cores.
    torch.set_num_threads(1)
    http.run(services, stop, stub_searcher_loader(services), api_maintenance())
