"""CLIP (Radford et al. 2021) as `transformers` saves it; many OpenCLIP models come so too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from model.network.encoders.pretrained import load_whole
from model.network.hub import loading
from model.network.resize import Pixels


class ClipTowers:
    """A `CLIPModel` with the image processor and the tokenizer that it was saved with."""

    bias = 0.0

    def __init__(self, model: Any, processor: Any, tokenizer: Any) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        self.width = int(model.config.projection_dim)
        self.scale = float(model.logit_scale.exp())
        self.side_px = int(model.config.vision_config.image_size)
        self.limit = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, folder: Path) -> "ClipTowers":
        """Read model, processor and tokenizer from a folder."""
        model = load_whole(CLIPModel, folder)
        with loading(folder):
            processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return cls(model, processor, tokenizer)

    def image_features(self, images: Pixels) -> Tensor:
        """(N, D) of N images: resized, cropped and normalised as the processor was saved."""
        pixels = processed_pixels(self.processor, images)
        output = self.model.get_image_features(pixel_values=pixels.to(self.model.logit_scale))
        return output.pooler_output

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(B, D) of B texts, cut at the model's number of positions."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.limit,
            return_tensors="pt",
            # A text that spells a control token stays text: the vector is read at the first end.
            split_special_tokens=True,
        ).to(self.model.device)
        return self.model.get_text_features(**tokens).pooler_output


def processed_pixels(processor: Any, images: Pixels) -> Tensor:
    """(N, 3, side, side) as the image processor of a checkpoint makes them."""
    pixels: Tensor = processed_images(processor, images)["pixel_values"]
    return pixels


def processed_images(processor: Any, images: Pixels) -> Any:
    """What the image processor of a checkpoint makes of images, by name.

    The order of the axes is told: left to guess, it takes a picture of three or fewer rows for one
    of three channels.
    """
    # Copied: pictures of the store cannot be written to, and torch warns of such arrays.
    own = [np.array(image) for image in images]
    return processor(images=own, return_tensors="pt", input_data_format="channels_last")
