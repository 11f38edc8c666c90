"""Hubness: what the images of a gallery lose in the ranking for being near to any text.

See `model.network.querybank`. Letters in shapes: N images, D width of the encoder.
"""

import numpy as np

from model.network.querybank import Querybank
from schemas.records import FloatArray, IntArray


class HubnessBySlot:
    """The hubness of a gallery's images, each computed when it is first ranked. For one thread."""

    def __init__(self, bank: Querybank, scale: float) -> None:
        """`scale` is the encoder's logit scale."""
        self._bank = bank
        self._scale = scale
        self._known: FloatArray = np.empty(0, np.float32)
        """(capacity,) by slot, NaN where it was not asked for yet."""

    def penalties(self, slots: IntArray, embeddings: FloatArray) -> FloatArray:
        """(N,) float32 what the scores of images lose, in `slots` (N,) with (N, D) embeddings."""
        top = int(slots.max(initial=-1)) + 1
        if top > len(self._known):
            grown = np.full(max(top, 2 * len(self._known)), np.nan, np.float32)
            grown[: len(self._known)] = self._known
            self._known = grown
        hubness = self._known[slots]
        new = np.flatnonzero(np.isnan(hubness))
        if len(new):
            hubness[new] = self._bank.hubness(embeddings[new], self._scale)
            self._known[slots[new]] = hubness[new]
        penalties: FloatArray = np.float32(self._bank.weight) * hubness
        return penalties

    def forget(self, slots: IntArray) -> None:
        """Other images may be in these slots from now on."""
        self._known[slots[slots < len(self._known)]] = np.nan
