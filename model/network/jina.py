"""The paper's encoder and teacher: jina-embeddings-v4 and jina-reranker-m0, from a hub name or a folder.

Both come with their own modelling code, which `transformers` runs only when told to: name models that you trust.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel

from model.network.resize import Pixels
from schemas.records import FloatArray

BATCH = 16


class JinaEncoder:
    """`Encoder` of the `qwen-*` profiles: 2048 wide, text and images in one space (paper, section 4.1)."""

    def __init__(self, source: str | Path, *, width: int = 2048, scale: float = 50.0) -> None:
        self.width = width
        self.scale = scale
        self.model: Any = _load(source)

    def embed_images(self, images: Pixels) -> FloatArray:
        """(N, D) float32 unit vectors of N images."""
        pictures = [Image.fromarray(image) for image in images]
        parts = [
            self.model.encode_image(images=pictures[start : start + BATCH], task="retrieval")
            for start in range(0, len(pictures), BATCH)
        ]
        return _unit(parts, self.width)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors of B texts."""
        parts = [
            self.model.encode_text(
                texts=list(texts[start : start + BATCH]), task="retrieval", prompt_name="query"
            )
            for start in range(0, len(texts), BATCH)
        ]
        return _unit(parts, self.width)


class JinaTeacher:
    """`Teacher` of the `qwen-*` profiles: scores (image, caption) pairs jointly (paper, equation 7)."""

    def __init__(self, source: str | Path) -> None:
        self.model: Any = _load(source)

    def score(self, images: Pixels, captions: Sequence[str]) -> FloatArray:
        """(P,) float32 in 0..1: similarity of image p and caption p."""
        pairs = [
            [Image.fromarray(image), caption]
            for image, caption in zip(images, captions, strict=True)
        ]
        parts = [
            np.atleast_1d(
                np.asarray(
                    self.model.compute_score(
                        pairs[start : start + BATCH], query_type="image", doc_type="text"
                    )
                )
            )
            for start in range(0, len(pairs), BATCH)
        ]
        return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, dtype=np.float32)


def _load(source: str | Path) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    model: Any = AutoModel.from_pretrained(str(source), trust_remote_code=True, dtype=kind)
    return model.to(device).eval()


def _unit(parts: Sequence[Sequence[torch.Tensor]], width: int) -> FloatArray:
    rows = [
        np.asarray(torch.as_tensor(row).float().cpu())[:width] for part in parts for row in part
    ]
    if not rows:
        return np.zeros((0, width), dtype=np.float32)
    stacked = np.stack(rows).astype(np.float32)
    unit: FloatArray = stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)
    return unit
