"""Stage 0, second half: the backbone learns to see and to read before it learns identifiers.

The real Qwen2.5-VL arrives pretrained; the `tiny` profile is pretrained here. By distillation, the
vision tower and the state behind an image or text prompt learn the contrastive encoder's embedding;
and the backbone learns to describe images.

Letters in shapes: B rows of a batch, N images, D width of the encoder, H hidden width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from model.network.backbone import backbone_info
from model.network.inputs import (
    EmbeddedRows,
    ImagePreprocessor,
    VisualTokens,
    embed_rows,
    encode_images,
)
from model.network.prompts import PromptBuilder
from model.network.sigma import continuation_mask
from model.progress import Progress, quiet
from model.training.contrastive import (
    CLIP,
    CaptionedImages,
    batches_per_epoch,
    pick_captions,
    shuffled_batches,
)
from model.training.hints import TokenHints
from model.training.optimizer import CosineAdamW
from schemas.records import ByteArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """Numbers of the pretraining.

    `warmup` is a share of the steps. `caption_weight` weighs the description of images against
    distillation. `temperature` multiplies the cosines of the InfoNCE loss.
    """

    vision_epochs: int = 0
    """Epochs before, in which the vision tower alone learns: the labels and the embeddings."""
    epochs: int = 6
    batch: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.06
    caption_weight: float = 0.3
    temperature: float = 20.0
    seed: int = 0


class DistillHeads(nn.Module):
    """Projections of the vision tower and of the prompt's state into the encoder's space.

    Stage 0 only.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.vision = nn.Linear(hidden, width)
        self.state = nn.Linear(hidden, width)


def distill_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cosine distance plus half the InfoNCE loss against the teacher's vectors of the batch.

    Both are (B, D); the teacher's rows have unit length.
    """
    student = F.normalize(student, dim=-1)
    logits = temperature * student @ teacher.T
    target = torch.arange(len(logits), device=logits.device)
    distance = (1 - (student * teacher).sum(-1)).mean()
    return distance + F.cross_entropy(logits, target) / 2


class Pretrainer:
    """The loss of stage 0's second half, with the modules that it is computed from."""

    def __init__(
        self,
        backbone: Qwen2_5_VLForConditionalGeneration,
        prompts: PromptBuilder,
        preprocessor: ImagePreprocessor,
        heads: DistillHeads,
        config: PretrainConfig,
        hints: TokenHints | None = None,
    ) -> None:
        """`hints`: labels that the vision tower's tokens must tell."""
        self.backbone = backbone
        self.prompts = prompts
        self.preprocessor = preprocessor
        self.heads = heads
        self.config = config
        self.hints = hints
        self._info = backbone_info(backbone)

    @property
    def modules(self) -> list[nn.Module]:
        """What is trained beside the vision tower, when that is trained alone."""
        return [self.heads] if self.hints is None else [self.heads, self.hints]

    def vision_loss(self, squares: ByteArray, rows: IntArray, images: Tensor) -> Tensor:
        """Loss of the vision tower on a batch, a scalar; `rows` are those of its labels."""
        return self._vision_loss(self._seen(squares), rows, images)

    def loss(
        self,
        squares: ByteArray,
        rows: IntArray,
        captions: list[str],
        images: Tensor,
        texts: Tensor,
        describe: bool,
    ) -> Tensor:
        """Joint loss of a batch, a scalar.

        `squares` (B, side, side, 3) uint8, one caption each, are the `rows` of the labels; `images`
        and `texts` (B, D) are the encoder's vectors of both. With `describe` the loss of describing
        the images is added.
        """
        visual = self._seen(squares)
        # All squares have one size, so every image has the same number of tokens.
        tokens_each = len(visual.states) // len(squares)
        loss = self._vision_loss(visual, rows, images)
        query_prompts = [self.prompts.query_prompt(caption) for caption in captions]
        query_state = self._prompt_state(query_prompts, None)
        image_prompts = [self.prompts.image_prompt(tokens_each)] * len(captions)
        image_state = self._prompt_state(image_prompts, visual)
        # A query lands near its text and near the image that it describes.
        for state, target in ((query_state, texts), (query_state, images), (image_state, images)):
            loss = loss + distill_loss(state, target, self.config.temperature)
        if describe:
            caption_loss = self._caption_loss(captions, tokens_each, visual)
            loss = loss + self.config.caption_weight * caption_loss
        return loss

    def _seen(self, squares: ByteArray) -> VisualTokens:
        patches = self.preprocessor.from_squares(squares).to(self.backbone.device)
        return encode_images(self.backbone, patches)

    def _vision_loss(self, visual: VisualTokens, rows: IntArray, images: Tensor) -> Tensor:
        tokens = visual.states.view(len(images), -1, visual.states.shape[-1])
        student = self.heads.vision(tokens.mean(1))
        loss = distill_loss(student, images, self.config.temperature)
        return loss if self.hints is None else loss + self.hints(tokens, rows)

    def _hidden(
        self, rows: list[list[int]], visual: VisualTokens | None
    ) -> tuple[EmbeddedRows, Tensor]:
        """The embedded rows and their last hidden states (B, T, H)."""
        inputs = embed_rows(
            self.backbone, rows, visual, image_token=self.prompts.image, pad=self._info.pad
        )
        output = self.backbone.model.language_model(
            inputs_embeds=inputs.embeddings,
            attention_mask=inputs.mask.long(),
            position_ids=inputs.positions,
            use_cache=False,
        )
        return inputs, output.last_hidden_state

    def _prompt_state(self, rows: list[list[int]], visual: VisualTokens | None) -> Tensor:
        """(B, D) projections of the states of the last prompt tokens."""
        inputs, hidden = self._hidden(rows, visual)
        batch = torch.arange(len(rows), device=hidden.device)
        # Rows are padded on the right.
        last = inputs.mask.sum(1) - 1
        projected: Tensor = self.heads.state(hidden[batch, last])
        return projected

    def _caption_loss(self, captions: list[str], tokens_each: int, visual: VisualTokens) -> Tensor:
        """Mean negative log-likelihood of a caption's token behind its image, nats."""
        examples = [self.prompts.describe(0, tokens_each, caption) for caption in captions]
        inputs, hidden = self._hidden([list(example.tokens) for example in examples], visual)
        predicted = continuation_mask(inputs.tokens, inputs.mask, examples)
        logits = self.backbone.lm_head(hidden[:, :-1][predicted])
        return F.cross_entropy(logits, inputs.tokens[:, 1:][predicted])


def pretrain(
    trainer: Pretrainer,
    data: CaptionedImages,
    images: FloatArray,
    embed_texts: Callable[[list[str]], FloatArray],
    progress: Progress = quiet,
) -> float:
    """Train backbone and heads in place; returns the mean loss of the last epoch.

    `images` (N, D) float32 are the encoder's image vectors; `embed_texts` gives its vectors of B
    texts, (B, D) float32.
    """
    config = trainer.config
    rng = np.random.default_rng(config.seed)
    device = trainer.backbone.device
    trainer.backbone.train()
    if config.vision_epochs:
        _pretrain_vision(trainer, data, images, rng, progress)
    batch = min(config.batch, len(data))
    steps = config.epochs * batches_per_epoch(len(data), batch)
    optimizer = _optimizer(config, [trainer.backbone, *trainer.modules], steps)
    losses: list[float] = []
    with progress("vision and language", steps) as bar:
        for _ in range(config.epochs):
            losses.clear()
            for rows in shuffled_batches(len(data), batch, rng):
                captions = pick_captions(data, rows, rng)
                texts = torch.from_numpy(embed_texts(captions)).to(device)
                targets = torch.from_numpy(images[rows]).to(device)
                # Describing every second batch is enough, and costs a third pass through the
                # language model.
                describe = len(losses) % 2 == 0
                loss = trainer.loss(data.pixels[rows], rows, captions, targets, texts, describe)
                optimizer.step(loss)
                losses.append(loss.item())
                bar.update(1, loss=losses[-1])
    trainer.backbone.eval()
    return float(np.mean(losses))


def _pretrain_vision(
    trainer: Pretrainer,
    data: CaptionedImages,
    images: FloatArray,
    rng: np.random.Generator,
    progress: Progress,
) -> None:
    """Train the vision tower alone, which needs many more views than the rest, and cheap ones."""
    config = trainer.config
    batch = min(config.batch, len(data))
    steps = config.vision_epochs * batches_per_epoch(len(data), batch)
    optimizer = _optimizer(config, [trainer.backbone.model.visual, *trainer.modules], steps)
    with progress("vision", steps) as bar:
        for _ in range(config.vision_epochs):
            for rows in shuffled_batches(len(data), batch, rng):
                targets = torch.from_numpy(images[rows]).to(trainer.backbone.device)
                loss = trainer.vision_loss(data.pixels[rows], rows, targets)
                optimizer.step(loss)
                bar.update(1, loss=loss.item())


def _optimizer(config: PretrainConfig, modules: Sequence[nn.Module], steps: int) -> CosineAdamW:
    """An optimizer of all parameters of some modules."""
    parameters: list[Tensor] = []
    for module in modules:
        parameters += module.parameters()
    return CosineAdamW(
        parameters,
        steps=steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        clip=CLIP,
    )
