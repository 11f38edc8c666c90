"""Guidance: how far a search leans on what is below a prefix, and how much it ranks.

A decoder knows coarse codes well and fine ones badly, of images that came after its training above
all. Means of what is posted below each prefix (`model.retrieval.prefix_means`) know both exactly,
so beams are chosen by both, and a bounded number of images is ranked: those that both believe in
most, over all leaves that they are posted under.
"""

from dataclasses import dataclass, replace

import numpy as np

from model.retrieval.shards import Int32Array
from schemas.records import BoolArray, FloatArray

# Postings that are looked at for each image that is ranked (docs/experiments/sketch.md).
_POSTINGS = 8

# Images that are ranked where no sketches tell those of a leaf apart, as a multiple.
_BLIND = 2


@dataclass(frozen=True, slots=True)
class Guidance:
    """Numbers of a guided search; see the two kinds below."""

    weight: float
    """Nats of one logit of the encoder, its scale times a cosine, where beams are chosen."""
    nearness: float
    """The same where images are chosen that are ranked."""
    wider: int
    """Beams, as a multiple of those of the settings."""
    share: float
    """Images that are ranked, as a share of the gallery."""
    least: int
    """The same in a small gallery, where a share of it would be a handful."""
    most: int
    """The same in a large one."""
    belief: float
    """How much of the settings' fusion weight the decoder's opinion of leaves has in the score."""

    def budget(self, images: int, most: int, *, sketched: bool) -> int:
        """Images that one query ranks at most, of so many; `most` is the setting's bound."""
        own = max(self.least, min(self.most, round(self.share * images)))
        return min(most, own if sketched else _BLIND * own)

    def doubled(self) -> "Guidance":
        """The same for a second try that ranks more, because the first one found too few."""
        return replace(self, least=2 * self.least)


# For models that read queries as texts (docs/experiments/guided.md, querybank.md).
READING_TEXTS = Guidance(
    weight=4.0, nearness=1.5, wider=2, share=0.003, least=40, most=300, belief=1 / 15
)

# For models that read their vectors: they have learnt from few pictures, often from no text, and
# what they know of a query the encoder says better. Their opinion of leaves takes a tenth of what
# is found away (docs/experiments/small.md).
READING_VECTORS = Guidance(
    weight=16.0, nearness=16.0, wider=5, share=0.02, least=60, most=600, belief=0.0
)


def opened(budget: int, beliefs: FloatArray, loads: Int32Array) -> BoolArray:
    """Which of W leaves are looked at, so that `budget` images can be chosen: the best ones.

    `beliefs` (W,) in nats, -inf of a leaf that does not exist; `loads` (W,) postings of each.
    """
    order = np.argsort(-beliefs, kind="stable")
    before = np.cumsum(loads[order]) - loads[order]
    chosen = np.zeros(len(loads), np.bool_)
    chosen[order[before < _POSTINGS * budget]] = True
    return chosen & (beliefs > -np.inf)
