"""Decoder layers: those of the language half, with the products of one input joined into one.

Query, key and value are one product, gate and up another: on a GPU and on a CPU alike a small batch
waits for each operation more than for its arithmetic. The joined weights take the place of the
model's own, whose parameters become views of them, so none is stored twice.

Letters in shapes: B prompts, T tokens of a prompt, W beams, t tokens that a beam has generated, n
tokens at hand, H hidden width, G key-value heads, q query heads of each of them, d head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Cosine and sine of positions, (B, 1, n, d) each.
Rotation = tuple[Tensor, Tensor]

# Keys and values of the same tokens.
Keys = tuple[Tensor, Tensor]


class JoinedLinear:
    """Several linear layers of one input as one."""

    def __init__(self, layers: Sequence[Any]) -> None:
        """`layers` have biases all or none."""
        if any(type(layer) is not torch.nn.Linear for layer in layers):
            raise AssertionError("a decoder was made of a model with adapters; merge them first")
        self._first = layers[0]
        self.weight = _joined([layer.weight for layer in layers])
        self.bias: Tensor | None = None
        if layers[0].bias is not None:
            self.bias = _joined([layer.bias for layer in layers])

    @property
    def current(self) -> bool:
        """Whether the model has not been moved to other memory since."""
        return bool(self.weight.data_ptr() == self._first.weight.data_ptr())

    def __call__(self, inputs: Tensor) -> Tensor:
        """The outputs of all layers, one behind the other."""
        return F.linear(inputs, self.weight, self.bias)


class DecoderLayer:
    """One layer, which reads prompts and goes on behind them."""

    def __init__(self, layer: Any) -> None:
        """`layer` is one of the backbone's language half."""
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = JoinedLinear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.gate_up = JoinedLinear([mlp.gate_proj, mlp.up_proj])
        self.groups = int(attention.num_key_value_heads)
        self.width = int(attention.head_dim)
        self.scaling = float(attention.scaling)
        self.heads = int(attention.q_proj.out_features) // self.width
        self._layer = layer

    def read(self, hidden: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, H) states of a prompt's tokens → the same behind this layer, keys and values.

        Each token sees those before it; keys and values (B, G, T, d).
        """
        query, key, value = self._heads(hidden, rotation)
        mixed = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.scaling, enable_gqa=True
        )
        attended = mixed.transpose(1, 2).reshape(*hidden.shape[:2], -1)
        return self._moved(hidden, attended), key, value

    def step(
        self, hidden: Tensor, rotation: Rotation, prompt: Keys, padding: Tensor, past: Keys | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One new token of each of W beams, (B, W, H), behind the shared prompt and its own tokens.

        `prompt` are keys and values (B, G, T, d), `past` (B, W, G, t, d); `padding` (B, T) bool.
        Returns the states, and keys and values with the new token, (B, W, G, t + 1, d).
        """
        batch, beams, _ = hidden.shape
        query, key, value = self._heads(hidden, rotation)
        query = query.reshape(batch, self.groups, -1, beams, self.width) * self.scaling
        own_keys = key.transpose(1, 2).unsqueeze(3)  # (B, W, G, 1, d)
        own_values = value.transpose(1, 2).unsqueeze(3)
        if past is not None:
            own_keys = torch.cat([past[0], own_keys], 3)
            own_values = torch.cat([past[1], own_values], 3)
        prompt_scores = torch.einsum("bgqwd,bgtd->bgqwt", query, prompt[0])
        prompt_scores = prompt_scores.masked_fill(padding[:, None, None, None, :], float("-inf"))
        own_scores = torch.einsum("bgqwd,bwgsd->bgqws", query, own_keys)
        # One softmax over prompt and own tokens, in float32 as the model's own attention does.
        scores = torch.cat([prompt_scores, own_scores], -1)
        weights = torch.softmax(scores.float(), -1).to(hidden.dtype)
        length = padding.shape[1]
        mixed = torch.einsum("bgqwt,bgtd->bwgqd", weights[..., :length], prompt[1])
        mixed = mixed + torch.einsum("bgqws,bwgsd->bwgqd", weights[..., length:], own_values)
        attended = mixed.reshape(batch, beams, -1)
        return self._moved(hidden, attended), own_keys, own_values

    def _heads(self, hidden: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, G·q, n, d), key and value (B, G, n, d) of (B, n, H) states."""
        batch, count, _ = hidden.shape
        joined = self.qkv(rms_norm(hidden, self._layer.input_layernorm))
        heads = joined.view(batch, count, -1, self.width).transpose(1, 2)
        turned = _rotate(heads[:, : -self.groups], *rotation)
        return turned[:, : self.heads], turned[:, self.heads :], heads[:, -self.groups :]

    def _moved(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """States (B, n, H) behind the layer, given what its attention found, (B, n, G·q·d)."""
        layer = self._layer
        hidden = hidden + layer.self_attn.o_proj(attended)
        gate, up = self.gate_up(rms_norm(hidden, layer.post_attention_layernorm)).chunk(2, -1)
        moved: Tensor = layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)
        return hidden + moved


def rms_norm(hidden: Tensor, norm: Any) -> Tensor:
    """What the model's own `norm` gives, in one operation."""
    return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of (B, heads, n, d) by (B, 1, n, d)."""
    first, second = heads.chunk(2, -1)
    return heads * cosine + torch.cat([-second, first], -1) * sine


def _joined(parts: Sequence[torch.nn.Parameter]) -> Tensor:
    """One tensor whose rows are those of all parts, which become views of it."""
    counts = [len(part) for part in parts]
    known = _known(parts)
    if known is not None:
        return known
    whole = torch.cat([part.data for part in parts])
    for part, rows in zip(parts, whole.split(counts), strict=True):
        part.data = rows
    return whole


def _known(parts: Sequence[torch.nn.Parameter]) -> Tensor | None:
    """The tensor that parts are views of already, one behind the other; None where they are not."""
    first = parts[0].data
    end = first.storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        if part.storage_offset() != end or not part.is_contiguous():
            return None
        end += part.numel()
    shape = (sum(map(len, parts)), *first.shape[1:])
    return first.as_strided(shape, first.stride(), first.storage_offset())
