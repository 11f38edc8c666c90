"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025) as `transformers` saves them.

A SigLIP 2 model with a fixed resolution has the classes of SigLIP and a tokenizer of its own; one
with a flexible resolution ("NaFlex") has classes of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, Siglip2Model, SiglipModel

from model.network.encoders.clip import processed_images, processed_pixels
from model.network.encoders.pretrained import load_whole
from model.network.hub import loading
from model.network.resize import Pixels


class SiglipTowers:
    """A SigLIP or SigLIP 2 model with its image processor and tokenizer."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        vision = model.config.vision_config
        self.width = int(vision.hidden_size)
        self.scale = float(model.logit_scale.exp())
        self.bias = float(model.logit_bias)
        self.flexible = isinstance(model, Siglip2Model)
        if self.flexible:
            # The longer side of a square picture of as many patches as the processor allows.
            patches = int(processor.max_num_patches)
            self.side_px = int(patches**0.5) * int(processor.patch_size)
        else:
            self.side_px = int(vision.image_size)
        self.limit = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, folder: Path) -> "SiglipTowers":
        """Read a model with a fixed resolution from a folder."""
        return _load(SiglipModel, folder)

    @classmethod
    def load_flexible(cls, folder: Path) -> "SiglipTowers":
        """Read a SigLIP 2 model with a flexible resolution from a folder."""
        return _load(Siglip2Model, folder)

    def image_features(self, images: Pixels) -> Tensor:
        """(N, D) of N images: resized and normalised as the processor was saved."""
        if not self.flexible:
            pixels = processed_pixels(self.processor, images).to(self.model.logit_scale)
            return self.model.get_image_features(pixel_values=pixels).pooler_output
        patches = processed_images(self.processor, images).to(self.model.device)
        return self.model.get_image_features(
            pixel_values=patches["pixel_values"].to(self.model.logit_scale),
            pixel_attention_mask=patches["pixel_attention_mask"],
            spatial_shapes=patches["spatial_shapes"],
        ).pooler_output

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(B, D) of B texts in small letters, padded to the length that the model was trained with.

        The vector is read at the last position, so another length gives another vector; and the
        model sees no mask, because it was trained without one.
        """
        tokens = self.tokenizer(
            [text.lower() for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.limit,
            return_tensors="pt",
            split_special_tokens=True,
        ).to(self.model.device)
        return self.model.get_text_features(input_ids=tokens["input_ids"]).pooler_output


def _load(model_class: Any, folder: Path) -> SiglipTowers:
    model = load_whole(model_class, folder)
    with loading(folder):
        processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return SiglipTowers(model, processor, tokenizer)
