"""The backbone: `Qwen2_5_VLForConditionalGeneration` of a profile, its image input and its positions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from model.network.profiles import TinySize
from model.network.resize import Pixels, resize
from model.network.tokenizer import END, IMAGE, PAD, VIDEO, VISION_END, VISION_START, token_id
from schemas.errors import RefuseToStartError


def tiny_config(size: TinySize, tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    """A small configuration of the real class.

    The head width is hidden/heads (the implementation ignores `head_dim`) and the three rotary sections sum to half of it.
    """
    if size.hidden % size.heads:
        raise RefuseToStartError(
            f"hidden width {size.hidden} is not a multiple of {size.heads} heads; change the profile"
        )
    half = size.hidden // size.heads // 2
    spatial = half * 3 // 8
    token = {name: token_id(tokenizer, text) for name, text in _TOKEN_NAMES.items()}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": size.feed_forward,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * spatial, spatial, spatial],
            },
            "bos_token_id": None,
            "eos_token_id": token["eos"],
            "pad_token_id": token["pad"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_feed_forward,
            "num_heads": size.vision_heads,
            "patch_size": size.patch_px,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": size.image_px * 2,
            "fullatt_block_indexes": list(range(size.vision_depth)),
            "out_hidden_size": size.hidden,
        },
        image_token_id=token["image"],
        video_token_id=token["video"],
        vision_start_token_id=token["vision_start"],
        vision_end_token_id=token["vision_end"],
        tie_word_embeddings=True,
    )


_TOKEN_NAMES = {
    "eos": END,
    "pad": PAD,
    "image": IMAGE,
    "video": VIDEO,
    "vision_start": VISION_START,
    "vision_end": VISION_END,
}


@dataclass(frozen=True, slots=True)
class ImagePatches:
    """Images as Qwen2.5-VL takes them: `patches` (P, 3·2·p·p) float32 and `grid` (N, 3) int64, the patches of each axis."""

    patches: Tensor
    grid: Tensor

    def to(self, device: torch.device) -> "ImagePatches":
        """The same on another device."""
        return ImagePatches(patches=self.patches.to(device), grid=self.grid.to(device))

    def tokens(self, merge: int) -> list[int]:
        """How many image tokens each of the N images takes in the prompt."""
        return [int(n) for n in (self.grid.prod(1) // merge**2)]


class ImagePreprocessor:
    """Turns pixels into `ImagePatches` with the model family's own image processor.

    The `tiny` profile squeezes every image into one fixed square, so that shapes are static; the others keep the aspect
    ratio as Qwen2.5-VL does.
    """

    def __init__(
        self, processor: Callable[..., Mapping[str, Tensor]] | None, side_px: int, patch_px: int
    ) -> None:
        self._processor = processor
        self.side_px = side_px
        self.patch_px = patch_px

    @classmethod
    def tiny(cls, size: TinySize) -> "ImagePreprocessor":
        """For the fixed square of the `tiny` profile."""
        return cls(None, size.image_px, size.patch_px)

    @classmethod
    def pretrained(cls, source: str | Path) -> "ImagePreprocessor":
        """With the processor saved beside pretrained weights."""
        return cls(AutoImageProcessor.from_pretrained(str(source)), 0, 0)

    def __call__(self, images: Pixels) -> ImagePatches:
        """N images → patches and grid."""
        if self._processor is not None:
            made = self._processor(images=list(images), return_tensors="pt")
            return ImagePatches(patches=made["pixel_values"], grid=made["image_grid_thw"])
        square = np.stack([resize(image, self.side_px) for image in images])
        return self.from_squares(square)

    def from_squares(self, square: np.ndarray) -> ImagePatches:
        """(N, side, side, 3) uint8 → patches in the processor's order (2×2 merged blocks together) and grid."""
        count, side = square.shape[0], square.shape[1]
        cells, patch = side // self.patch_px, self.patch_px
        pixels = torch.from_numpy(square).float().div_(127.5).sub_(1.0)
        blocks = pixels.view(count, cells // 2, 2, patch, cells // 2, 2, patch, 3)
        blocks = blocks.permute(
            0, 1, 4, 2, 5, 7, 3, 6
        )  # image, block row, block column, row, column, channel, y, x
        frames = blocks.unsqueeze(6).expand(
            -1, -1, -1, -1, -1, -1, 2, -1, -1
        )  # a still image is two equal frames
        return ImagePatches(
            patches=frames.reshape(count * cells * cells, 3 * 2 * patch * patch),
            grid=torch.tensor([[1, cells, cells]]).repeat(count, 1),
        )


def rope_positions(
    tokens: Tensor, mask: Tensor, grid: Tensor | None, image_token: int, merge: int
) -> Tensor:
    """(3, B, T) int64 positions of right-padded rows that hold at most one image each (its tokens contiguous).

    Text counts up by one in all three axes; an image's tokens spread over (time, row, column) from where it starts and the
    text goes on after its longest side. The same as `get_rope_index`, without a Python loop over rows. Passing positions
    explicitly matters: without them the model falls back to plain counting and the logits change silently.
    """
    length = tokens.shape[1]
    flat = (mask.long().cumsum(1) - 1).clamp(min=0)
    positions = flat.unsqueeze(0).repeat(3, 1, 1)
    image = tokens == image_token
    if grid is None or not bool(image.any()):
        return positions
    rows = image.any(1).nonzero().squeeze(1)
    high, wide = grid[:, 1] // merge, grid[:, 2] // merge
    start = image[rows].float().argmax(1)
    nth = torch.arange(length, device=tokens.device).unsqueeze(0) - start.unsqueeze(1)
    inside = image[rows]
    count = (high * wide).unsqueeze(1)
    row, column = nth // wide.unsqueeze(1), nth % wide.unsqueeze(1)
    base = flat[rows, start].unsqueeze(1)
    after = flat[rows] - count + torch.maximum(high, wide).unsqueeze(1)
    for axis, offset in enumerate((torch.zeros_like(row), row, column)):
        moved = torch.where(nth >= count, after, flat[rows])
        positions[axis, rows] = torch.where(inside, base + offset, moved)
    return positions


@dataclass(frozen=True, slots=True)
class Widths:
    """Numbers of a backbone's configuration: hidden width, patches merged per side, padding token."""

    hidden: int
    merge: int
    pad: int


def widths(backbone: Qwen2_5_VLForConditionalGeneration) -> Widths:
    """The numbers that callers need of a backbone."""
    config: Any = backbone.config
    return Widths(
        int(config.text_config.hidden_size),
        int(config.vision_config.spatial_merge_size),
        int(config.text_config.pad_token_id or 0),
    )


def fresh_backbone(
    size: TinySize, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights of the `tiny` profile; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(tiny_config(size, tokenizer))


def pretrained_backbone(
    source: str | Path, dtype: torch.dtype
) -> Qwen2_5_VLForConditionalGeneration:
    """Pretrained Qwen2.5-VL from a folder or a hub name."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(str(source), dtype=dtype)


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Right-pad token rows: (B, T) int64 and (B, T) bool mask."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return tokens, mask
