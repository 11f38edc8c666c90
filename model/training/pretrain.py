"""Stage 0, second half: the backbone learns to see and read before it learns identifiers.

The real Qwen2.5-VL arrives pretrained; the `tiny` profile has to be pretrained here. Three tasks: the vision tower and the
state behind an image or text prompt learn the contrastive encoder's embedding (distillation), and images are described.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from model.network.backbone import ImagePreprocessor, pad_rows, rope_positions, widths
from model.network.prompts import PromptBuilder
from model.progress import Progress, quiet
from model.training.contrastive import CaptionedImages, cosine_schedule, pick_captions
from schemas.records import FloatArray


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """Numbers of the pretraining; `caption_weight` weighs image description against distillation."""

    epochs: int = 6
    batch: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.06
    caption_weight: float = 0.3
    temperature: float = 20.0
    seed: int = 0


class DistillHeads(nn.Module):
    """Projections into the encoder's space, used in stage 0 only: one from the vision tower, one from the prompt's state."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.vision = nn.Linear(hidden, width)
        self.state = nn.Linear(hidden, width)


def distill_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cosine distance plus InfoNCE against the teacher's vectors of the batch. (B, D) both; the teacher has unit length."""
    student = F.normalize(student, dim=-1)
    logits = temperature * student @ teacher.T
    return (1 - (student * teacher).sum(-1)).mean() + F.cross_entropy(
        logits, torch.arange(len(logits), device=logits.device)
    ) / 2


class Pretrainer:
    """One step of stage 0; keeps the pieces that every step needs."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        prompts: PromptBuilder,
        inputs: ImagePreprocessor,
        heads: DistillHeads,
        config: PretrainConfig,
    ) -> None:
        self.model, self.prompts, self.inputs, self.heads, self.config = (
            model,
            prompts,
            inputs,
            heads,
            config,
        )
        self.merge, self.pad = widths(model).merge, widths(model).pad

    def loss(
        self,
        squares: np.ndarray,
        captions: list[str],
        images: Tensor,
        texts: Tensor,
        describe: bool,
    ) -> Tensor:
        """Joint loss of a batch: (B, side, side, 3) uint8, B captions, the encoder's (B, D) image and text vectors."""
        given = self.inputs.from_squares(squares).to(self.model.device)
        seen = self.model.model.visual(given.patches, grid_thw=given.grid).pooler_output
        count = given.tokens(self.merge)[0]
        vision = self.heads.vision(seen.view(len(squares), count, -1).mean(1))
        loss = distill_loss(vision, images, self.config.temperature)
        queries = [self.prompts.query_prompt(caption) for caption in captions]
        asked = self._state(queries, None, None)
        pictured = self._state(
            [self.prompts.image_prompt(count) for _ in captions], seen, given.grid
        )
        for state, target in ((asked, texts), (asked, images), (pictured, images)):
            loss = loss + distill_loss(state, target, self.config.temperature)
        if describe:
            loss = loss + self.config.caption_weight * self._caption_loss(
                captions, count, seen, given.grid
            )
        return loss

    def _hidden(
        self, rows: list[list[int]], seen: Tensor | None, grid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, mask = (part.to(self.model.device) for part in pad_rows(rows, self.pad))
        embeds = self.model.get_input_embeddings()(tokens)
        if seen is not None:
            embeds = embeds.masked_scatter((tokens == self.prompts.image).unsqueeze(-1), seen)
        positions = rope_positions(tokens, mask, grid, self.prompts.image, self.merge)
        out = self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=False,
        )
        return out.last_hidden_state, tokens, mask

    def _state(self, rows: list[list[int]], seen: Tensor | None, grid: Tensor | None) -> Tensor:
        hidden, _, mask = self._hidden(rows, seen, grid)
        last: Tensor = self.heads.state(
            hidden[torch.arange(len(rows), device=hidden.device), mask.sum(1) - 1]
        )
        return last

    def _caption_loss(self, captions: list[str], count: int, seen: Tensor, grid: Tensor) -> Tensor:
        examples = [self.prompts.describe(0, count, caption) for caption in captions]
        hidden, tokens, mask = self._hidden([list(e.tokens) for e in examples], seen, grid)
        starts = torch.tensor([e.prompt for e in examples], device=tokens.device).unsqueeze(1)
        spoken = mask & (torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0) >= starts)
        logits = self.model.lm_head(hidden[:, :-1][spoken[:, 1:]])
        return F.cross_entropy(logits, tokens[:, 1:][spoken[:, 1:]])


def pretrain(
    trainer: Pretrainer,
    data: CaptionedImages,
    images: FloatArray,
    embed_texts: Callable[[list[str]], FloatArray],
    progress: Progress = quiet,
) -> float:
    """Train in place; `images` are the encoder's (N, D) image vectors. Returns the last epoch's mean loss."""
    config = trainer.config
    rng = np.random.default_rng(config.seed)
    batch = min(config.batch, len(data))
    steps = config.epochs * max(1, len(data) // batch)
    parameters = [*trainer.model.parameters(), *trainer.heads.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay
    )
    schedule = cosine_schedule(optimizer, steps, config.warmup)
    trainer.model.train()
    losses: list[float] = []
    with progress("vision and language", steps) as bar:
        for _ in range(config.epochs):
            losses.clear()
            order = rng.permutation(len(data))
            for start in range(0, len(order) - batch + 1, batch):
                rows = order[start : start + batch]
                captions = pick_captions(data, rows, rng)
                texts, targets = (
                    torch.from_numpy(part).to(trainer.model.device)
                    for part in (embed_texts(captions), images[rows])
                )
                loss = trainer.loss(
                    data.pixels[rows], captions, targets, texts, describe=len(losses) % 2 == 0
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update(1, loss=losses[-1])
    trainer.model.eval()
    return float(np.mean(losses))
