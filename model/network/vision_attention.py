"""Attention of the vision tower, whose chunks are run together where they are equally long.

The tower attends within windows of 8 × 8 patches in most layers, within pictures in the others. The
family's own code runs one product after the other for each of these chunks: a batch of 64 photos
has 768 windows in each of 28 layers, and a GPU waits for the host to start them.

Letters in shapes: P patches, c chunks of L patches each, D width of the tower.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)

# Where a tensor of chunks keeps what was read from it: layers of a pass share the tensor.
_KEPT = "_sigma_chunks"


def batch_chunks(tower: Any) -> None:
    """Let the blocks of a vision tower run equally long chunks together, in place and for good.

    Weights and their names stay as they are; attention other than sdpa stays the family's own.
    """
    for block in tower.blocks:
        if type(block.attn) is Qwen2_5_VLVisionAttention:
            block.attn.__class__ = BatchedVisionAttention


class BatchedVisionAttention(Qwen2_5_VLVisionAttention):
    """The family's attention in as many products as there are lengths of chunks."""

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(P, D) states → (P, D). `cu_seqlens` (chunks + 1,): where each begins, and the end."""
        if self.config._attn_implementation != "sdpa" or position_embeddings is None:
            own: Tensor = super().forward(
                hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs
            )
            return own
        joined = self.qkv(hidden_states).view(len(hidden_states), 3, self.num_heads, -1)
        query, key, value = joined.unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        chunks = _chunks(cu_seqlens)
        parts: list[Tensor] = []
        for length, rows in chunks.groups:
            mixed = F.scaled_dot_product_attention(
                _batched(query, length, rows),
                _batched(key, length, rows),
                _batched(value, length, rows),
                scale=self.scaling,
            )
            parts.append(mixed.transpose(1, 2).reshape(-1, self.dim))
        attended = parts[0] if chunks.order is None else torch.cat(parts)[chunks.order]
        projected: Tensor = self.proj(attended)
        return projected


def _batched(part: Tensor, length: int, rows: Tensor | None) -> Tensor:
    """(P, heads, d) → (c, heads, L, d) of the chunks of one length."""
    own = part if rows is None else part[rows]
    return own.view(-1, length, *own.shape[1:]).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Chunks by their length.

    `groups`: lengths, each with the (c·L,) rows of its chunks; None where all are equally long.
    `order` (P,) puts the rows of all groups, one behind the other, back.
    """

    groups: tuple[tuple[int, Tensor | None], ...]
    order: Tensor | None


def _chunks(ends: Tensor) -> _Chunks:
    """What a tensor of chunks says; a GPU is waited for once in a pass."""
    kept: _Chunks | None = getattr(ends, _KEPT, None)
    if kept is None:
        kept = _read(ends)
        setattr(ends, _KEPT, kept)
    return kept


def _read(ends: Tensor) -> _Chunks:
    places = ends.to("cpu", torch.int64)
    lengths = places.diff()
    different = lengths.unique().tolist()
    if len(different) == 1:
        return _Chunks(((int(different[0]), None),), None)
    groups: list[tuple[int, Tensor]] = []
    for length in different:
        starts = places[:-1][lengths == length]
        rows = (starts.unsqueeze(1) + torch.arange(length)).flatten()
        groups.append((int(length), rows.to(ends.device)))
    order = torch.cat([rows for _, rows in groups]).argsort()
    return _Chunks(tuple(groups), order)
