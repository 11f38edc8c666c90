"""Backbones of the published shapes with random weights, and a miniature of them for CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

from model.network.backbone import tiny_config
from model.network.inputs import ImagePreprocessor
from model.network.profiles import Profile, TinySize, profile
from model.network.published import backbone_config
from model.network.sigma import SigmaModel
from model.network.tokenizer import (
    IMAGE,
    VIDEO,
    VISION_END,
    VISION_START,
    token_id,
    train_tokenizer,
)
from model.network.vocabulary import extend_vocabulary
from ops.bench.query_texts import query_texts

# The class and the proportions of the real one; pictures of four by three keep their patches.
_MINIATURE = TinySize(
    hidden=128,
    layers=2,
    heads=4,
    kv_heads=1,
    feed_forward=384,
    vision_hidden=64,
    vision_depth=2,
    vision_feed_forward=160,
    patch_px=14,
    image_px=112,
)


def random_model(
    name: str, device: torch.device, seed: int, *, at_size: bool, trained: bool
) -> SigmaModel:
    """The model of profile `name`, drawn on its device.

    `at_size` has the published shape, else it is a miniature. What is `trained` has float32
    weights; what only answers has those of the number format, and takes half the memory.
    """
    chosen = profile(name)
    tokenizer = train_tokenizer(query_texts(2000, seed), 1024)
    config = _config(chosen, tokenizer) if at_size else tiny_config(_MINIATURE, tokenizer)
    if not at_size:
        chosen = replace(chosen, compute=replace(chosen.compute, dtype="bfloat16"))
    torch.manual_seed(seed)
    with device, _default_format(torch.float32 if trained else torch.bfloat16):
        backbone = Qwen2_5_VLForConditionalGeneration(config)
    extend_vocabulary(backbone, tokenizer, chosen)
    preprocessor = ImagePreprocessor(Qwen2VLImageProcessor(), 0, 0)
    return SigmaModel(backbone, tokenizer, preprocessor, chosen).to(device)


@contextmanager
def _default_format(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _config(chosen: Profile, tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    """The published shape, with the special tokens of a small tokenizer."""
    config: Any = backbone_config(str(chosen.model))
    config.image_token_id = token_id(tokenizer, IMAGE)
    config.video_token_id = token_id(tokenizer, VIDEO)
    config.vision_start_token_id = token_id(tokenizer, VISION_START)
    config.vision_end_token_id = token_id(tokenizer, VISION_END)
    found: Qwen2_5_VLConfig = config
    return found
