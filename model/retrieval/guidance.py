"""Guidance: how far a search leans on what is below a prefix, and how much it ranks.

A decoder knows coarse codes well and fine ones badly, of images that came after its training above
all. Means of what is posted below each prefix (`model.retrieval.prefix_means`) know both exactly,
so beams are chosen by both, and a bounded number of images behind the best leaves is ranked.
"""

from dataclasses import dataclass, replace

import numpy as np

from model.retrieval.shards import Int32Array
from schemas.records import BoolArray


@dataclass(frozen=True, slots=True)
class Guidance:
    """Numbers of a guided search; see the two kinds below."""

    weight: float
    """Nats of one logit of the encoder: its scale times a cosine."""
    wider: int
    """Beams, as a multiple of those of the settings."""
    share: float
    """Postings that are ranked, as a share of the gallery's images."""
    least: int
    """Postings in a small gallery, where a share of it would be a handful."""
    belief: float
    """How much of the settings' fusion weight the decoder's opinion of leaves has in the score."""

    def budget(self, images: int, most: int) -> int:
        """Postings that one query ranks at most, of so many images."""
        return min(most, max(self.least, round(self.share * images)))

    def doubled(self) -> "Guidance":
        """The same for a second try that ranks more, because the first one found too few."""
        return replace(self, least=2 * self.least)


# For models that read queries as texts (docs/experiments/guided.md).
READING_TEXTS = Guidance(weight=4.0, wider=2, share=0.01, least=100, belief=1 / 3)

# For models that read their vectors: they have learnt from few pictures, often from no text, and
# what they know of a query the encoder says better. Their opinion of leaves takes a tenth of what
# is found away (docs/experiments/small.md).
READING_VECTORS = Guidance(weight=16.0, wider=5, share=0.045, least=130, belief=0.0)


def within(budget: int, loads: Int32Array) -> BoolArray:
    """Which of (W,) leaves, best first, are opened: the first one, and those with room for all.

    `loads` (W,) postings of each leaf. A leaf that is too large for what is left of the budget is
    passed over, and smaller ones behind it are opened.
    """
    opened = np.zeros(len(loads), np.bool_)
    left = budget
    for place, load in enumerate(loads.tolist()):
        if place == 0 or load <= left:
            opened[place] = True
            left -= load
    return opened
