"""Small random checkpoints of the paper's three models, in the real classes and with their names.

The backbone and jina-embeddings-v4 (adapter merged) are `Qwen2_5_VLForConditionalGeneration`,
jina-reranker-m0 is a `Qwen2VLForConditionalGeneration` with a head. Shapes are proportioned like
theirs; layers are few.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

from model.network.tokenizer import (
    END,
    IMAGE,
    PAD,
    VIDEO,
    VISION_END,
    VISION_START,
    token_id,
    train_tokenizer,
)

WORDS = (
    "a small red circle",
    "two blue squares on navy",
    "eine grüne Scheibe",
    "a large star at the top left",
)

PATCH_PX = 14


def qwen(folder: Path, seed: int = 0, **text: int) -> Path:
    """A Qwen2.5-VL as `Qwen/Qwen2.5-VL-3B-Instruct` is laid out."""
    tokenizer = _tokenizer()
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, **text),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": PATCH_PX,
            "window_size": 4 * PATCH_PX,
            "fullatt_block_indexes": [1],
            "out_hidden_size": _text(tokenizer, **text)["hidden_size"],
        },
        **_ids(tokenizer),
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    _spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    processor = Qwen2VLImageProcessor(min_pixels=4 * 28 * 28, max_pixels=9 * 28 * 28)
    processor.save_pretrained(folder)
    return folder


def jina_v4(folder: Path) -> Path:
    """jina-embeddings-v4 with its adapter merged: a Qwen2.5-VL with other weights and pictures."""
    qwen(folder, seed=7, hidden_size=48)
    processor = Qwen2VLImageProcessor(min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28)
    processor.save_pretrained(folder)
    return folder


def reranker(folder: Path) -> Path:
    """jina-reranker-m0: no layer that generates, and a perceptron named `score`."""
    tokenizer = _tokenizer()
    text = _text(tokenizer, hidden_size=40)
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": text["hidden_size"],
            "num_heads": 2,
            "patch_size": PATCH_PX,
        },
        **_ids(tokenizer),
    )
    torch.manual_seed(9)
    model = Qwen2VLForConditionalGeneration(config)
    _spread(model)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    hidden = text["hidden_size"]
    for name, layer in (("score.0", nn.Linear(hidden, hidden)), ("score.2", nn.Linear(hidden, 1))):
        tensors[f"{name}.weight"] = layer.weight.detach()
        tensors[f"{name}.bias"] = layer.bias.detach()
    tensors["score.2.bias"] += 2.65
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(str(folder))
    Qwen2VLImageProcessor().save_pretrained(folder)
    return folder


def with_later_names(folder: Path, target: Path) -> Path:
    """The same checkpoint under the names of later versions; `save_pretrained` writes the first."""
    shutil.copytree(folder, target)
    renamed = {}
    for name, value in load_file(folder / "model.safetensors").items():
        later = name
        if name.startswith("visual."):
            later = f"model.{name}"
        elif name.startswith("model."):
            later = name.replace("model.", "model.language_model.", 1)
        renamed[later] = value
    save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    return target


def with_published_config(folder: Path, target: Path) -> Path:
    """The same checkpoint with a `config.json` as published: numbers of the texts at the top."""
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    del text["model_type"]
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    config["vision_config"].pop("rope_parameters", None)
    (target / "config.json").write_text(json.dumps({**text, **config}))
    return target


def _tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(WORDS * 5, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return tokenizer


def _text(tokenizer: PreTrainedTokenizerBase, **changes: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": _sections(changes.get("hidden_size", 64) // 4),
        },
        "bos_token_id": None,
        "eos_token_id": token_id(tokenizer, END),
        "pad_token_id": token_id(tokenizer, PAD),
        "tie_word_embeddings": True,
        **changes,
    }


def _sections(head: int) -> list[int]:
    """Time, row and column of the rotary embedding of a head's width."""
    spatial = head // 2 * 3 // 8
    return [head // 2 - 2 * spatial, spatial, spatial]


def _ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "image_token_id": token_id(tokenizer, IMAGE),
        "video_token_id": token_id(tokenizer, VIDEO),
        "vision_start_token_id": token_id(tokenizer, VISION_START),
        "vision_end_token_id": token_id(tokenizer, VISION_END),
        "tie_word_embeddings": True,
    }


def _spread(model: Any) -> None:
    """Larger weights than fresh ones: those hardly let a state depend on the other tokens."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and "embed" not in name:
                value.mul_(5)
