"""jina-clip-v2 (Koukounas et al. 2024): an EVA-02 tower and jina-embeddings-v3 for texts.

The published checkpoint comes with modelling code; here `timm` and `transformers` have the same
towers, so that code is not run. jina-clip-v1 has a text tower, JinaBERT, that neither of them has.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model, PreTrainedTokenizerFast

from model.network.encoders.openclip import require_open_clip
from model.network.encoders.pretrained import encoder_device, ready
from model.network.hub import loading
from model.network.resize import Pixels
from model.network.weights_io import load_exactly, read_tensors
from schemas.errors import RefuseToStartError
from schemas.records import JsonObject

# Tokens of a text: the limit of the published `encode_text`.
_TEXT_LIMIT = 512

# Of the image transform, which the published checkpoint names in its own words.
_PREPROCESSOR = "preprocessor_config.json"

# Prefixes of the towers' weights; that of the text tower came with and without `roberta.`.
_VISION = "vision_model."
_TEXT = "text_model.transformer."
_ROBERTA = "roberta."

# Marks of a weight with a low-rank adapter (LoRA): the weight itself, and the adapter's factors.
_ORIGINAL = ".parametrizations.weight.original"
_FACTOR_A = ".parametrizations.weight.0.lora_A"
_FACTOR_B = ".parametrizations.weight.0.lora_B"

# From the checkpoint's names to those of `transformers`, in this order.
_RENAMED = (
    ("emb_ln.", "embeddings.LayerNorm."),
    ("encoder.layers.", "layers."),
    ("mixer.out_proj.", "self_attn.o_proj."),
    ("norm1.", "post_attention_layernorm."),
    ("norm2.", "post_mlp_layernorm."),
)


class JinaClipTowers:
    """Both towers with their transform and tokenizer."""

    bias = 0.0

    def __init__(
        self, vision: Any, text: Any, transform: Any, tokenizer: Any, *, scale: float, side_px: int
    ) -> None:
        self.vision = vision
        self.text = text
        self.transform = transform
        self.tokenizer = tokenizer
        self.scale = scale
        self.side_px = side_px
        self.width = int(text.config.hidden_size)

    @classmethod
    def load(cls, folder: Path) -> "JinaClipTowers":
        """Read a checkpoint in the published layout.

        `RefuseToStartError` for another text tower than that of jina-clip-v2, or missing weights.
        """
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _require_second_version(folder, config)
        tensors = read_tensors(folder / "model.safetensors")
        vision = _vision_tower(config["vision_config"], tensors, folder)
        text = _text_tower(config["text_config"], tensors, folder)
        preprocessing = json.loads((folder / _PREPROCESSOR).read_text(encoding="utf-8"))
        with loading(folder):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        return cls(
            ready(vision),
            ready(text),
            _transform(preprocessing),
            tokenizer,
            scale=float(tensors["logit_scale"].float().exp()),
            side_px=int(preprocessing["size"]),
        )

    def image_features(self, images: Pixels) -> Tensor:
        """(N, D) of N images, by the checkpoint's own transform."""
        pixels = torch.stack([self.transform(Image.fromarray(image)) for image in images])
        features: Tensor = self.vision(pixels.to(self.vision.cls_token))
        return features

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(B, D) of B texts: the mean over their tokens."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=_TEXT_LIMIT,
            return_tensors="pt",
            split_special_tokens=True,
        ).to(encoder_device())
        mask = tokens["attention_mask"]
        states = self.text(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        kept = mask.unsqueeze(-1).to(states)
        mean: Tensor = (states * kept).sum(1) / kept.sum(1)
        return mean


def _require_second_version(folder: Path, config: JsonObject) -> None:
    text = config["text_config"]
    name = str(text.get("hf_model_name_or_path", ""))
    projected = config.get("add_projections") or text.get("proj_type")
    if "jina-embeddings-v3" not in name or projected:
        raise RefuseToStartError(
            f"{folder} must be a jina-clip-v2, whose texts go through jina-embeddings-v3, got one "
            f"with the text tower {name or 'unnamed'}, for which there is no class without the "
            "checkpoint's own code; use jina-clip-v2, or a SigLIP 2"
        )


def _vision_tower(config: JsonObject, tensors: Mapping[str, Tensor], folder: Path) -> nn.Module:
    require_open_clip()
    # It comes with open_clip.
    from timm.models.eva import Eva, checkpoint_filter_fn

    reference = int(config["pt_hw_seq_len"])
    tower = Eva(
        img_size=config["image_size"],
        patch_size=config["patch_size"],
        num_classes=0,
        global_pool="token",
        embed_dim=config["width"],
        depth=config["layers"],
        num_heads=config["width"] // config["head_width"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config.get("qkv_bias", True),
        qkv_fused=False,
        swiglu_mlp=config["naive_swiglu"],
        scale_mlp=config["subln"],
        scale_attn_inner=config["subln"],
        use_rot_pos_emb=config["rope_embeddings"],
        # Positions are scaled to the grid that the tower was first trained with.
        ref_feat_shape=(reference, reference) if config["intp_freq"] else None,
        use_post_norm=config.get("post_norm", False),
    )
    own: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.startswith(_VISION):
            own[name.removeprefix(_VISION)] = value
    load_exactly(tower, checkpoint_filter_fn(own, tower), folder)
    return tower


def _text_tower(config: JsonObject, tensors: Mapping[str, Tensor], folder: Path) -> nn.Module:
    given: JsonObject = config.get("hf_model_config_kwargs") or {}
    known = JinaEmbeddingsV3Config().to_dict()
    own_config = {name: value for name, value in given.items() if name in known}
    text = JinaEmbeddingsV3Model(JinaEmbeddingsV3Config(**own_config), add_pooling_layer=False)
    adaptations = list(given.get("lora_adaptations") or ())
    task = config.get("default_lora_task")
    index = adaptations.index(task) if task in adaptations else None
    scaling = float(given.get("lora_alpha", 1)) / float(given.get("lora_rank", 1))
    own: dict[str, Tensor] = {}
    for name, value in _merged(tensors, index, scaling).items():
        own.update(_renamed(name, value))
    load_exactly(text, own, folder)
    return text


def _merged(tensors: Mapping[str, Tensor], index: int | None, scaling: float) -> dict[str, Tensor]:
    """The text tower's weights, with the adapter number `index` added to those that have one."""
    merged: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not name.startswith(_TEXT) or name.endswith((_FACTOR_A, _FACTOR_B)):
            continue
        own = name.removeprefix(_TEXT).removeprefix(_ROBERTA)
        if not name.endswith(_ORIGINAL):
            merged[own] = value
            continue
        layer = name.removesuffix(_ORIGINAL)
        if index is not None:
            first = tensors[layer + _FACTOR_A][index].float()
            second = tensors[layer + _FACTOR_B][index].float()
            # A linear layer is stored output first, an embedding input first.
            product = first @ second if layer.endswith("embeddings") else second @ first
            value = value.float() + product * scaling
        merged[own.removesuffix(_ORIGINAL) + ".weight"] = value
    return merged


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """A weight under the names of `transformers`, which keeps queries, keys and values apart."""
    for before, after in _RENAMED:
        name = name.replace(before, after)
    if "mixer.Wqkv." not in name:
        return {name: value}
    parts: dict[str, Tensor] = {}
    for projection, part in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
        parts[name.replace("mixer.Wqkv.", f"self_attn.{projection}.")] = part
    return parts


def _transform(preprocessing: JsonObject) -> Any:
    open_clip = require_open_clip()
    return open_clip.image_transform(
        int(preprocessing["size"]),
        is_train=False,
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        resize_mode=preprocessing.get("resize_mode", "shortest"),
        interpolation=preprocessing.get("interpolation", "bicubic"),
        fill_color=preprocessing.get("fill_color", 0),
    )
