"""The SIGMA model: the Qwen2.5-VL backbone with identifier tokens, and the soft-label head.

Paper, section 3.2.

Letters in shapes: B token rows padded to T tokens, N images, H hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.backbone import backbone_info
from model.network.inputs import (
    EmbeddedRows,
    ImagePatches,
    ImagePreprocessor,
    VisualTokens,
    embed_rows,
    encode_images,
    interleaved,
)
from model.network.precision import autocast, full_precision
from model.network.profiles import Profile
from model.network.prompts import PromptBuilder, TrainingExample
from model.network.query_head import QueryHead, QuerySpace
from model.network.tokenizer import (
    joint_token_ids,
    level_token_ids,
)
from model.network.vector_reading import VectorProjector, VectorReading
from schemas.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

NO_QUERY_HEAD = (
    "a model that reads the encoder's vectors cannot have a query head, for it is told the vector "
    "of a query before it reads it; train without --query-head, or with captions for all images and"
    " the profile tiny or a qwen one"
)


class SoftLabelHead(nn.Module):
    """Predicts a query's similarity from the states of the identifier tokens.

    Three-layer perceptron and sigmoid on their mean (equations 8 and 9).
    """

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
    """Losses of one batch, scalars.

    `generation` is equation 4, 6 or 10, as a mean over tokens; `similarity` is equation 11, zero
    without soft labels; `embedding` is 1 - cosine of the query head, zero without one. `counts`
    (3,) float32: how many tokens, soft labels and queries these are means over.
    """

    generation: Tensor
    similarity: Tensor
    counts: Tensor
    embedding: Tensor


class SigmaModel(nn.Module):
    """Backbone and soft-label head, with what turns images and texts into prompts."""

    def __init__(
        self,
        backbone: "Qwen2_5_VLForConditionalGeneration",
        tokenizer: "PreTrainedTokenizerBase",
        preprocessor: ImagePreprocessor,
        profile: Profile,
    ) -> None:
        """`tokenizer` must have the identifier tokens of the profile's shape."""
        super().__init__()
        info = backbone_info(backbone)
        self.backbone = backbone
        self.head = SoftLabelHead(info.hidden)
        self.tokenizer = tokenizer
        self.preprocessor = preprocessor
        self.profile = profile
        self.levels = level_token_ids(tokenizer, profile.shape)
        # Empty for a model of a version without them, which goes on as it was trained.
        joint = joint_token_ids(tokenizer, profile.shape)
        self.prompts = PromptBuilder(tokenizer, self.levels, profile.max_text_tokens, joint)
        self.merge = info.merge
        self.pad = int(tokenizer.pad_token_id)
        self.projector: VectorProjector | None = None
        """Reads an encoder's vectors of texts and pictures; see `add_projector`."""

        self.query_head: QueryHead | None = None
        """Gives queries' vectors in place of the encoder; see `add_query_head`."""

        self.uses_vision_always = False
        """Whether training runs the vision tower on a blank image where a batch has none: ranks
        that divide its layers among them must run them together."""
        self.uses_heads_always = False
        """The same of the soft-label head, the projector and the query head."""

    def add_projector(self, reading: VectorReading) -> VectorProjector:
        """Give the model a projector with fresh weights: from here on it reads vectors."""
        hidden = backbone_info(self.backbone).hidden
        self.projector = VectorProjector(reading, hidden, self.merge).to(self.device)
        return self.projector

    def add_query_head(self, space: QuerySpace) -> QueryHead:
        """Give the model a query head with fresh weights.

        `UsageError` for a model that reads vectors: it must be told those of queries first.
        """
        if self.projector is not None:
            raise UsageError(NO_QUERY_HEAD)
        hidden = backbone_info(self.backbone).hidden
        self.query_head = QueryHead(space, hidden).to(self.device)
        return self.query_head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.device

    def autocast(self) -> torch.autocast:
        """A context in which products run in the profile's number format."""
        return autocast(self.profile.compute, self.device)

    def get_input_embeddings(self) -> nn.Module:
        """Asked by what divides a model among processes: word tables are large."""
        embedding: nn.Module = self.backbone.get_input_embeddings()
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        """The output layer likewise."""
        output: nn.Module = self.backbone.lm_head
        return output

    def encode_images(self, patches: ImagePatches) -> VisualTokens:
        """Run the vision tower on a batch of images."""
        return encode_images(self.backbone, patches)

    def embed(
        self, rows: Sequence[Sequence[int]], visual: VisualTokens | None, length: int | None = None
    ) -> EmbeddedRows:
        """Embed B token rows, with visual tokens, in row order, in the places of image tokens.

        They are padded to `length`, or to the longest.
        """
        image = self.prompts.image
        return embed_rows(
            self.backbone, rows, visual, image_token=image, pad=self.pad, length=length
        )

    def forward(
        self,
        examples: Sequence[TrainingExample],
        images: ImagePatches | VisualTokens | None,
        vectors: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields of `losses`, for images that the vision tower has seen or has yet to see.

        `vectors` (n, D): placed ones, of the examples that have one, in order. `targets` (m, D):
        the encoder's of the examples that are a `query`, in order, for the query head.

        Training must call the model through here: what synchronises gradients between processes
        wraps this method.
        """
        with self.autocast():
            idle = self._idle_parts(images, vectors, targets)
            visual = self.encode_images(images) if isinstance(images, ImagePatches) else images
            if vectors is not None and self.projector is not None:
                is_vector = [each.vector is not None for each in examples if each.is_visual]
                read = self.projector(vectors.to(self.device))
                visual = interleaved(visual, read, is_vector, self.merge)
            losses = self.losses(examples, visual, targets)
        # A plain tuple: the wrapper looks for tensors in what is returned.
        return losses.generation + idle, losses.similarity, losses.counts, losses.embedding

    def _idle_parts(
        self,
        images: ImagePatches | VisualTokens | None,
        vectors: Tensor | None,
        targets: Tensor | None,
    ) -> Tensor:
        """Zero, with a gradient of zero for the parts of the model that a batch does not need."""
        idle = torch.zeros((), device=self.device)
        if self.uses_vision_always and images is None:
            idle = idle + 0.0 * self.encode_images(self._blank_image()).states.float().sum()
        if self.uses_heads_always:
            hidden = backbone_info(self.backbone).hidden
            idle = idle + 0.0 * self._judged(torch.zeros(1, hidden, device=self.device)).sum()
            if self.projector is not None and vectors is None:
                nothing = torch.zeros(1, self.projector.reading.width, device=self.device)
                idle = idle + 0.0 * self.projector(nothing).states.float().sum()
            if self.query_head is not None and targets is None:
                idle = (
                    idle + 0.0 * self.query_head(torch.zeros(1, hidden, device=self.device)).sum()
                )
        return idle

    def _blank_image(self) -> ImagePatches:
        """The smallest image whose patches can be merged twice in each direction."""
        vision: Any = self.backbone.config.vision_config
        side = 2 * self.merge
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return ImagePatches(torch.zeros(side * side, width), torch.tensor([[1, side, side]]))

    def losses(
        self,
        examples: Sequence[TrainingExample],
        visual: VisualTokens | None,
        targets: Tensor | None = None,
    ) -> Losses:
        """Losses of a batch. `visual` holds the images of the examples with one, in order.

        `targets` as in `forward`.
        """
        inputs = self.embed([example.tokens for example in examples], visual)
        hidden = self._hidden_states(inputs.without([example.hidden for example in examples]))
        predicted = continuation_mask(inputs.tokens, inputs.mask, examples)
        # The state of each token predicts the next one; (predicted tokens, vocabulary).
        logits = self.backbone.lm_head(hidden[:, :-1][predicted])
        generation = _mean_loss(logits.float(), inputs.tokens[:, 1:][predicted])
        similarity, labels = self._similarity_loss(examples, hidden)
        embedding, queries = self._embedding_loss(examples, hidden, targets)
        counts = torch.tensor(
            [predicted.sum(), labels, queries], dtype=torch.float32, device=hidden.device
        )
        return Losses(generation, similarity, counts, embedding)

    @torch.inference_mode()
    def query_states(self, texts: Sequence[str]) -> Tensor:
        """(B, H) states of the last prompt tokens of B queries, which the query head reads."""
        inputs = self.embed([self.prompts.query_prompt(text) for text in texts], None)
        rows = torch.arange(len(texts), device=inputs.mask.device)
        return self._hidden_states(inputs)[rows, inputs.mask.sum(1) - 1]

    @torch.inference_mode()
    def continuation_losses(self, examples: Sequence[TrainingExample]) -> Tensor:
        """(B,) float32 nats a token of what each example without an image is to predict."""
        with self.autocast():
            inputs = self.embed([example.tokens for example in examples], None)
            hidden = self._hidden_states(inputs)
            predicted = continuation_mask(inputs.tokens, inputs.mask, examples)
            logits = self.backbone.lm_head(hidden[:, :-1][predicted])
        each = F.cross_entropy(logits.float(), inputs.tokens[:, 1:][predicted], reduction="none")
        rows = predicted.nonzero()[:, 0]
        totals = each.new_zeros(len(examples)).index_add(0, rows, each)
        return totals / predicted.sum(1).clamp(min=1)

    @torch.inference_mode()
    def similarities(self, examples: Sequence[TrainingExample]) -> Tensor:
        """(B,) float32 similarity in 0..1 of pairs of a text and an identifier (equation 9)."""
        with self.autocast():
            inputs = self.embed([example.tokens for example in examples], None)
            hidden = self._hidden_states(inputs)
        states: list[Tensor] = []
        for row, example in enumerate(examples):
            start, stop = example.identifier_span or (0, len(example.tokens))
            states.append(hidden[row, start:stop].mean(0))
        return self._judged(torch.stack(states))

    def _judged(self, states: Tensor) -> Tensor:
        """(B,) float32 similarities of (B, H) mean states of any format (equation 9).

        The head is small and its weights are float32: what the backbone runs in must not reach it.
        """
        with full_precision(states.device):
            weight = next(self.head.parameters())
            similarity: Tensor = self.head(states.to(weight.dtype)).float()
        return similarity

    def _hidden_states(self, inputs: EmbeddedRows) -> Tensor:
        """(B, T, H) last hidden states."""
        hidden: Tensor = self.backbone.model.language_model(
            inputs_embeds=inputs.embeddings,
            attention_mask=inputs.mask.long(),
            position_ids=inputs.positions,
            use_cache=False,
        ).last_hidden_state
        return hidden

    def _similarity_loss(
        self, examples: Sequence[TrainingExample], hidden: Tensor
    ) -> tuple[Tensor, int]:
        """Equation 11 on (B, T, H) hidden states, and how many soft labels there are."""
        states: list[Tensor] = []
        labels: list[float] = []
        for row, example in enumerate(examples):
            if example.identifier_span is not None and example.soft_label is not None:
                start, stop = example.identifier_span
                states.append(hidden[row, start:stop].mean(0))  # equation 8
                labels.append(example.soft_label)
        if not labels:
            return hidden.new_zeros((), dtype=torch.float32), 0
        wanted = torch.tensor(labels, dtype=torch.float32, device=hidden.device)
        return F.mse_loss(self._judged(torch.stack(states)), wanted), len(labels)

    def _embedding_loss(
        self, examples: Sequence[TrainingExample], hidden: Tensor, targets: Tensor | None
    ) -> tuple[Tensor, int]:
        """Mean of 1 - cosine of the query head's vectors with (m, D) targets, and m."""
        if self.query_head is None or targets is None:
            return hidden.new_zeros((), dtype=torch.float32), 0
        states = [
            hidden[row, example.prompt_length - 1]
            for row, example in enumerate(examples)
            if example.query is not None
        ]
        cosines = (self.query_head(torch.stack(states)) * targets.to(hidden.device)).sum(1)
        return 1.0 - cosines.mean(), len(states)


def _mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of (n, V) logits as a mean; 0 for a batch in which nothing is predicted."""
    if not len(targets):
        # The sum of nothing, which still has a gradient: a mean would not be a number.
        return logits.sum()
    return F.cross_entropy(logits, targets)


def continuation_mask(tokens: Tensor, mask: Tensor, examples: Sequence[TrainingExample]) -> Tensor:
    """(B, T - 1) bool: which tokens, from the second on, the model learns to predict.

    They are those behind the prompts.
    """
    prompt_lengths = torch.tensor(
        [example.prompt_length for example in examples], device=tokens.device
    )
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    behind_prompt = columns.unsqueeze(0) >= prompt_lengths.unsqueeze(1)
    return (mask & behind_prompt)[:, 1:]
