"""The inputs of the backbone: images as patches and visual tokens, and token rows.

Letters in shapes: N images, P patches of all images together, p the side of a patch in pixels, B
token rows padded to T tokens, H hidden width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model.network.backbone import FRAMES, MERGE, backbone_info
from model.network.hub import loading
from model.network.profiles import TinySize
from model.network.resize import Pixels, narrowed, resize
from schemas.errors import RefuseToStartError
from schemas.records import ByteArray

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

# Beside the weights, written by `save_pretrained`.
_PROCESSOR = "preprocessor_config.json"

# The family's image processor refuses pictures that are longer than 200 times their width.
_LONGEST_RATIO = 190


@dataclass(frozen=True, slots=True)
class ImagePatches:
    """N images as Qwen2.5-VL takes them: `patches` (P, 3·2·p·p) float32 and `grid` (N, 3) int64.

    A row of the grid counts an image's patches along (time, height, width).
    """

    patches: Tensor
    grid: Tensor

    def to(self, device: torch.device) -> "ImagePatches":
        """The same on another device."""
        return ImagePatches(patches=self.patches.to(device), grid=self.grid.to(device))

    def token_counts(self, merge: int) -> list[int]:
        """How many image tokens each of the N images takes in the prompt."""
        counts = self.grid.prod(1) // merge**2
        return [int(count) for count in counts]


class ImagePreprocessor:
    """Turns pixels into `ImagePatches`.

    The `tiny` profile squeezes every image into one fixed square, so that shapes are static; the
    others keep the aspect ratio, with the model family's own image processor.
    """

    def __init__(self, processor: Any, side_px: int, patch_px: int) -> None:
        """`side_px`: of the square that a picture of the most pixels would be.

        The `processor` of a pretrained model cuts patches by itself.
        """
        self._processor = processor
        self.side_px = side_px
        self.patch_px = patch_px

    @classmethod
    def tiny(cls, size: TinySize) -> "ImagePreprocessor":
        """For the fixed square of the `tiny` profile."""
        return cls(None, size.image_px, size.patch_px)

    @classmethod
    def pretrained(
        cls, folder: Path, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> "ImagePreprocessor":
        """With the processor saved beside pretrained weights, and the bounds of a profile.

        Without a bound that of the processor holds.
        """
        if not (folder / _PROCESSOR).is_file():
            raise RefuseToStartError(
                f"{folder} must hold {_PROCESSOR}, which says how pictures are read, got none; give"
                " the complete folder"
            )
        from transformers import AutoImageProcessor

        with loading(folder):
            processor: Any = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
            size = dict(processor.size)
            most = max_pixels or int(size["longest_edge"])
            least = min(min_pixels or int(size["shortest_edge"]), most)
            # The family's words for the bounds of the area, in spite of their names.
            processor.size = {"shortest_edge": least, "longest_edge": most}
            return cls(processor, math.ceil(math.sqrt(most)), int(processor.patch_size))

    def save(self, folder: Path) -> None:
        """Write the processor of a pretrained model, for `pretrained`; one of `tiny` needs none."""
        if self._processor is not None:
            self._processor.save_pretrained(str(folder))

    @property
    def fixed_size(self) -> bool:
        """Whether every image becomes the same number of tokens."""
        return self._processor is None

    def __call__(self, images: Pixels) -> ImagePatches:
        """Patches of N images of any sizes."""
        if self._processor is not None:
            # The order of the axes is told: left to guess, the processor takes a picture of three
            # or fewer rows for one of three channels.
            # PyTorch takes no array that it may not write to, as those of the store are.
            writable = [
                np.require(narrowed(image, _LONGEST_RATIO), requirements="W") for image in images
            ]
            processed = self._processor(
                images=writable,
                return_tensors="pt",
                input_data_format="channels_last",
            )
            return ImagePatches(processed["pixel_values"], processed["image_grid_thw"])
        return self.from_squares(np.stack([resize(image, self.side_px) for image in images]))

    def from_squares(self, squares: ByteArray) -> ImagePatches:
        """Patches of (N, side, side, 3) uint8 squares, in the order of the family's processor."""
        count, side = squares.shape[:2]
        patch = self.patch_px
        cells = side // patch
        pixels = torch.from_numpy(squares).float().div_(127.5).sub_(1.0)
        blocks = pixels.view(
            count, cells // MERGE, MERGE, patch, cells // MERGE, MERGE, patch, 3
        )  # image, block row, row, y, block column, column, x, channel
        blocks = blocks.permute(
            0, 1, 4, 2, 5, 7, 3, 6
        )  # image, block row, block column, row, column, channel, y, x
        frames = blocks.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, FRAMES, -1, -1)
        return ImagePatches(
            patches=frames.reshape(count * cells * cells, 3 * FRAMES * patch * patch),
            grid=torch.tensor([[1, cells, cells]]).repeat(count, 1),
        )


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """N images after the vision tower.

    `states` (visual tokens of all images, H), `grid` (N, 3) int64 as in `ImagePatches`.
    """

    states: Tensor
    grid: Tensor


def interleaved(
    images: VisualTokens | None, vectors: VisualTokens, is_vector: Sequence[bool], merge: int
) -> VisualTokens:
    """Visual tokens of a batch in row order, out of those of its images and those of its vectors.

    `is_vector` (N,) tells which the rows have.
    """
    if images is None:
        return vectors
    ends: list[list[Tensor]] = []
    for visual in (images, vectors):
        counts = (visual.grid.prod(1) // merge**2).tolist()
        ends.append(list(visual.states.split(counts)))
    places = [0, 0]
    states: list[Tensor] = []
    grids: list[Tensor] = []
    for flag in is_vector:
        kind = int(flag)
        states.append(ends[kind][places[kind]].to(images.states))
        grids.append((vectors if flag else images).grid[places[kind]].cpu())
        places[kind] += 1
    return VisualTokens(torch.cat(states), torch.stack(grids))


@dataclass(frozen=True, slots=True)
class EmbeddedRows:
    """B token rows as the language model takes them.

    `tokens` (B, T) int64, `mask` (B, T) bool, `embeddings` (B, T, H), `positions` (3, B, T) int64.
    """

    tokens: Tensor
    mask: Tensor
    embeddings: Tensor
    positions: Tensor

    def without(self, hidden: Sequence[Sequence[int]]) -> "EmbeddedRows":
        """The rows with zeros at those places of each, where a model is not to see what stands."""
        places = [(row, place) for row, own in enumerate(hidden) for place in own]
        if not places:
            return self
        rows, columns = zip(*places, strict=True)
        hides = torch.zeros_like(self.mask)
        hides[list(rows), list(columns)] = True
        return replace(self, embeddings=self.embeddings.masked_fill(hides.unsqueeze(-1), 0.0))

    def first(self, count: int) -> "EmbeddedRows":
        """The first rows."""
        if count == len(self.mask):
            return self
        return EmbeddedRows(
            self.tokens[:count],
            self.mask[:count],
            self.embeddings[:count],
            self.positions[:, :count],
        )

    def of_last(self, states: Tensor) -> Tensor:
        """(B, H) of the last token of each row, of (B, T or more, H) states."""
        last = self._last()
        return states[torch.arange(len(last), device=last.device), last]

    def next_positions(self) -> Tensor:
        """(B,) int64: the position behind each row's last token."""
        last = self._last()
        return self.positions[0, torch.arange(len(last), device=last.device), last] + 1

    def _last(self) -> Tensor:
        return self.mask.sum(1) - 1


def encode_images(
    backbone: "Qwen2_5_VLForConditionalGeneration", patches: ImagePatches
) -> VisualTokens:
    """Run the vision tower on a batch of images."""
    # The grid stays with the host too, which counts positions by it.
    grid = patches.grid
    patches = patches.to(backbone.device)
    # Imported with the first picture, as the tower is.
    from model.network.vision_attention import batch_chunks

    tower: Any = backbone.model.visual
    batch_chunks(tower)
    visual = tower(patches.patches, grid_thw=patches.grid)
    return VisualTokens(states=visual.pooler_output, grid=grid)


def embed_rows(
    backbone: "Qwen2_5_VLForConditionalGeneration",
    rows: Sequence[Sequence[int]],
    visual: VisualTokens | None,
    *,
    image_token: int,
    pad: int,
    length: int | None = None,
) -> EmbeddedRows:
    """Embed B token rows; visual tokens, in row order, take the places of image tokens.

    They are padded to `length`, or to the longest. No GPU is waited for, unless the visual tokens'
    grid is there.
    """
    tokens, mask = pad_rows(rows, pad, length)
    grid = None if visual is None else visual.grid.cpu()
    merge = backbone_info(backbone).merge
    positions = rope_positions(tokens, mask, grid, image_token, merge)
    device = backbone.device
    tokens, mask, positions = (sent(part, device) for part in (tokens, mask, positions))
    embeddings = backbone.get_input_embeddings()(tokens)
    if visual is not None:
        is_image = (tokens == image_token).unsqueeze(-1)  # (B, T, 1)
        embeddings = embeddings.masked_scatter(is_image, visual.states.to(embeddings))
    return EmbeddedRows(tokens, mask, embeddings, positions)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on its way to a device; what is computed there next comes behind it."""
    # Without waiting: what the host has is copied aside first, or it would be page-locked.
    return tensor.to(device, non_blocking=True)


def pad_rows(
    rows: Sequence[Sequence[int]], pad: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pad B token rows on the right: tokens (B, T) int64 and mask (B, T) bool, False on padding.

    T is `length`, or that of the longest row.
    """
    width = length or max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return tokens, mask


def rope_positions(
    tokens: Tensor, mask: Tensor, grid: Tensor | None, image_token: int, merge: int
) -> Tensor:
    """(3, B, T) int64 positions of rows that hold at most one image each.

    Rows are padded on the right, and an image's tokens follow each other.

    `tokens` (B, T) int64, `mask` (B, T) bool, `grid` (N, 3) int64 of the images in row order.

    Text counts up by one on all three axes. An image's tokens spread over (time, row, column) from
    the position where it starts, and the text after it continues behind its longer side. The same
    as the model's `get_rope_index`, without a Python loop over rows. Positions must be passed
    explicitly: without them the model falls back to plain counting, and the logits change silently.
    """
    length = tokens.shape[1]
    counted = (mask.long().cumsum(1) - 1).clamp(min=0)  # (B, T)
    positions = counted.unsqueeze(0).repeat(3, 1, 1)
    is_image = tokens == image_token
    if grid is None or not bool(is_image.any()):
        return positions
    rows = is_image.any(1).nonzero().squeeze(1)  # (N,) rows with an image
    inside = is_image[rows]
    height = (grid[:, 1] // merge).unsqueeze(1)  # (N, 1), in tokens
    width = (grid[:, 2] // merge).unsqueeze(1)
    count = height * width
    start = inside.float().argmax(1)  # (N,) column of the first image token
    offset = torch.arange(length, device=tokens.device).unsqueeze(0) - start.unsqueeze(1)
    # Meaningful inside the image only; elsewhere it is masked below.
    row = offset // width
    column = offset % width
    first = counted[rows, start].unsqueeze(1)
    behind = counted[rows] - count + torch.maximum(height, width)
    text = torch.where(offset >= count, behind, counted[rows])
    for axis, along in enumerate((torch.zeros_like(row), row, column)):
        positions[axis, rows] = torch.where(inside, first + along, text)
    return positions
