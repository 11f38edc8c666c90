"""The stub model: identifiers from a hash of the pixels, in no time, so that everything around the model can be measured.

`python -m ops.bench.stub` is an index worker like `sigma worker index`, with the stub in place of its model.
"""

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from model.leaves import Leaves
from schemas.identifiers import IdentifierShape
from schemas.records import ByteArray, Posting
from schemas.settings import Settings
from workers.index import IndexWorker
from workers.inferred import Inferred
from workers.logs import configure
from workers.metrics import IndexMetrics
from workers.relay import start_relay
from workers.repository.connection import Connection
from workers.repository.generations import Generation, create_generation, set_state
from workers.running import stop_on_signals
from workers.services import Services

SHAPE = IdentifierShape((16, 8, 8, 4), 64)
_WIDTH, _POSTINGS, _SPILL = 64, 3, 5


class StubAppender:
    """Stands in for `workers.append.Appender`."""

    def __init__(self, shape: IdentifierShape) -> None:
        self.shape = shape

    @classmethod
    def load(cls, services: Services, generation: Generation) -> "StubAppender":
        """The stub of a generation."""
        return cls(generation.shape)

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        """Leaves and embeddings of a batch of pictures: the same pixels always give the same."""
        return [self._infer(picture) for picture in pictures]

    def _infer(self, picture: ByteArray) -> Inferred:
        seed = np.frombuffer(hashlib.sha256(picture.tobytes()).digest(), dtype=np.uint64)
        noise = np.random.default_rng(seed)
        leaves = noise.choice(self.shape.leaves, _POSTINGS + _SPILL, replace=False).tolist()
        vector = noise.standard_normal(_WIDTH)
        postings = tuple(Posting(leaf, -float(rank)) for rank, leaf in enumerate(leaves[:_POSTINGS]))
        return Inferred(Leaves(postings, tuple(leaves[_POSTINGS:]), -1.0), (vector / np.linalg.norm(vector)).astype(np.float16))


def stub_generation(conn: Connection) -> int:
    """A live generation that only the stub can serve."""
    number = create_generation(conn, SHAPE, codebook_version="stub", checkpoint_path="stub")
    set_state(conn, number, "shadow")
    set_state(conn, number, "live")
    return number


def main() -> None:
    """One index worker process, until a signal."""
    settings = Settings.from_environment(os.environ)
    assert settings.database_url is not None
    configure(settings.log_level)
    services, stop = Services(settings, settings.database_url), stop_on_signals()
    start_relay(services, stop)
    IndexWorker(services, IndexMetrics(), load=StubAppender.load).run(stop)


if __name__ == "__main__":
    main()
