"""The SIGMA model: the Qwen2.5-VL backbone, its identifier tokens, and the soft-label head (paper, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from model.network.backbone import ImagePatches, ImagePreprocessor, pad_rows, rope_positions, widths
from model.network.profiles import Profile
from model.network.prompts import PromptBuilder, TrainingExample
from model.network.tokenizer import add_identifier_tokens, level_token_ids


class SoftLabelHead(nn.Module):
    """Three-layer perceptron and sigmoid on the mean hidden state of the identifier tokens (equations 8 and 9)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden // 2),
            nn.GELU(),
            nn.Linear(hidden // 2, 1),
        )

    def forward(self, states: Tensor) -> Tensor:
        """(B, H) mean states → (B,) similarity in 0..1."""
        return torch.sigmoid(self.mlp(states)).squeeze(-1)


@dataclass(frozen=True, slots=True)
class Losses:
    """`generation` is equation 4, 6 or 10 (mean over tokens), `similarity` equation 11 (zero without soft labels).

    `counts` (2,) float32: over how many tokens and over how many soft labels the two are means.
    """

    generation: Tensor
    similarity: Tensor
    counts: Tensor


class SigmaModel(nn.Module):
    """Backbone and head with what they need to turn images and texts into prompts."""

    def __init__(
        self,
        backbone: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        inputs: ImagePreprocessor,
        profile: Profile,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = SoftLabelHead(widths(backbone).hidden)
        self.tokenizer = tokenizer
        self.inputs = inputs
        self.profile = profile
        self.levels = level_token_ids(tokenizer, profile.shape)
        self.prompts = PromptBuilder(tokenizer, self.levels, profile.max_text_tokens)
        self.merge = widths(backbone).merge
        self.pad = int(tokenizer.pad_token_id)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.device

    def see(self, given: ImagePatches) -> Tensor:
        """Visual tokens of a batch of images, (sum of image tokens, H)."""
        given = given.to(self.device)
        seen: Tensor = self.backbone.model.visual(given.patches, grid_thw=given.grid).pooler_output
        return seen

    def embed(
        self, rows: Sequence[Sequence[int]], seen: Tensor | None, grid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token rows with visual tokens filled in: tokens (B, T), mask (B, T), embeddings (B, T, H), positions (3, B, T)."""
        tokens, mask = (part.to(self.device) for part in pad_rows(rows, self.pad))
        grid = None if grid is None else grid.to(self.device)
        embeds = self.backbone.get_input_embeddings()(tokens)
        if seen is not None:
            embeds = embeds.masked_scatter(
                (tokens == self.prompts.image).unsqueeze(-1), seen.to(embeds.dtype)
            )
        return (
            tokens,
            mask,
            embeds,
            rope_positions(tokens, mask, grid, self.prompts.image, self.merge),
        )

    def forward(
        self,
        examples: Sequence[TrainingExample],
        given: ImagePatches | None,
        seen: Tensor | None,
        grid: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The fields of `losses`; `given` are pictures that the vision tower is yet to look at.

        Training has to come through here: what synchronises gradients between processes wraps this call.
        """
        if given is not None:
            seen, grid = self.see(given), given.grid
        found = self.losses(examples, seen, grid)
        return found.generation, found.similarity, found.counts

    def losses(
        self, examples: Sequence[TrainingExample], seen: Tensor | None, grid: Tensor | None
    ) -> Losses:
        """Losses of a batch. `seen` holds the visual tokens of the examples with an image, in order, `grid` their grids."""
        tokens, mask, embeds, positions = self.embed([e.tokens for e in examples], seen, grid)
        hidden = self.backbone.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        starts = torch.tensor([e.prompt for e in examples], device=tokens.device).unsqueeze(1)
        wanted = (
            mask & (torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0) >= starts)
        )[:, 1:]
        logits = self.backbone.lm_head(hidden[:, :-1][wanted])
        generation = F.cross_entropy(logits.float(), tokens[:, 1:][wanted])
        labelled = [
            (row, e.identifier, e.soft_label)
            for row, e in enumerate(examples)
            if e.identifier and e.soft_label is not None
        ]
        similarity = self._similarity(labelled, hidden) if labelled else hidden.new_zeros(())
        counts = torch.tensor(
            [wanted.sum(), len(labelled)], dtype=torch.float32, device=hidden.device
        )
        return Losses(generation=generation, similarity=similarity, counts=counts)

    def _similarity(
        self, labelled: Sequence[tuple[int, tuple[int, int], float]], hidden: Tensor
    ) -> Tensor:
        states = torch.stack(
            [hidden[row, start:stop].mean(0) for row, (start, stop), _ in labelled]
        )
        return F.mse_loss(self.head(states), hidden.new_tensor([label for _, _, label in labelled]))


def extend_vocabulary(
    backbone: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
) -> None:
    """Add the profile's identifier tokens to tokenizer and embeddings, drawn around the mean of the known ones (seeded)."""
    known = len(tokenizer)
    add_identifier_tokens(tokenizer, profile.shape)
    embedding: Any = backbone.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    if rows >= len(tokenizer) and known == len(tokenizer):
        return
    backbone.resize_token_embeddings(max(len(tokenizer), rows), mean_resizing=False)
    resized: Any = backbone.get_input_embeddings()
    tables: list[Tensor] = [resized.weight, backbone.lm_head.weight]
    with torch.no_grad():
        for weight in {id(table): table for table in tables}.values():
            old = weight[:known]
            draw = torch.randn(
                len(weight) - known, weight.shape[1], generator=torch.Generator().manual_seed(0)
            )
            weight[known:] = (old.mean(0) + draw.to(old.device) * old.std(0) * 0.5).to(weight.dtype)
