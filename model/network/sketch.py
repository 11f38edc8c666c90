"""Sketch: the few directions in which pictures differ most, and a byte for each of them.

Which images a query ranks is chosen before their embeddings are read. A sketch tells images of one
leaf apart for a sixteenth of the bytes, so that fewer need to be read (docs/experiments/sketch.md).
First ranking by small codes and ranking the best again by whole vectors is the usual way of large
indexes (Jégou et al. 2011, "Searching in one billion vectors: re-rank with source coding"). The
directions are the principal ones of the embeddings that a generation was trained on.

Letters in shapes: N images, D width of the encoder, S directions.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from model.network.weights_io import read_tensors
from schemas.errors import RefuseToStartError
from schemas.records import FloatArray, HalfArray

SketchArray = npt.NDArray[np.int8]

_DIRECTIONS = "directions"

# Numbers of an embedding for one of its sketch, and the most of a sketch.
_NARROWER = 8
_MOST = 64

# Embeddings that the directions are found from: more move them by less than their codes round.
_FITTED = 16_384

# Images whose sketches are computed at a time. It is always as many, for a product of matrices of
# another shape may differ in its last digit, and an image has one sketch whatever comes beside it.
_BLOCK = 256

# Steps of a number between 0 and 1: no number of a unit vector is larger in any direction.
_STEPS = np.float32(127)


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """The directions of one generation's sketches."""

    directions: FloatArray
    """(S, D) float32, orthonormal"""

    @property
    def width(self) -> int:
        """S, bytes of a sketch."""
        return len(self.directions)

    @classmethod
    def fit(cls, embeddings: HalfArray | FloatArray, seed: int) -> "Sketch":
        """The principal directions of (N, D) embeddings; the same seed gives the same."""
        rows = np.arange(len(embeddings))
        if len(rows) > _FITTED:
            rows = np.sort(np.random.default_rng((seed, 8)).permutation(rows)[:_FITTED])
        known = embeddings[rows].astype(np.float64)
        known -= known.mean(axis=0)
        _, directions = np.linalg.eigh(known.T @ known)
        count = min(_MOST, max(1, embeddings.shape[1] // _NARROWER))
        # Ascending: those of the largest variance are the last columns.
        return cls(np.ascontiguousarray(directions[:, ::-1][:, :count].T, dtype=np.float32))

    def of_images(self, embeddings: HalfArray | FloatArray) -> SketchArray:
        """(N, S) int8 sketches of (N, D) unit vectors."""
        sketches = np.empty((len(embeddings), self.width), np.int8)
        block = np.zeros((_BLOCK, self.directions.shape[1]), np.float32)
        for start in range(0, len(embeddings), _BLOCK):
            own = embeddings[start : start + _BLOCK]
            block[: len(own)] = own
            values = np.rint(block @ self.directions.T * _STEPS)
            sketches[start : start + len(own)] = np.clip(values, -_STEPS, _STEPS)[: len(own)]
        return sketches

    def of_query(self, query: FloatArray) -> FloatArray:
        """(S,) float32 by which a sketch is multiplied for the cosine in its directions.

        `query` (D,) is a unit vector.
        """
        values: FloatArray = self.directions @ query / _STEPS
        return values

    def save(self, path: Path) -> None:
        """Write the directions."""
        save_file({_DIRECTIONS: torch.from_numpy(self.directions)}, path)

    @classmethod
    def load(cls, path: Path, width: int) -> "Sketch":
        """Read what `save` wrote; `RefuseToStartError` when it is damaged or D is not `width`."""
        directions = read_tensors(path)[_DIRECTIONS].float().numpy()
        if directions.ndim != 2 or directions.shape[1] != width:
            raise RefuseToStartError(
                f"the sketch {path} must be {width} wide as the codebook is, got a shape of "
                f"{directions.shape}; restore the file or train again"
            )
        return cls(directions)
