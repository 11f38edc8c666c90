"""jina-embeddings-v4 (Günther et al. 2025), the paper's encoder, without its modelling code.

With the adapter for retrieval merged into the weights it is a plain Qwen2.5-VL, published as
`jinaai/jina-embeddings-v4-vllm-retrieval`: the vector of a text is the mean of the last layer over
all of its tokens, that of a picture the mean over the picture's tokens with their two marks. A
shorter prefix of a vector is an embedding too (Matryoshka).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from model.network.hub import read_config
from model.network.resize import Pixels
from model.network.tokenizer import VISION_END, VISION_START, token_id
from model.network.vl_reader import ReadRows, VlReader
from schemas.errors import RefuseToStartError

# What queries begin with, as published; a caption is asked like a query.
_QUERY = "Query: "

# The published prompt of a picture, around its image tokens.
_BEFORE_IMAGE = f"<|im_start|>user\n{VISION_START}"
_BEHIND_IMAGE = f"{VISION_END}Describe the image.<|im_end|>\n"

# Tokens of a text: the published limit is 32,768, which no query and no caption needs.
_TEXT_LIMIT = 1024

# Rows at once: a picture may have 768 tokens.
_BATCH = 8

# What turns a cosine into a logit: the inverse of a temperature of 0.02.
_SCALE = 50.0

# Class of the original checkpoint, whose adapters are files of their own.
_UNMERGED = "JinaEmbeddingsV4Model"


class JinaV4Towers:
    """One model that reads both."""

    bias = 0.0
    scale = _SCALE

    def __init__(self, reader: VlReader) -> None:
        self._reader = reader
        self.width = reader.width
        self.side_px = reader.preprocessor.side_px
        self._start = token_id(reader.tokenizer, VISION_START)
        self._end = token_id(reader.tokenizer, VISION_END)

    @classmethod
    def load(cls, folder: Path) -> "JinaV4Towers":
        """Read the merged checkpoint from a folder.

        `RefuseToStartError` for the original, whose adapters are not merged, and for a folder that
        does not hold all of the model.
        """
        require_merged(folder)
        return cls(VlReader.load(Qwen2_5_VLForConditionalGeneration, folder))

    def cut(self, width: int) -> None:
        """Give vectors of at most that width from here on."""
        self.width = min(width, self.width)

    def image_features(self, images: Pixels) -> Tensor:
        """(N, D) means over the tokens from the one mark of a picture to the other."""
        before = self._reader.template(_BEFORE_IMAGE)
        behind = self._reader.template(_BEHIND_IMAGE)
        features: list[Tensor] = []
        for start in range(0, len(images), _BATCH):
            visual, spans = self._reader.see(images[start : start + _BATCH])
            read = self._reader.read([[*before, *span, *behind] for span in spans], visual)
            features.append(self._means(read, self._picture_mask(read.tokens)))
        return torch.cat(features)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(B, D) means over all tokens."""
        rows = [self._reader.text(_QUERY + text, _TEXT_LIMIT) for text in texts]
        features: list[Tensor] = []
        for start in range(0, len(rows), _BATCH):
            read = self._reader.read(rows[start : start + _BATCH], None)
            features.append(self._means(read, read.mask))
        return torch.cat(features)

    def _picture_mask(self, tokens: Tensor) -> Tensor:
        """(B, T) bool: where the picture is, its marks among it."""
        begun = (tokens == self._start).cumsum(1)
        ended_before = (tokens == self._end).cumsum(1) - (tokens == self._end).long()
        return (begun > 0) & (ended_before == 0)

    def _means(self, read: ReadRows, mask: Tensor) -> Tensor:
        """(B, D) float32 means of the states that a mask (B, T) chooses, cut at the width."""
        chosen = mask.unsqueeze(-1)
        total = (read.states.float() * chosen).sum(1)
        return (total / chosen.sum(1))[:, : self.width]


def require_merged(folder: Path) -> None:
    """`RefuseToStartError` for a folder of jina-embeddings-v4 with adapters beside the weights."""
    unmerged = _UNMERGED in (read_config(folder).get("architectures") or ())
    if unmerged or (folder / "adapters").is_dir() or (folder / "adapter_config.json").is_file():
        raise RefuseToStartError(
            f"{folder} must hold jina-embeddings-v4 with its adapter for retrieval merged, got the "
            "adapters as files of their own; take jinaai/jina-embeddings-v4-vllm-retrieval, or "
            "merge them with peft's merge_and_unload and save the result"
        )
