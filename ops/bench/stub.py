"""The stub model: identifiers from a hash of the pixels, in no time, so that everything around the model can be measured.

`python -m ops.bench.stub index|query` is a worker like `sigma worker index|query`, with the stub in place of its model. Each
generation has identifiers of its own.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from model.assign import Leaves
from model.checkpoint import Checkpoint
from model.trie import Trie
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import ByteArray, FloatArray, Posting
from schemas.settings import Settings
from workers import query
from workers.append import Appender, Inferred
from workers.engine import Engine
from workers.gallery import Gallery
from workers.index import IndexWorker
from workers.logs import configure
from workers.metrics import IndexMetrics
from workers.relay import start_relay
from workers.repository.connection import Connection
from workers.repository.generations import Generation, create_generation, set_state
from workers.running import stop_on_signals
from workers.searcher import Searcher
from workers.services import Services

SHAPE = IdentifierShape((16, 8, 8, 4), 64)
_WIDTH, _POSTINGS, _SPILL = 64, 3, 5


class StubAppender:
    """Stands in for `workers.append.Appender`."""

    def __init__(self, shape: IdentifierShape, salt: int) -> None:
        self.shape = shape
        self._salt = str(salt).encode()

    @classmethod
    def load(cls, services: Services, generation: Generation) -> "StubAppender":
        """The stub of a generation."""
        return cls(generation.shape, generation.id)

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        """Leaves and embeddings of a batch of pictures: the same pixels always give the same."""
        return [self._infer(picture) for picture in pictures]

    def _infer(self, picture: ByteArray) -> Inferred:
        noise = _noise(self._salt + picture.tobytes())
        leaves = noise.choice(self.shape.leaves, _POSTINGS + _SPILL, replace=False).tolist()
        postings = tuple(Posting(leaf, -float(rank)) for rank, leaf in enumerate(leaves[:_POSTINGS]))
        return Inferred(Leaves(postings, tuple(leaves[_POSTINGS:]), -1.0), _unit(noise).astype(np.float16))


def load_appender(services: Services, generation: Generation) -> Appender:
    """The stub where an appender is asked for: a switch's sweeps use no more than both have."""
    return cast(Appender, StubAppender.load(services, generation))


class StubEncoder:
    """Stands in for an encoder of texts (`model.encoder.Encoder`)."""

    width, scale = _WIDTH, 1.0

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors: the same text always has the same."""
        return np.stack([_unit(_noise(text.encode())) for text in texts]).astype(np.float32)

    def embed_images(self, images: Sequence[ByteArray]) -> FloatArray:
        """(N, D) float32 unit vectors."""
        return np.stack([_unit(_noise(image.tobytes())) for image in images]).astype(np.float32)


class StubScorer:
    """Stands in for a decoding engine (`model.beam.TextScorer`): every code of a level is as likely as a hash says."""

    device = torch.device("cpu")

    def __init__(self, shape: IdentifierShape) -> None:
        self.shape = shape

    def read_texts(self, texts: Sequence[str]) -> list[bytes]:
        """Prompts of B queries."""
        return [text.encode() for text in texts]

    def walk(self, prompt: list[bytes]) -> "StubWalk":
        """Begin a beam search."""
        return StubWalk(self, prompt)


class StubWalk:
    """A beam search's way through prompts (`model.beam.Walk`)."""

    def __init__(self, scorer: StubScorer, prompt: list[bytes]) -> None:
        self.batch = len(prompt)
        self.device = scorer.device
        self._scorer, self._prompt = scorer, prompt

    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        """(B, W, K) float32 log-probabilities, the same behind every prefix."""
        shape = self._scorer.shape
        count = shape.suffixes if level == LEVELS else shape.codes[level]
        drawn = [_noise(text + bytes([level])).standard_normal(count) for text in self._prompt]
        scores = torch.log_softmax(torch.from_numpy(np.stack(drawn)).float(), -1)
        return scores.unsqueeze(1).expand(-1, prefixes.shape[1], -1)


class StubEngine(Engine):
    """An engine whose trie, beam search and ranking are the real ones."""

    def __init__(self, generation: Generation, folder: Path) -> None:
        self.generation = generation.id
        self.shape = generation.shape
        self.checkpoint = cast(Checkpoint, None)
        self.encoder = StubEncoder()
        self.scorer = StubScorer(generation.shape)
        self.trie = Trie(generation.shape)
        self.gallery = Gallery(folder)
        self._vllm = None


def load_searcher(services: Services, generation: Generation, before: Searcher | None, live: bool) -> Searcher:
    """Stands in for `workers.holding.load_searcher`."""
    return Searcher(services, generation, engine=StubEngine(generation, services.cache))


def _noise(seed: bytes) -> np.random.Generator:
    return np.random.default_rng(np.frombuffer(hashlib.sha256(seed).digest(), dtype=np.uint64))


def _unit(noise: np.random.Generator) -> FloatArray:
    vector = noise.standard_normal(_WIDTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def stub_generation(conn: Connection) -> int:
    """A live generation that only the stub can serve."""
    number = shadow_generation(conn)
    set_state(conn, number, "live")
    return number


def shadow_generation(conn: Connection) -> int:
    """A candidate that only the stub can serve."""
    number = create_generation(conn, SHAPE, codebook_version="stub", checkpoint_path="stub")
    set_state(conn, number, "shadow")
    return number


def main(role: str) -> None:
    """One worker process, until a signal."""
    settings = Settings.from_environment(os.environ)
    assert settings.database_url is not None
    configure(settings.log_level)
    torch.set_num_threads(1)
    services, stop = Services(settings, settings.database_url), stop_on_signals()
    if role == "query":
        query.run(services, stop, load_searcher)
        return
    start_relay(services, stop)
    IndexWorker(services, IndexMetrics(), load=StubAppender.load).run(stop)


if __name__ == "__main__":
    main(sys.argv[1])
