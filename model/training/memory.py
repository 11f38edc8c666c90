"""Memory of a training step on one GPU, computed from a model's shape.

What autograd keeps of a layer was counted on the model itself; tests compare the sum with what a
small run really takes. Sizes are bytes; H is a hidden width, F that of the feed-forward part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from model.network.compute import Compute
from model.training.lora import TARGETS

_FLOAT32 = 4

# AdamW keeps two numbers of a weight.
_ADAM = 2 * _FLOAT32


@dataclass(frozen=True, slots=True)
class Part:
    """Part of a model: its layers, and the parameters in them and around them."""

    hidden: int
    feed_forward: int
    heads: int
    kv_width: int
    layers: int
    layer: int
    """Parameters of one layer."""
    around: int
    """Parameters beside the layers, without word tables."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Counts of parameters, and the widths that activations depend on."""

    text: Part
    vision: Part
    table: int
    """Parameters of one word table."""
    tables: int
    """1 where embedding and output layer are one table, else 2."""
    vocabulary: int
    head: int
    """Parameters of the soft-label head, and of the query head where there is one."""
    patch_values: int
    """Numbers of a patch, as the tower takes it."""
    merge: int

    @property
    def parameters(self) -> int:
        """All parameters."""
        layers = sum(part.layers * part.layer + part.around for part in (self.text, self.vision))
        return layers + self.tables * self.table + self.head


def model_shape(config: Qwen2_5_VLConfig, added_tokens: int) -> ModelShape:
    """The shape of a configuration whose vocabulary grows by identifier tokens."""
    described: Any = config
    text, vision = described.text_config, described.vision_config
    # No memory is taken: parameters on this device have a shape and nothing else.
    with torch.device("meta"):
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
    language, tower = model.model.language_model, model.model.visual
    hidden = int(text.hidden_size)
    vocabulary = int(text.vocab_size) + added_tokens
    known = int(language.embed_tokens.weight.numel())
    return ModelShape(
        text=Part(
            hidden=hidden,
            feed_forward=int(text.intermediate_size),
            heads=int(text.num_attention_heads),
            kv_width=hidden // text.num_attention_heads * text.num_key_value_heads,
            layers=len(language.layers),
            layer=_count(language.layers[0]),
            around=_count(language) - known - len(language.layers) * _count(language.layers[0]),
        ),
        vision=Part(
            hidden=int(vision.hidden_size),
            feed_forward=int(vision.intermediate_size),
            heads=int(vision.num_heads),
            kv_width=int(vision.hidden_size),
            layers=len(tower.blocks),
            layer=_count(tower.blocks[0]),
            around=_count(tower) - len(tower.blocks) * _count(tower.blocks[0]),
        ),
        table=vocabulary * hidden,
        tables=1 if described.tie_word_embeddings else 2,
        vocabulary=vocabulary,
        head=hidden * hidden + hidden + hidden // 2 * hidden + hidden // 2 + hidden // 2 + 1,
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        merge=int(vision.spatial_merge_size),
    )


def _count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@dataclass(frozen=True, slots=True)
class Load:
    """What a process runs at once: of one micro-batch all tokens with padding, and so on."""

    tokens: int
    patches: int
    predicted: int
    parts: int = 1
    """Micro-batches of a step."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU at the worst moment of a step."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    """What sharded layers take while they are whole."""
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations


def step_memory(
    shape: ModelShape, compute: Compute, load: Load, *, gpus: int, half: bool
) -> Memory:
    """Memory of a training step; `half` where products are bfloat16."""
    shards = gpus if compute.sharded else 1
    # Without an image there is neither gradient nor state of the tower, but for ranks that share.
    vision = load.patches > 0 or shards > 1
    trained = trained_parameters(shape, compute, vision=vision)
    moments = _moments(shape, compute, load, half=half)
    if load.parts > 1:
        # Behind the first micro-batch every gradient is there.
        moments = [(activations, trained) for activations, _ in moments]
    activations, with_gradient = max(moments, key=_bytes_at(shards))
    return Memory(
        weights=(shape.parameters + adapter_parameters(shape, compute)) * _FLOAT32 // shards,
        gradients=min(with_gradient, trained) * _FLOAT32 // shards,
        optimizer=trained * _ADAM // shards,
        gathered=_gathered(shape, half=half) if shards > 1 else 0,
        activations=activations,
    )


# Bytes of activations, and how many parameters have their gradient already.
Moment = tuple[int, int]


def _bytes_at(shards: int) -> Callable[[Moment], float]:
    return lambda moment: moment[0] + moment[1] * _FLOAT32 / shards


def adapter_parameters(shape: ModelShape, compute: Compute) -> int:
    """Parameters of the adapters beside the linear layers of the language half."""
    if not compute.lora_rank:
        return 0
    part = shape.text
    widths = {
        "q_proj": 2 * part.hidden,
        "k_proj": part.hidden + part.kv_width,
        "v_proj": part.hidden + part.kv_width,
        "o_proj": 2 * part.hidden,
        "gate_proj": part.hidden + part.feed_forward,
        "up_proj": part.hidden + part.feed_forward,
        "down_proj": part.hidden + part.feed_forward,
    }
    return compute.lora_rank * part.layers * sum(widths[name] for name in TARGETS)


def trained_parameters(shape: ModelShape, compute: Compute, *, vision: bool = True) -> int:
    """How many parameters have a gradient; those of the tower with `vision` only."""
    text, tower = shape.text, shape.vision
    trained = shape.tables * shape.table + shape.head
    if compute.lora_rank:
        trained += adapter_parameters(shape, compute)
    else:
        trained += text.layers * text.layer + text.around
    if vision and not compute.frozen_vision:
        trained += tower.layers * tower.layer + tower.around
    return trained


def _gathered(shape: ModelShape, *, half: bool) -> int:
    """The layer at work and the next one, and all that is in no layer, with its gradient."""
    width = 2 if half else _FLOAT32
    layer = max(shape.text.layer, shape.vision.layer)
    # Of two tables one is whole at a time.
    rest = shape.table + shape.head + shape.text.around + shape.vision.around
    # Gradients are summed in float32.
    return (2 * width + _FLOAT32) * layer + (2 * width + _FLOAT32) * rest


def _moments(shape: ModelShape, compute: Compute, load: Load, *, half: bool) -> list[Moment]:
    """The moments at which a step may take most.

    With the logits; where layers are computed again, in the last and in the first layer of the
    decoder and in one of the tower; and behind all. Beside a layer of the tower the inputs of the
    decoder's layers are counted too, which are gone by then: gradients on their way take about as
    much.
    """
    text, vision = shape.text, shape.vision
    in_text = _text_layer(text, load.tokens, half=half)
    in_vision = _vision_layer(vision, load.patches, half=half)
    kept = _around_vision(shape, load.patches, half=half) + _around_text(text, load.tokens)
    learns_vision = not compute.frozen_vision and load.patches > 0
    decoder = trained_parameters(shape, compute, vision=False)
    done: Moment = (0, trained_parameters(shape, compute, vision=learns_vision))
    logits = _logits(shape, load, half=half)
    if not compute.checkpointing:
        kept += text.layers * in_text + (vision.layers * in_vision if learns_vision else 0)
        return [(kept + logits, 0), done]
    inputs = load.tokens * text.hidden * _FLOAT32
    first = (kept + inputs + in_text, decoder)
    kept += text.layers * inputs
    if learns_vision:
        stream = 2 if half else _FLOAT32
        kept += vision.layers * load.patches * vision.hidden * stream
    moments = [(kept + logits, 0), (kept + in_text, shape.tables * shape.table), first, done]
    return [*moments, (kept + in_vision, decoder)] if learns_vision else moments


def _text_layer(part: Part, tokens: int, *, half: bool) -> int:
    """What autograd keeps of one decoder layer.

    Two norms keep what they read and what they scaled, in float32; linear layers what they read,
    with autocast a copy each; attention queries, keys, values and outputs.
    """
    attention = 2 * part.hidden + 2 * part.kv_width
    small = _FLOAT32 * (part.heads + 2)
    if half:
        each = 4 * _FLOAT32 * part.hidden + 2 * (5 * part.hidden + attention)
        return tokens * (each + 2 * 4 * part.feed_forward + small) + 2 * part.layer
    return tokens * (_FLOAT32 * (6 * part.hidden + attention + 4 * part.feed_forward) + small)


def _vision_layer(part: Part, patches: int, *, half: bool) -> int:
    """The same of one block of the tower, whose residual stream has the products' format."""
    small = _FLOAT32 * (part.heads + 2)
    if half:
        each = 32 * part.hidden + 2 * 4 * part.feed_forward
        return patches * (each + small) + 2 * part.layer if patches else 0
    return patches * (_FLOAT32 * (13 * part.hidden + 4 * part.feed_forward) + small)


def _around_text(part: Part, tokens: int) -> int:
    """Embeddings before and behind the images are put in, the last norm, positions."""
    return tokens * (4 * part.hidden * _FLOAT32 + 8 * _FLOAT32)


def _around_vision(shape: ModelShape, patches: int, *, half: bool) -> int:
    """Pixels, the first layer, and the perceptron that merges patches."""
    width = 2 if half else _FLOAT32
    pixels = patches * shape.patch_values * (_FLOAT32 + (2 if half else 0))
    # In, scaled and out of the norm; before, in and behind the activation function.
    return pixels + patches * shape.vision.hidden * (2 * _FLOAT32 + 4 * width)


def _logits(shape: ModelShape, load: Load, *, half: bool) -> int:
    """Logits with their logarithms and gradients, and the gradient of the word table."""
    per_token = 10 if half else 12
    table = (2 if half else 0) * 2
    return load.predicted * shape.vocabulary * per_token + shape.table * table
