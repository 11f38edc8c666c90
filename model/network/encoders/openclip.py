"""OpenCLIP (Cherti et al. 2023): checkpoints with an `open_clip_config.json`, read by `open_clip`.

It knows more towers than `transformers`: ConvNeXt, EVA-02, CoCa, texts of other languages.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model.network.encoders.pretrained import ready
from model.network.hub import loading
from model.network.resize import Pixels
from schemas.errors import RefuseToStartError

# What its own tokenizer takes for control tokens, wherever a text spells them.
_CONTROL_WORDS = ("<start_of_text>", "<end_of_text>", "<|startoftext|>", "<|endoftext|>")


class OpenClipTowers:
    """A model of `open_clip` with the transform and the tokenizer that its configuration names."""

    def __init__(self, model: Any, transform: Any, tokenizer: Any) -> None:
        self.model = model
        self.transform = transform
        self.tokenizer = tokenizer
        self.scale = float(model.logit_scale.exp())
        bias = getattr(model, "logit_bias", None)
        self.bias = 0.0 if bias is None else float(bias)
        size = model.visual.image_size
        self.side_px = int(size if isinstance(size, int) else max(size))
        with torch.inference_mode():
            self.width = int(self.text_features(["a"]).shape[1])

    @classmethod
    def load(cls, folder: Path) -> "OpenClipTowers":
        """Read a checkpoint from a folder, with all of its weights."""
        open_clip = require_open_clip()
        name = f"local-dir:{folder}"
        with loading(folder):
            try:
                # Pickled weights are read without running what is pickled with them.
                model, _, transform = open_clip.create_model_and_transforms(
                    name, require_pretrained=True, weights_only=True
                )
                tokenizer = open_clip.get_tokenizer(name)
            except (RuntimeError, KeyError, TypeError) as error:
                raise ValueError(str(error)) from error
        return cls(ready(model), transform, tokenizer)

    def image_features(self, images: Pixels) -> Tensor:
        """(N, D) of N images, by the checkpoint's own transform."""
        pixels = torch.stack([self.transform(Image.fromarray(image)) for image in images])
        features: Tensor = self.model.encode_image(pixels.to(self.model.logit_scale))
        return features

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(B, D) of B texts, cut at the model's context."""
        plain = [_plain(text) for text in texts]
        tokens = self.tokenizer(plain).to(self.model.logit_scale.device)
        features: Tensor = self.model.encode_text(tokens)
        return features


def _plain(text: str) -> str:
    """The text with control words spelled apart: the vector is read at the first end."""
    for word in _CONTROL_WORDS:
        text = text.replace(word, word.strip("<|>"))
    return text


def require_open_clip() -> ModuleType:
    """The `open_clip` module; `RefuseToStartError` when it is not installed."""
    try:
        import open_clip
    except ImportError as error:
        raise RefuseToStartError(
            "this encoder is read by the package open_clip_torch, which is not installed "
            f"({error}); install it with: pip install 'sigma-stream[encoders]'"
        ) from error
    module: ModuleType = open_clip
    return module
