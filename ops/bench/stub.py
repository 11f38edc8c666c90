"""The stub model: identifiers from a hash of the pixels, in no time, so that everything around the model can be measured.

`python -m ops.bench.stub index|query` is a worker like `sigma worker index|query`, with the stub in place of its model. Each
generation has identifiers of its own.
"""

import hashlib
import os
import sys
from collections.abc import Sequence

import numpy as np

from model.decoding.leaves import Leaves
from schemas.identifiers import IdentifierShape
from schemas.records import ByteArray, FloatArray, Posting
from schemas.settings import Settings
from workers.generations.inferred import Inferred
from workers.index import IndexWorker
from workers.repository.connection import Connection
from workers.repository.generations import Generation, create_generation, set_state
from workers.runtime.logs import configure
from workers.runtime.metrics import IndexMetrics
from workers.runtime.process import stop_on_signals
from workers.runtime.relay import start_relay
from workers.runtime.services import Services

SHAPE = IdentifierShape((16, 8, 8, 4), 64)
WIDTH, _POSTINGS, _SPILL = 64, 3, 5


class StubAssigner:
    """Stands in for `workers.generations.model_assigner.ModelAssigner`."""

    def __init__(self, shape: IdentifierShape, salt: int) -> None:
        self.shape = shape
        self._salt = str(salt).encode()

    @classmethod
    def load(cls, services: Services, generation: Generation) -> "StubAssigner":
        """The stub of a generation, as an index worker loads it."""
        return cls.of(generation)

    @classmethod
    def of(cls, generation: Generation) -> "StubAssigner":
        """The stub of a generation."""
        return cls(generation.shape, generation.id)

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        """Leaves and embeddings of a batch of pictures: the same pixels always give the same."""
        return [self._infer(picture) for picture in pictures]

    def _infer(self, picture: ByteArray) -> Inferred:
        noise = noise_of(self._salt + picture.tobytes())
        leaves = noise.choice(self.shape.leaves, _POSTINGS + _SPILL, replace=False).tolist()
        postings = tuple(
            Posting(leaf, -float(rank)) for rank, leaf in enumerate(leaves[:_POSTINGS])
        )
        return Inferred(
            Leaves(postings, tuple(leaves[_POSTINGS:]), -1.0), unit(noise).astype(np.float16)
        )


def noise_of(seed: bytes) -> np.random.Generator:
    return np.random.default_rng(np.frombuffer(hashlib.sha256(seed).digest(), dtype=np.uint64))


def unit(noise: np.random.Generator) -> FloatArray:
    vector = noise.standard_normal(WIDTH)
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
    services, stop = Services(settings, settings.database_url), stop_on_signals()
    if role == "query":
        # Imported here: an index worker with the stub starts without PyTorch.
        from ops.bench.stub_query import serve

        serve(services, stop)
        return
    start_relay(settings.kafka, services.database_url, stop)
    IndexWorker(services, IndexMetrics(), load=StubAssigner.load).run(stop)


if __name__ == "__main__":
    main(sys.argv[1])
