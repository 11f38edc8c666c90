"""The paper's encoder and teacher: jina-embeddings-v4 and jina-reranker-m0 (appendix E).

Each is read from a hub name or a folder, and comes with modelling code of its own, which
`transformers` executes. Name only models that you trust; a revision pins the code too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.network.hub import loading, open_snapshot
from model.network.resize import Pixels
from schemas.records import FloatArray

# Images, texts or pairs at once; both models are large, so a batch is small.
BATCH = 16

# Width of jina-embeddings-v4; shorter prefixes of its vectors are embeddings too.
WIDTH = 2048

# What turns a cosine into a logit: the inverse of a temperature of 0.02.
SCALE = 50.0

# A vector of zeros stays one instead of becoming NaN.
_SMALLEST_NORM = 1e-12


class JinaEncoder:
    """The `Encoder` of the `qwen-*` profiles: text and images in one space."""

    def __init__(
        self, model: Any, *, width: int = WIDTH, scale: float = SCALE, source: str = ""
    ) -> None:
        """`width` cuts the model's vectors. `source`: the folder, or the hub name and revision."""
        self.source = source
        self.width = width
        self.scale = scale
        self.model = model

    @classmethod
    def load(cls, source: str, *, width: int = WIDTH) -> "JinaEncoder":
        """Read the model from a hub name or a folder. Errors are those of `open_snapshot`."""
        snapshot = open_snapshot(source, "encoder", has_code=True)
        return cls(_load_model(snapshot.folder), width=width, source=snapshot.source)

    def embed_images(self, images: Pixels) -> FloatArray:
        """(N, D) float32 unit vectors of N images."""
        vectors: list[FloatArray] = []
        for start in range(0, len(images), BATCH):
            pictures = [Image.fromarray(image) for image in images[start : start + BATCH]]
            vectors += _arrays(self.model.encode_image(images=pictures, task="retrieval"))
        return _unit_rows(vectors, self.width)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors of B texts."""
        vectors: list[FloatArray] = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            vectors += _arrays(
                self.model.encode_text(texts=batch, task="retrieval", prompt_name="query")
            )
        return _unit_rows(vectors, self.width)


class JinaTeacher:
    """The `Teacher` of the `qwen-*` profiles: scores (image, caption) pairs jointly."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def load(cls, folder: Path) -> "JinaTeacher":
        """Read the model from a folder."""
        return cls(_load_model(folder))

    def score(self, images: Pixels, captions: Sequence[str]) -> FloatArray:
        """(P,) float32 in 0..1: similarity of image p and caption p."""
        pairs: list[list[object]] = []
        for image, caption in zip(images, captions, strict=True):
            pairs.append([Image.fromarray(image), caption])
        scores = [np.zeros(0, dtype=np.float32)]
        for start in range(0, len(pairs), BATCH):
            scored = self.model.compute_score(
                pairs[start : start + BATCH], query_type="image", doc_type="text"
            )
            # The score of a single pair comes as a plain number.
            scores.append(np.atleast_1d(np.asarray(scored)).astype(np.float32))
        return np.concatenate(scores)


def _load_model(folder: Path) -> Any:
    from transformers import AutoModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with loading(folder):
        model: Any = AutoModel.from_pretrained(str(folder), trust_remote_code=True, dtype=dtype)
    return model.to(device).eval()


def _arrays(vectors: Sequence[object]) -> list[FloatArray]:
    """Vectors as the model gives them, tensors or arrays of any type, as float32 arrays."""
    return [torch.as_tensor(vector).float().cpu().numpy() for vector in vectors]


def _unit_rows(vectors: Sequence[FloatArray], width: int) -> FloatArray:
    """(N, width) float32: the vectors cut at `width`, then scaled to unit length."""
    if not vectors:
        return np.zeros((0, width), dtype=np.float32)
    rows = np.stack([vector[:width] for vector in vectors])
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: FloatArray = rows / np.maximum(norms, _SMALLEST_NORM)
    return unit
