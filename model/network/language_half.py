"""The language half: a saved backbone without its vision tower, for a process that only answers.

It is read without `transformers`, whose import takes longer than the rest of a query worker's
start; its parts have the names that they have there. The vision tower is loaded when a picture is
shown to the model for the first time.

Letters in shapes: B rows, T tokens padded on the right, H hidden width, d head width.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from schemas.records import JsonObject

# What names of weights in a saved backbone begin with; either form occurs.
_LANGUAGE = ("model.language_model.", "model.")
_VISION = ("model.visual.", "visual.")

_OUTPUT_LAYER = "lm_head."
_OUTPUT = "weight"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class MisfitError(ValueError):
    """The files are not those of a language half."""


def can_answer(folder: Path, attention: str) -> bool:
    """Whether a saved backbone has what this module computes, and is to be run by `attention`."""
    text = _configuration(folder)["text_config"]
    plain = set(text.get("layer_types") or ("full_attention",)) == {"full_attention"}
    rope = text.get("rope_parameters") or {}
    usual = rope.get("rope_type") == "default" and "mrope_section" in rope
    return attention == "sdpa" and plain and usual and text.get("hidden_act") == "silu"


class AnsweringBackbone(nn.Module):
    """The part of a `Qwen2_5_VLForConditionalGeneration` that answers texts."""

    def __init__(self, config: JsonObject, folder: Path) -> None:
        """Weights are empty until `read`; `folder` has those of the vision tower too."""
        super().__init__()
        text = SimpleNamespace(**config["text_config"])
        self.config = SimpleNamespace(
            text_config=text, vision_config=SimpleNamespace(**config["vision_config"])
        )
        self.model = _Halves(text, folder)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    @classmethod
    def read(cls, folder: Path, dtype: torch.dtype) -> "AnsweringBackbone":
        """Read a backbone that `save_pretrained` wrote; `MisfitError` when weights do not fit."""
        config = _configuration(folder)
        with torch.device("meta"):
            backbone = cls(config, folder)
        weights = _weights(folder, _language_name, dtype)
        output = {_OUTPUT: weights.pop(_OUTPUT)} if _OUTPUT in weights else {}
        _assign(backbone.model.language_model, weights)
        if config.get("tie_word_embeddings"):
            backbone.lm_head.weight = backbone.model.language_model.embed_tokens.weight
        else:
            _assign(backbone.lm_head, output)
        return backbone

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.model.language_model.embed_tokens


class _Halves(nn.Module):
    """The language half, and the vision tower once it was asked for."""

    def __init__(self, text: Any, folder: Path) -> None:
        super().__init__()
        self.language_model = LanguageModel(text)
        self._folder = folder
        # Two threads may ask for the tower at once.
        self._loading = threading.Lock()
        # In a list: a module that is an attribute would be part of the weights.
        self._tower: list[nn.Module] = []

    @property
    def visual(self) -> nn.Module:
        """The vision tower. The first call imports `transformers` and reads the weights."""
        with self._loading:
            if not self._tower:
                table = self.language_model.embed_tokens.weight
                self._tower.append(_vision_tower(self._folder, table.dtype, table.device))
            return self._tower[0]


@dataclass(frozen=True, slots=True)
class LanguageStates:
    """What the language half gives."""

    last_hidden_state: Tensor
    """(B, T, H)"""


class LanguageModel(nn.Module):
    """Embeddings, layers and last norm."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        # A table that is to be drawn imports the compiler of torch, a second and a half.
        empty = torch.empty(text.vocab_size, text.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(empty)
        layers = [_Layer(text) for _ in range(text.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = _Norm(text)
        self.rotary_emb = RotaryEmbedding(text)

    def forward(
        self, *, inputs_embeds: Tensor, position_ids: Tensor, **_: object
    ) -> LanguageStates:
        """Read (B, T, H) embeddings at (3, B, T) positions.

        States of padding mean nothing: it stands behind the tokens of its row, which see only what
        is before them, so no mask is needed.
        """
        hidden = inputs_embeds
        cosine, sine = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            hidden = layer(hidden, cosine.unsqueeze(1), sine.unsqueeze(1))
        return LanguageStates(self.norm(hidden))


class RotaryEmbedding(nn.Module):
    """Angles of positions on three axes (time, row, column), each with its share of the width."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        width = text.hidden_size // text.num_attention_heads
        rope = text.rope_parameters
        # On the CPU also while the weights are laid out on no device: it is in no file.
        steps = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
        inverse = 1.0 / (float(rope["rope_theta"]) ** steps)
        self.register_buffer("inverse", inverse, persistent=False)
        self.inverse: Tensor
        self._sections = [int(size) for size in rope["mrope_section"]]

    def forward(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B, n, d) of (3, B, n) positions, in the format of `hidden`."""
        angles = positions.unsqueeze(-1).float() * self.inverse  # (3, B, n, d / 2)
        parts = angles.split(self._sections, -1)
        joined = torch.cat([part[axis % 3] for axis, part in enumerate(parts)], -1)
        whole = torch.cat([joined, joined], -1)
        return whole.cos().to(hidden.dtype), whole.sin().to(hidden.dtype)


class _Layer(nn.Module):
    def __init__(self, text: Any) -> None:
        super().__init__()
        self.self_attn = _Attention(text)
        self.mlp = _FeedForward(text)
        self.input_layernorm = _Norm(text)
        self.post_attention_layernorm = _Norm(text)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cosine, sine)
        moved: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return moved


class _Attention(nn.Module):
    def __init__(self, text: Any) -> None:
        super().__init__()
        hidden, heads = text.hidden_size, text.num_attention_heads
        self.head_dim = hidden // heads
        self.num_key_value_heads = text.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        key_width = self.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, heads * self.head_dim)
        self.k_proj = nn.Linear(hidden, key_width)
        self.v_proj = nn.Linear(hidden, key_width)
        self.o_proj = nn.Linear(heads * self.head_dim, hidden, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        shape = (*hidden.shape[:2], -1, self.head_dim)
        query, key, value = (
            projection(hidden).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(
            _turned(query, cosine, sine),
            _turned(key, cosine, sine),
            value,
            is_causal=True,
            scale=self.scaling,
            enable_gqa=True,
        )
        attended: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(*hidden.shape[:2], -1))
        return attended


class _FeedForward(nn.Module):
    def __init__(self, text: Any) -> None:
        super().__init__()
        hidden, inner = text.hidden_size, text.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, hidden: Tensor) -> Tensor:
        moved: Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))
        return moved


class _Norm(nn.Module):
    def __init__(self, text: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(text.hidden_size))
        self.variance_epsilon = float(text.rms_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), self.weight, self.variance_epsilon)


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return heads * cosine + torch.cat([-second, first], -1) * sine


def _configuration(folder: Path) -> JsonObject:
    document: JsonObject = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return document


def _language_name(key: str) -> str | None:
    """What a weight is called in the language half or the output layer; None if it is elsewhere."""
    if _vision_name(key) is not None:
        return None
    return _without(key, (*_LANGUAGE, _OUTPUT_LAYER))


def _vision_name(key: str) -> str | None:
    return _without(key, _VISION)


def _without(key: str, prefixes: tuple[str, ...]) -> str | None:
    prefix = next((each for each in prefixes if key.startswith(each)), None)
    return None if prefix is None else key.removeprefix(prefix)


def _weights(
    folder: Path, name_of: Callable[[str], str | None], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The weights that have a name, by it."""
    files = {_WEIGHTS}
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        files = set(index["weight_map"].values())
    weights: dict[str, Tensor] = {}
    for file in sorted(files):
        with safe_open(folder / file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (it is no dictionary)
                name = name_of(key)
                if name is not None:
                    weights[name] = tensors.get_tensor(key).to(dtype)
    return weights


def _assign(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a module its weights; `MisfitError` for others than it has."""
    expected = {name: value.shape for name, value in module.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if found != expected:
        misfits = sorted(set(expected.items()) ^ set(found.items()))
        raise MisfitError(f"{misfits[0][0]} does not fit its config.json")
    module.load_state_dict(weights, assign=True)
    module.requires_grad_(False)


def _vision_tower(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel,
    )

    config = Qwen2_5_VLVisionConfig(**_configuration(folder)["vision_config"])
    tower: Any = Qwen2_5_VisionTransformerPretrainedModel._from_config(
        config, attn_implementation="sdpa"
    )
    _assign(tower, _weights(folder, _vision_name, dtype))
    whole: nn.Module = tower.to(device).eval()
    return whole
