"""Decoder layers: those of the language half, in as few operations as they can be.

On a GPU and on a CPU alike a small batch waits for each operation more than for its arithmetic.
Query, key and value are one product, gate and up another; sums are made by the products in place;
and what all beams have generated stays where it is, for a mask says which of it a beam descends
from (tree attention, as in SpecInfer, Miao et al. 2024). The joined weights take the place of the
model's own, whose parameters become views of them, so none is stored twice.

Letters in shapes: B prompts, W beams of each, n tokens at hand, R tokens seen, H hidden width, G
key-value heads, q query heads of each of them, d head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Cosine of positions, and sine with the sign of the half that it is multiplied with; (B, 1, n, d).
Rotation = tuple[Tensor, Tensor]

# Masks start every row at a multiple of so many numbers, or a GPU would copy them in each layer.
_ALIGNED = 16


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
        self._knows_groups = _knows_groups(self.qkv.weight.device)
        self.rows = 1 if self._knows_groups else self.heads // self.groups
        """Rows of `step_mask` for each beam."""
        if attention.o_proj.bias is not None or layer.mlp.down_proj.bias is not None:
            raise AssertionError("the products that end a layer have no bias in this family")
        self._layer = layer

    def read(self, hidden: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """(B, T, H) states of a prompt's tokens → the same behind this layer, keys and values.

        Each token sees those before it; keys and values (B, 2·G, T, d). The states are overwritten.
        """
        query, seen = self._heads(hidden, rotation)
        mixed = F.scaled_dot_product_attention(
            query,
            seen[:, : self.groups],
            seen[:, self.groups :],
            is_causal=True,
            scale=self.scaling,
            enable_gqa=True,
        )
        return self._moved(hidden, mixed.transpose(1, 2)), seen

    def step(
        self, hidden: Tensor, rotation: Rotation, seen: Tensor | None, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New tokens, one of each of W beams, (B, W, H), behind the R that came before.

        `seen` (B, 2·G, R, d) are keys and values of the prompt and of all that beams generated,
        None without any; `mask` is `step_mask` of which of them, and of the new ones, each new
        token sees. Returns the states, which are overwritten, and keys and values with the new
        tokens, R + W of them.
        """
        batch, beams, _ = hidden.shape
        query, own = self._heads(hidden, rotation)
        seen = own if seen is None else torch.cat([seen, own], 2)
        if not self._knows_groups:
            # The heads of a group ask as more beams would: they share keys and values.
            query = query.reshape(batch, self.groups, -1, self.width)
        mixed = F.scaled_dot_product_attention(
            query,
            seen[:, : self.groups],
            seen[:, self.groups :],
            attn_mask=mask,
            scale=self.scaling,
            enable_gqa=self._knows_groups,
        )
        mixed = mixed.view(batch, self.heads, beams, self.width)
        return self._moved(hidden, mixed.transpose(1, 2)), seen

    def _heads(self, hidden: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Query (B, G·q, n, d), keys and values (B, 2·G, n, d) of (B, n, H) states."""
        batch, count, _ = hidden.shape
        joined = self.qkv(rms_norm(hidden, self._layer.input_layernorm))
        heads = joined.view(batch, count, -1, self.width).transpose(1, 2)
        _rotate(heads[:, : -self.groups], *rotation)
        return heads[:, : self.heads], heads[:, self.heads :]

    def _moved(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """States (B, n, H) behind the layer, given what its attention found, (B, n, G·q, d)."""
        layer = self._layer
        _add_product(hidden, attended.flatten(2), layer.self_attn.o_proj)
        gate, up = self.gate_up(rms_norm(hidden, layer.post_attention_layernorm)).chunk(2, -1)
        _add_product(hidden, layer.mlp.act_fn(gate) * up, layer.mlp.down_proj)
        return hidden


def rms_norm(hidden: Tensor, norm: Any) -> Tensor:
    """What the model's own `norm` gives, in one operation."""
    return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def signed(cosine: Tensor, sine: Tensor) -> Rotation:
    """(B, n, d) of the model's own rotary embedding, as layers take them."""
    half = sine.shape[-1] // 2
    sine = torch.cat([-sine[..., :half], sine[..., half:]], -1)
    return cosine.unsqueeze(1), sine.unsqueeze(1)


def step_mask(sees: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """(B, W, R) bool of what beams see → (B, 1, rows·W, R), rows as `DecoderLayer.rows` says."""
    batch, beams, count = sees.shape
    width = -(-count // _ALIGNED) * _ALIGNED
    mask = torch.full((batch, rows, beams, width), float("-inf"), dtype=dtype, device=sees.device)
    mask[..., :count].masked_fill_(sees.unsqueeze(1), 0.0)
    return mask.view(batch, 1, -1, width)[..., :count]


def _knows_groups(device: torch.device) -> bool:
    """Whether a device has one operation for heads that share keys behind any mask.

    cuDNN has it for Hopper and later; elsewhere each head would get keys and values of its own.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotary embedding of (B, heads, n, d) by (B, 1, n, d), in place."""
    turned = heads.roll(heads.shape[-1] // 2, -1)
    heads.mul_(cosine).addcmul_(turned, sine)


def _add_product(hidden: Tensor, inputs: Tensor, linear: Any) -> None:
    """Add the outputs of a linear layer without a bias, (B, n, H), in place."""
    hidden.view(-1, hidden.shape[-1]).addmm_(inputs.flatten(0, 1), linear.weight.T)


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
