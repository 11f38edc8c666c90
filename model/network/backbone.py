"""The backbone: a profile's `Qwen2_5_VLForConditionalGeneration`, with its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.network.hub import load_weights
from model.network.profiles import TinySize
from model.network.tokenizer import END, IMAGE, PAD, VIDEO, VISION_END, VISION_START, token_id
from schemas.errors import RefuseToStartError

if TYPE_CHECKING:
    from transformers import (
        PreTrainedTokenizerBase,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

# Patches on each side of a block that becomes one visual token, as in Qwen2.5-VL.
MERGE = 2

# Frames that a patch spans in time, as in Qwen2.5-VL; a still image is one frame twice.
FRAMES = 2

# Positions of the `tiny` configuration; its longest rows have fewer than 200 tokens.
MAX_POSITIONS = 1024


def tiny_config(size: TinySize, tokenizer: "PreTrainedTokenizerBase") -> "Qwen2_5_VLConfig":
    """A small configuration of the real class.

    The head width is hidden / heads, because the implementation ignores `head_dim`, and the
    sections of the rotary embedding (time, row, column) sum to half of it. `RefuseToStartError`
    when the heads do not divide the hidden width.
    """
    if size.hidden % size.heads:
        raise RefuseToStartError(
            f"hidden width must be a multiple of the {size.heads} heads, got {size.hidden}; "
            "change the profile"
        )
    from transformers import Qwen2_5_VLConfig

    half = size.hidden // size.heads // 2
    spatial = half * 3 // 8  # Qwen2.5-VL's own split: 16, 24 and 24 of 64
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": size.feed_forward,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "max_position_embeddings": MAX_POSITIONS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * spatial, spatial, spatial],
            },
            "bos_token_id": None,
            "eos_token_id": token_id(tokenizer, END),
            "pad_token_id": token_id(tokenizer, PAD),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_feed_forward,
            "num_heads": size.vision_heads,
            "patch_size": size.patch_px,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            # A window of more than the image, and full attention in every block: small images need
            # no windows.
            "window_size": size.image_px * 2,
            "fullatt_block_indexes": list(range(size.vision_depth)),
            "out_hidden_size": size.hidden,
        },
        image_token_id=token_id(tokenizer, IMAGE),
        video_token_id=token_id(tokenizer, VIDEO),
        vision_start_token_id=token_id(tokenizer, VISION_START),
        vision_end_token_id=token_id(tokenizer, VISION_END),
        tie_word_embeddings=True,
    )


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """Numbers of a backbone that its callers need.

    `hidden`: width. `merge`: patches merged on each side. `pad`: id of the padding token.
    """

    hidden: int
    merge: int
    pad: int


def backbone_info(backbone: "Qwen2_5_VLForConditionalGeneration") -> BackboneInfo:
    """Read the numbers from a backbone's configuration."""
    config: Any = backbone.config
    return BackboneInfo(
        hidden=int(config.text_config.hidden_size),
        merge=int(config.vision_config.spatial_merge_size),
        pad=int(config.text_config.pad_token_id or 0),
    )


def fresh_backbone(
    size: TinySize, tokenizer: "PreTrainedTokenizerBase", seed: int
) -> "Qwen2_5_VLForConditionalGeneration":
    """Random weights of the `tiny` profile; the same seed gives the same weights."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(tiny_config(size, tokenizer))


def pretrained_backbone(folder: Path, dtype: torch.dtype) -> "Qwen2_5_VLForConditionalGeneration":
    """Pretrained Qwen2.5-VL from a folder.

    `RefuseToStartError` for a folder that does not hold all of one.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    backbone: Qwen2_5_VLForConditionalGeneration = load_weights(
        Qwen2_5_VLForConditionalGeneration, folder, dtype=dtype
    )
    return backbone
