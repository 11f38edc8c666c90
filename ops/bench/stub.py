"""The stub model: identifiers from a hash of the pixels, so that everything around it is measured.

It takes no time. Each generation has identifiers of its own. `ops.bench.stub_query` is its query
side, `ops.bench.stub_worker` runs workers with both.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from model.decoding.leaves import Leaves
from schemas.identifiers import IdentifierShape
from schemas.records import ByteArray, FloatArray, Posting
from workers.generations.inferred import Inferred
from workers.repository.connection import Connection
from workers.repository.generations import Generation, create_generation, set_state

# 4,096 leaves of 64 suffixes: room for the images of every benchmark.
SHAPE = IdentifierShape((16, 8, 8, 4), 64)

# Numbers of an embedding.
WIDTH = 64

# Leaves of an image, as the settings have it by default.
_POSTINGS = 3

# Further leaves, for images whose primary leaf is full.
_SPILL = 5


class StubAssigner:
    """An `ImageAssigner` whose answers are a hash of the generation and the pixels."""

    def __init__(self, shape: IdentifierShape, salt: int) -> None:
        self.shape = shape
        # Another salt, other identifiers: an answer tells which generation gave it.
        self._salt = str(salt).encode()

    @classmethod
    def of(cls, generation: Generation) -> "StubAssigner":
        """Return the stub of a generation; this is its `LoadAssigner`."""
        return cls(generation.shape, generation.id)

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        """Leaves and embeddings of a batch of pictures: the same pixels always give the same."""
        return [self._infer(picture) for picture in pictures]

    def _infer(self, picture: ByteArray) -> Inferred:
        noise = noise_of(self._salt + picture.tobytes())
        leaves = noise.choice(self.shape.leaves, _POSTINGS + _SPILL, replace=False).tolist()
        postings = []
        for rank, leaf in enumerate(leaves[:_POSTINGS]):
            postings.append(Posting(leaf, -float(rank)))
        spill = tuple(leaves[_POSTINGS:])
        embedding = unit_vector(noise).astype(np.float16)
        return Inferred(Leaves(tuple(postings), spill, confidence=-1.0), embedding)


def noise_of(seed: bytes) -> np.random.Generator:
    """Return a generator whose numbers depend on all bytes of the seed."""
    # `hash` of bytes differs between processes, and workers have to agree.
    digest = hashlib.sha256(seed).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint64))


def unit_vector(noise: np.random.Generator) -> FloatArray:
    """Draw a (WIDTH,) float32 vector of unit length."""
    vector = noise.standard_normal(WIDTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def stub_generation(conn: Connection) -> int:
    """Create a live generation that only the stub can serve; returns its number."""
    number = shadow_generation(conn)
    set_state(conn, number, "live")
    return number


def shadow_generation(conn: Connection) -> int:
    """Create a candidate that only the stub can serve; returns its number."""
    number = create_generation(conn, SHAPE, codebook_version="stub", checkpoint_path="stub")
    set_state(conn, number, "shadow")
    return number
