"""The reader of a Qwen-VL: texts and pictures to the states of its last layer.

The paper's encoder and teacher are models of this kind, which generate nothing.

Letters in shapes: B rows padded to T tokens, N images, H hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.network.backbone import backbone_info
from model.network.encoders.pretrained import ready
from model.network.hub import load_weights
from model.network.inputs import ImagePreprocessor, VisualTokens, embed_rows, encode_images
from model.network.resize import Pixels
from model.network.tokenizer import IMAGE, load_tokenizer, token_id

# Weights that generate, which these checkpoints may lack.
_UNUSED = ("lm_head.weight",)


@dataclass(frozen=True, slots=True)
class ReadRows:
    """B rows as the model read them.

    `states` (B, T, H) after the last layer, `tokens` (B, T) int64, `mask` (B, T) bool, False on
    padding, which is on the right.
    """

    states: Tensor
    tokens: Tensor
    mask: Tensor


class VlReader:
    """A Qwen-VL with its tokenizer and picture processor."""

    def __init__(
        self,
        backbone: Any,
        tokenizer: PreTrainedTokenizerBase,
        preprocessor: ImagePreprocessor,
    ) -> None:
        info = backbone_info(backbone)
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.preprocessor = preprocessor
        self.width = info.hidden
        """H."""
        self._merge = info.merge
        self._pad = token_id(tokenizer, str(tokenizer.pad_token))
        self._image = token_id(tokenizer, IMAGE)

    @classmethod
    def load(cls, model_class: Any, folder: Path, **pixels: int) -> "VlReader":
        """Read one from a folder; `pixels` are bounds of `ImagePreprocessor.pretrained`.

        `RefuseToStartError` for a folder that does not hold all of a model of that class.
        """
        tokenizer = load_tokenizer(folder)
        preprocessor = ImagePreprocessor.pretrained(folder, **pixels)
        backbone = ready(load_weights(model_class, folder, unused=_UNUSED, dtype="auto"))
        return cls(backbone, tokenizer, preprocessor)

    def text(self, text: str, limit: int) -> list[int]:
        """At most `limit` tokens of a text, in which the name of a special token is just a text."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"][:limit])

    def template(self, text: str) -> list[int]:
        """Tokens of a text in which special tokens are meant."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def see(self, images: Pixels) -> tuple[VisualTokens, list[list[int]]]:
        """The vision tower's view of N images, and for each the image tokens that stand for it."""
        patches = self.preprocessor(images)
        visual = encode_images(self.backbone, patches)
        return visual, [[self._image] * count for count in patches.token_counts(self._merge)]

    @torch.inference_mode()
    def read(self, rows: Sequence[Sequence[int]], visual: VisualTokens | None) -> ReadRows:
        """The states of B rows; `visual` holds the images of those with image tokens, in order."""
        inputs = embed_rows(self.backbone, rows, visual, image_token=self._image, pad=self._pad)
        states = self.backbone.model.language_model(
            inputs_embeds=inputs.embeddings,
            attention_mask=inputs.mask.long(),
            position_ids=inputs.positions,
            use_cache=False,
        ).last_hidden_state
        return ReadRows(states, inputs.tokens, inputs.mask)
