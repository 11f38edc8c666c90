"""The teacher of a pretrained encoder: soft labels from the encoder's own cosines."""

from collections.abc import Sequence

import numpy as np

from model.network.encoder import Encoder
from model.network.resize import Pixels
from schemas.records import FloatArray

# Pairs that a calibration looks at.
_PAIRS = 256

# Logits of a mean pair that belongs together, and with the other sign of one that does not: labels
# of .88 and .12, so that neither end of the range is used up by an average pair.
_MEAN_LOGIT = 2.0

# Least distance between the two means: noise alone must not become labels of 0 and 1.
_LEAST_DISTANCE = 0.02


class EncoderTeacher:
    """A `Teacher` that turns cosines into labels: sigmoid((cosine - centre) / spread).

    Where cosines lie differs from family to family: about .2 to .35 in CLIP, 0 to .15 in SigLIP.
    """

    def __init__(self, encoder: Encoder, centre: float, spread: float) -> None:
        self.encoder = encoder
        self.centre = centre
        self.spread = spread

    @classmethod
    def calibrated(
        cls, encoder: Encoder, images: FloatArray, captions: Sequence[Sequence[str]], seed: int
    ) -> "EncoderTeacher":
        """Place the labels by pairs of a corpus: its images with their own and others' captions.

        `images` (N, D) are the encoder's vectors. Without captions the labels are placed around
        nothing, and nothing asks for them.
        """
        rng = np.random.default_rng(seed)
        captioned = np.array([row for row, own in enumerate(captions) if own], np.int64)
        if not len(captioned):
            return cls(encoder, 0.0, 1.0)
        rows = rng.permutation(captioned)[:_PAIRS].tolist()
        pictures = images[rows].astype(np.float32)
        texts = encoder.embed_texts([captions[row][0] for row in rows])
        cosines = pictures @ texts.T
        own = float(np.diag(cosines).mean())
        others = own
        if len(rows) > 1:
            others = float((cosines.sum() - np.trace(cosines)) / (len(rows) * (len(rows) - 1)))
        distance = max(own - others, _LEAST_DISTANCE)
        return cls(encoder, (own + others) / 2, distance / (2 * _MEAN_LOGIT))

    def score(self, images: Pixels, captions: Sequence[str]) -> FloatArray:
        """(P,) float32 in 0..1: similarity of image p and caption p."""
        return self.score_embedded(self.encoder.embed_images(images), captions)

    def score_embedded(self, pictures: FloatArray, captions: Sequence[str]) -> FloatArray:
        """(P,) likewise, of (P, D) vectors of images."""
        texts = self.encoder.embed_texts(captions)
        cosines = (pictures * texts).sum(1)
        scores: FloatArray = 1 / (1 + np.exp((self.centre - cosines) / self.spread))
        return scores.astype(np.float32)
