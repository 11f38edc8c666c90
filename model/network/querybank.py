"""Querybank normalisation: images that are near to any text lose what that nearness is worth.

In spaces of many dimensions some vectors, hubs, are the nearest of far more queries than others
are (Radovanović et al. 2010). How near an image is to the texts of a bank, of which none was
written for it, says how much of its similarity with a query means nothing (QB-Norm, Bogolin et al.
2022, "Cross modal retrieval with querybank normalisation").

Letters in shapes: N images, K texts of the bank, D width of the encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from model.network.weights_io import read_tensors
from schemas.errors import RefuseToStartError
from schemas.records import FloatArray

_VECTORS = "vectors"

# Images that are compared with a bank at a time. It is always as many, for a product of matrices of
# another shape may differ in its last digit, and scores must not depend on what is asked beside.
_BLOCK = 64


@dataclass(frozen=True, slots=True, eq=False)
class Querybank:
    """Texts that any image may be near to, and how much their nearness counts."""

    vectors: FloatArray
    """(K, D) float32 unit length"""
    temperature: float
    """Above 0: how much more the nearest texts count; 1 as much as in the encoder's softmax."""
    weight: float
    """Of an image's hubness in its score."""

    def hubness(self, embeddings: FloatArray, scale: float) -> FloatArray:
        """(N,) float32 logits: log mean exp(temperature · scale · cosine) / temperature.

        `embeddings` (N, D) float32 unit length, `scale` the encoder's logit scale.
        """
        sharpness = np.float32(self.temperature * scale)
        bank = self.vectors.T
        hubness = np.empty(len(embeddings), np.float32)
        block = np.zeros((_BLOCK, embeddings.shape[1]), np.float32)
        for start in range(0, len(embeddings), _BLOCK):
            own = embeddings[start : start + _BLOCK]
            block[: len(own)] = own
            logits = block @ bank
            logits *= sharpness
            # Without its peak taken out, a sum of large logits would overflow.
            peak = logits.max(axis=1)
            logits -= peak[:, None]
            np.exp(logits, out=logits)
            found = (peak + np.log(logits.mean(axis=1))) / np.float32(self.temperature)
            hubness[start : start + _BLOCK] = found[: len(own)]
        return hubness

    def numbers(self) -> dict[str, float]:
        """All but the vectors, for `load`."""
        return {"temperature": self.temperature, "weight": self.weight}

    def save(self, path: Path) -> None:
        """Write the vectors, in half precision, as the embeddings are that they compare with."""
        save_file({_VECTORS: torch.from_numpy(self.vectors).half()}, path)

    @classmethod
    def load(cls, path: Path, numbers: Mapping[str, float], width: int) -> "Querybank":
        """Read what `save` wrote; `RefuseToStartError` when it is damaged or D is not `width`."""
        vectors = read_tensors(path)[_VECTORS].float().numpy()
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise RefuseToStartError(
                f"the querybank {path} must be {width} wide as the codebook is, got a shape of "
                f"{vectors.shape}; restore the file or train again"
            )
        return cls(vectors, numbers["temperature"], numbers["weight"])
