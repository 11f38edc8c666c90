"""The stub's query side: a query worker whose trie, beam search and ranking are the real ones, and whose model is a hash."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from model.network.checkpoint import Checkpoint
from model.retrieval.trie import Trie
from ops.bench.stub import WIDTH, noise_of, unit_vector
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import ByteArray, FloatArray
from workers.query import http as query
from workers.query.engine import Engine
from workers.query.gallery import Gallery
from workers.query.searcher import Searcher
from workers.repository.generations import Generation
from workers.runtime.services import Services


def serve(services: Services, stop: threading.Event) -> None:
    """One query worker process, until stopped."""
    torch.set_num_threads(1)
    query.run(services, stop, load_searcher)


class StubEncoder:
    """Stands in for an encoder of texts (`model.encoder.Encoder`)."""

    width, scale = WIDTH, 1.0

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors: the same text always has the same."""
        return np.stack([unit_vector(noise_of(text.encode())) for text in texts]).astype(np.float32)

    def embed_images(self, images: Sequence[ByteArray]) -> FloatArray:
        """(N, D) float32 unit vectors."""
        return np.stack([unit_vector(noise_of(image.tobytes())) for image in images]).astype(
            np.float32
        )


class StubDecodingEngine:
    """Stands in for a decoding engine (`model.beam.TextDecodingEngine`): every code of a level is as likely as a hash says."""

    device = torch.device("cpu")

    def __init__(self, shape: IdentifierShape) -> None:
        self.shape = shape

    def read_texts(self, texts: Sequence[str]) -> list[bytes]:
        """Prompts of B queries."""
        return [text.encode() for text in texts]

    def begin(self, prompt: list[bytes]) -> "StubDecodingState":
        """Begin a beam search."""
        return StubDecodingState(self, prompt)


class StubDecodingState:
    """A beam search's way through prompts (`model.beam.DecodingState`)."""

    def __init__(self, scorer: StubDecodingEngine, prompt: list[bytes]) -> None:
        self.batch = len(prompt)
        self.device = scorer.device
        self._scorer, self._prompt = scorer, prompt

    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        """(B, W, K) float32 log-probabilities, the same behind every prefix."""
        shape = self._scorer.shape
        count = shape.suffixes if level == LEVELS else shape.codes[level]
        drawn = [noise_of(text + bytes([level])).standard_normal(count) for text in self._prompt]
        scores = torch.log_softmax(torch.from_numpy(np.stack(drawn)).float(), -1)
        return scores.unsqueeze(1).expand(-1, prefixes.shape[1], -1)


class StubEngine(Engine):
    """An engine whose trie, beam search and ranking are the real ones."""

    def __init__(self, generation: Generation, folder: Path) -> None:
        self.generation = generation.id
        self.shape = generation.shape
        self.checkpoint = cast(Checkpoint, None)
        self.encoder = StubEncoder()
        self.scorer = StubDecodingEngine(generation.shape)
        self.trie = Trie(generation.shape)
        self.gallery = Gallery(folder)
        self._vllm = None


def load_searcher(
    services: Services, generation: Generation, before: Searcher | None, live: bool
) -> Searcher:
    """Stands in for `workers.query.residents.load_searcher`."""
    return Searcher(services, generation, engine=StubEngine(generation, services.cache))
