"""The vocabulary of a backbone: rows of its tables for identifier tokens and further symbols."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.network.profiles import Profile
from model.network.tokenizer import add_identifier_tokens, add_joint_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

# Spread of new embeddings around the mean, as a share of the known ones' (experiments/new-rows.md).
NEW_TOKEN_SPREAD = 0.5


def extend_vocabulary(
    backbone: "Qwen2_5_VLForConditionalGeneration",
    tokenizer: "PreTrainedTokenizerBase",
    profile: Profile,
) -> None:
    """Add the profile's identifier tokens to tokenizer and embeddings, in place.

    New embeddings are drawn around the mean of the known ones, with a fixed seed.
    """
    known = len(tokenizer)
    add_identifier_tokens(tokenizer, profile.shape)
    if profile.joint_tokens:
        add_joint_tokens(tokenizer, profile.shape)
    extend_tables(backbone, tokenizer, known)


def extend_tables(
    backbone: "Qwen2_5_VLForConditionalGeneration", tokenizer: "PreTrainedTokenizerBase", known: int
) -> None:
    """Give the tokens from `known` on rows of the embedding tables."""
    embedding: Any = backbone.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    if rows >= len(tokenizer) and known == len(tokenizer):
        return
    # Pretrained tables may be padded to more rows than the tokenizer has tokens; they never shrink.
    backbone.resize_token_embeddings(max(len(tokenizer), rows), mean_resizing=False)
    resized: Any = backbone.get_input_embeddings()
    output_weight: Tensor = backbone.lm_head.weight
    # A tied output layer is the same table, and must be drawn once.
    tables: list[Tensor] = [resized.weight]
    if output_weight is not resized.weight:
        tables.append(output_weight)
    with torch.no_grad():
        for table in tables:
            _draw_new_rows(table, known)


def _draw_new_rows(table: Tensor, known: int) -> None:
    """Fill the rows of an embedding table (V, H) from `known` on."""
    old = table[:known]
    generator = torch.Generator().manual_seed(0)
    # Drawn on the CPU, so that every device gets the same numbers.
    noise = torch.randn(len(table) - known, table.shape[1], generator=generator)
    drawn = old.mean(0) + noise.to(old.device) * old.std(0) * NEW_TOKEN_SPREAD
    table[known:] = drawn.to(table.dtype)
