"""jina-reranker-m0, the paper's teacher (appendix E), without its modelling code.

It is a Qwen2-VL that reads a document and a query, and a perceptron on the state of the token
behind them: score = sigmoid(W2 relu(W1 h + b1) + b2 - 2.65). Here the document is the picture, and
the query the caption, for that is the way that people search.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from model.network.encoders.pretrained import ready
from model.network.hub import loading, require_kind
from model.network.resize import Pixels
from model.network.tokenizer import VISION_END, VISION_START
from model.network.vl_reader import VlReader
from model.network.weights_io import load_exactly
from schemas.errors import RefuseToStartError
from schemas.records import FloatArray

# Id of the token whose state is scored, as published.
_SCORE_TOKEN = 100

# Taken off the head's number before the sigmoid, as published: 0.5 is then as likely as not.
_LOGIT_BIAS = 2.65

# The published prompt, before the picture, and from there to the caption.
_BEFORE_IMAGE = f"**Document**:\n{VISION_START}"
_BEFORE_TEXT = "\n**Query**:\n"

# Tokens of a caption with what precedes it: the published limit of a query.
_TEXT_LIMIT = 512

# The published bounds of pictures, which its code sets whatever the processor says.
_PIXELS = {"min_pixels": 3136, "max_pixels": 602_112}

# Pairs at once: a picture may have 768 tokens.
_BATCH = 8

# What the head's weights are called in the checkpoint.
_HEAD = "score."


class RerankerTeacher:
    """The `Teacher` of the `qwen-*` profiles: scores pairs of picture and caption jointly."""

    def __init__(self, reader: VlReader, head: nn.Module) -> None:
        self._reader = reader
        self._head = head

    @classmethod
    def load(cls, folder: Path) -> "RerankerTeacher":
        """Read it from a folder; `RefuseToStartError` when that does not hold all of it."""
        head = _read_head(folder)
        return cls(VlReader.load(Qwen2VLForConditionalGeneration, folder, **_PIXELS), head)

    def score(self, images: Pixels, captions: Sequence[str]) -> FloatArray:
        """(P,) float32 in 0..1: similarity of image p and caption p."""
        scores = [np.zeros(0, dtype=np.float32)]
        for start in range(0, len(captions), _BATCH):
            end = start + _BATCH
            scores.append(self._score_batch(images[start:end], captions[start:end]))
        return np.concatenate(scores)

    @torch.inference_mode()
    def _score_batch(self, images: Pixels, captions: Sequence[str]) -> FloatArray:
        before = self._reader.template(_BEFORE_IMAGE)
        behind = self._reader.template(VISION_END)
        visual, spans = self._reader.see(images)
        rows: list[list[int]] = []
        for span, caption in zip(spans, captions, strict=True):
            # One piece, for tokens may reach across the two.
            text = self._reader.text(_BEFORE_TEXT + caption, _TEXT_LIMIT)
            rows.append([*before, *span, *behind, *text, _SCORE_TOKEN])
        read = self._reader.read(rows, visual)
        last = read.mask.sum(1) - 1
        states = read.states[torch.arange(len(rows), device=last.device), last]  # (B, H)
        # The head may have been saved in another number format than the layers before it.
        states = states.to(next(self._head.parameters()))
        logits: Tensor = self._head(states).squeeze(-1).float()
        scores: FloatArray = torch.sigmoid(logits - _LOGIT_BIAS).cpu().numpy()
        return scores


def require_reranker(folder: Path) -> None:
    """`RefuseToStartError` unless a folder holds a Qwen2-VL with a head for scores."""
    require_kind(folder, Qwen2VLForConditionalGeneration)
    if not _head_files(folder):
        raise RefuseToStartError(
            f"{folder} must hold the weights {_HEAD}* of jina-reranker-m0, got none; name a teacher"
            " that scores pairs, such as jinaai/jina-reranker-m0"
        )


def _head_files(folder: Path) -> dict[str, Path]:
    """The names of the head's weights with the files that hold them."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with loading(folder), safe_open(file, framework="pt") as tensors:
            found |= {name: file for name in tensors.keys() if name.startswith(_HEAD)}  # noqa: SIM118
    return found


def _read_head(folder: Path) -> nn.Module:
    """The perceptron, of the sizes and the number type that its weights have."""
    require_reranker(folder)
    weights: dict[str, Tensor] = {}
    for name, file in _head_files(folder).items():
        with safe_open(file, framework="pt") as tensors:
            weights[name.removeprefix(_HEAD)] = tensors.get_tensor(name)
    first = weights.get("0.weight")
    if first is None or first.ndim != 2:
        raise RefuseToStartError(
            f"{folder} must hold the weight {_HEAD}0.weight of a linear layer, got "
            f"{', '.join(sorted(weights))}; give the complete folder"
        )
    width, hidden = int(first.shape[0]), int(first.shape[1])
    head = nn.Sequential(nn.Linear(hidden, width), nn.ReLU(), nn.Linear(width, 1))
    head = head.to(first.dtype)
    load_exactly(head, weights, folder)
    module: nn.Module = ready(head)
    return module
