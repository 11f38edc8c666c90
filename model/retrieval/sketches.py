"""Sketches: a few bytes of each image in memory, by which a query chooses what it ranks.

See `model.network.sketch`. Letters in shapes: N images, P postings, D width of the encoder, S bytes
of a sketch.
"""

import numpy as np

from model.network.sketch import Sketch, SketchArray
from model.retrieval.shards import Reached
from schemas.records import FloatArray, HalfArray, IntArray, NamedArrays

# Factor by which the table grows.
_GROWTH = 1.5


class SketchesBySlot:
    """The sketches of a gallery's images. For one thread."""

    def __init__(self, sketch: Sketch) -> None:
        self.sketch = sketch
        self.clear()

    def clear(self) -> None:
        """Forget all images."""
        self._table: SketchArray = np.zeros((0, self.sketch.width), np.int8)
        """(capacity, S) by slot; of a slot without an image it holds anything."""

    def put(self, slots: IntArray, embeddings: HalfArray | FloatArray) -> None:
        """Take the images in slots (N,) with (N, D) embeddings."""
        self._reserve(int(slots.max(initial=-1)) + 1)
        self._table[slots] = self.sketch.of_images(embeddings)

    def deviations(self, query: FloatArray, reached: Reached) -> FloatArray:
        """(P,) float32 how much nearer to a (D,) query an image is than its leaf's are on average.

        As far as sketches tell, in cosines; of all P postings of the leaves that were reached. So
        an image alone in its leaf has none, and of the others a leaf's promise is corrected.
        """
        cosines = self._table[reached.slots].astype(np.float32) @ self.sketch.of_query(query)
        counts = np.bincount(reached.source)
        means = np.bincount(reached.source, cosines) / np.maximum(counts, 1)
        deviations: FloatArray = cosines - means.astype(np.float32)[reached.source]
        return deviations

    def to_arrays(self, size: int) -> NamedArrays:
        """All that it holds of the first `size` slots, for `restore`."""
        self._reserve(size)
        return {"table": self._table[:size]}

    def restore(self, arrays: NamedArrays) -> None:
        """Take over what another table of these directions held."""
        self._table = arrays["table"].copy()

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._table.nbytes

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._table):
            return
        grown = np.zeros((max(rows, int(_GROWTH * len(self._table))), self.sketch.width), np.int8)
        grown[: len(self._table)] = self._table
        self._table = grown
