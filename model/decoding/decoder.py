"""The torch decoder: the language half of Qwen2.5-VL, run step by step for all beams at once.

A prompt of T tokens is read once; its W beams attend to that single copy and to their own few
tokens. The output layer is evaluated on the tokens of one identifier level only.
tests/unit/model/decoding/test_decoder.py compares it with the full model.

Letters in shapes: B prompts, T prompt tokens, W beams of a prompt, t tokens that a beam has
generated, H hidden width, G key-value heads, q query heads of each of them, d head width, K codes
of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from model.network.inputs import ImagePatches, VisualTokens
from model.network.sigma import SigmaModel
from model.network.vector_reading import VectorProjector
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray


@dataclass(frozen=True, slots=True)
class PromptCache:
    """B prompts that the model has read, padded on the right to T tokens.

    `keys` and `values` of each layer (B, G, T, d). `mask` (B, T) bool, False on padding.
    `next_position` (B,) int64: the position of the first generated token. `state` (B, H): the
    hidden state of the last prompt token.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor
    next_position: Tensor
    state: Tensor


@dataclass(frozen=True, slots=True)
class BeamCache:
    """What W beams of B prompts have generated so far.

    `keys` and `values` of each layer (B, W, G, t, d).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """t, the tokens that each beam has generated."""
        return int(self.keys[0].shape[3])

    def select(self, parents: Tensor) -> "BeamCache":
        """The caches of the chosen parents, (B, W') int64."""
        index = parents[:, :, None, None, None]

        def gather(part: Tensor) -> Tensor:
            return part.gather(1, index.expand(-1, -1, *part.shape[2:]))

        return BeamCache(tuple(map(gather, self.keys)), tuple(map(gather, self.values)))


class Decoder:
    """A `TextDecodingEngine` on torch, which reads prompts of images too."""

    def __init__(self, sigma: SigmaModel) -> None:
        self.sigma = sigma.eval()
        self.language_model: Any = sigma.backbone.model.language_model
        self._level_tokens: list[Tensor] = []
        for token_ids in sigma.levels:
            self._level_tokens.append(torch.tensor(token_ids, device=sigma.device))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.sigma.device

    @torch.inference_mode()
    def read_texts(self, texts: Sequence[str], vectors: FloatArray | None = None) -> PromptCache:
        """Read the prompts of B queries (paper, figure 2, stage 3: caption → identifier).

        `vectors` (B, D) are the encoder's of the texts, for a model that reads them.
        """
        prompts = self.sigma.prompts
        projector = self.sigma.projector
        if projector is None:
            return self._read([prompts.query_prompt(text) for text in texts], None)
        if vectors is None:
            raise AssertionError("a model that reads vectors was asked without any")
        reading = projector.reading
        rows: list[list[int]] = []
        for text in texts:
            own = text if reading.with_text else ""
            rows.append(prompts.vector_query_prompt(reading.tokens, own))
        return self._read(rows, projector(projector.placed_texts(vectors)))

    @torch.inference_mode()
    def read_images(self, patches: ImagePatches) -> PromptCache:
        """Read the prompts of B images (paper, equation 3: image → identifier)."""
        token_counts = patches.token_counts(self.sigma.merge)
        rows = [self.sigma.prompts.image_prompt(count) for count in token_counts]
        return self._read(rows, self.sigma.encode_images(patches))

    @torch.inference_mode()
    def read_image_vectors(self, projector: VectorProjector, vectors: FloatArray) -> PromptCache:
        """Read (B, D) vectors of B images in place of the images, by the model's own projector."""
        rows = [self.sigma.prompts.vector_prompt(projector.reading.tokens)] * len(vectors)
        return self._read(rows, projector(projector.placed_images(vectors)))

    @torch.inference_mode()
    def read_rows(self, rows: Sequence[Sequence[int]]) -> PromptCache:
        """Read prompts given as B rows of token ids."""
        return self._read(rows, None)

    def begin(self, prompt: PromptCache) -> "TorchDecodingState":
        """Start decoding behind prompts."""
        return TorchDecodingState(self, prompt)

    @torch.inference_mode()
    def logits(self, level: int, states: Tensor) -> Tensor:
        """(…, H) hidden states → (…, K) float32 logits of the tokens of id`level + 1`.

        Their product too is float32, whatever the backbone runs in: in bfloat16 logits of 16 to 32
        differ by eighths, and beams would tie.
        """
        weight = self.sigma.backbone.lm_head.weight[self._level_tokens[level]]
        return states.float() @ weight.float().T

    def tokens(self, level: int, codes: Tensor) -> Tensor:
        """Token ids of codes of id`level + 1`, of any shape."""
        return self._level_tokens[level][codes]

    @torch.inference_mode()
    def step(
        self, prompt: PromptCache, cache: BeamCache | None, tokens: Tensor
    ) -> tuple[Tensor, BeamCache]:
        """Feed one token to every beam.

        `tokens` (B, W) int64. Returns hidden states (B, W, H) and the extended cache.
        """
        hidden = self.language_model.embed_tokens(tokens)
        generated = 0 if cache is None else cache.length
        positions = (prompt.next_position + generated).view(1, -1, 1)
        # Qwen2.5-VL has three position axes (time, row, column); in text all three are equal.
        positions = positions.expand(3, -1, tokens.shape[1])
        cosine, sine = self.language_model.rotary_emb(hidden, positions)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for index, layer in enumerate(self.language_model.layers):
            past = None if cache is None else (cache.keys[index], cache.values[index])
            attended, own_keys, own_values = _attend(
                layer.self_attn, layer.input_layernorm(hidden), cosine, sine, prompt, index, past
            )
            hidden = hidden + attended
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            keys.append(own_keys)
            values.append(own_values)
        return self.language_model.norm(hidden), BeamCache(tuple(keys), tuple(values))

    def _read(self, rows: Sequence[Sequence[int]], visual: VisualTokens | None) -> PromptCache:
        inputs = self.sigma.embed(rows, visual)
        output = self.language_model(
            inputs_embeds=inputs.embeddings,
            attention_mask=inputs.mask.long(),
            position_ids=inputs.positions,
            use_cache=True,
        )
        last = inputs.mask.sum(1) - 1
        batch = torch.arange(len(rows), device=inputs.mask.device)
        layers = output.past_key_values.layers
        return PromptCache(
            keys=tuple(layer.keys for layer in layers),
            values=tuple(layer.values for layer in layers),
            mask=inputs.mask,
            next_position=inputs.positions[0, batch, last] + 1,
            state=output.last_hidden_state[batch, last],
        )


class TorchDecodingState:
    """A `model.decoding.beam.DecodingState` that keeps the keys and values of its beams."""

    def __init__(self, decoder: Decoder, prompt: PromptCache) -> None:
        self.batch: int = prompt.state.shape[0]
        self.device: torch.device = prompt.state.device
        self._decoder = decoder
        self._prompt = prompt
        self._shape: IdentifierShape = decoder.sigma.profile.shape
        self._cache: BeamCache | None = None

    @torch.inference_mode()
    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        """(B, W, K) float32 log-probabilities of id`level + 1`.

        Dead beams cost as much as live ones: shapes stay static.
        """
        if parents is None:
            states = self._restart(level, prefixes)
        else:
            past = None if self._cache is None else self._cache.select(parents)
            last_codes = prefixes % self._shape.codes[level - 1]
            states = self._step(past, level - 1, last_codes)
        return torch.log_softmax(self._decoder.logits(level, states), -1)

    def _restart(self, level: int, prefixes: Tensor) -> Tensor:
        """Hidden states (B, W, H) behind (B, W) prefixes of `level` codes, read anew."""
        self._cache = None
        states = self._prompt.state.unsqueeze(1).expand(-1, prefixes.shape[1], -1)
        for depth in range(level):
            # A prefix is a mixed-radix number, id1 the most significant digit.
            below = self._shape.prefixes(level) // self._shape.prefixes(depth + 1)
            codes = prefixes // below % self._shape.codes[depth]
            states = self._step(self._cache, depth, codes)
        return states

    def _step(self, past: BeamCache | None, level: int, codes: Tensor) -> Tensor:
        tokens = self._decoder.tokens(level, codes)
        states, self._cache = self._decoder.step(self._prompt, past, tokens)
        return states


def _attend(
    attention: Any,
    hidden: Tensor,
    cosine: Tensor,
    sine: Tensor,
    prompt: PromptCache,
    index: int,
    past: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of one new token of each beam to the shared prompt and to the beam's own tokens.

    `index` is the layer, `past` its keys and values (B, W, G, t, d) of the beams. Returns the
    output (B, W, H) and the beams' keys and values with the new token, (B, W, G, t + 1, d).
    """
    batch, beams, _ = hidden.shape
    width = attention.head_dim
    groups = attention.num_key_value_heads

    def heads(projected: Tensor) -> Tensor:
        return projected.view(batch, beams, -1, width).transpose(1, 2)

    query = heads(attention.q_proj(hidden))
    key = heads(attention.k_proj(hidden))
    value = heads(attention.v_proj(hidden))
    query, key = apply_rotary_pos_emb(query, key, cosine, sine)
    query = query.view(batch, groups, -1, beams, width) * attention.scaling  # (B, G, q, W, d)
    own_keys = key.transpose(1, 2).unsqueeze(3)  # (B, W, G, 1, d)
    own_values = value.transpose(1, 2).unsqueeze(3)
    if past is not None:
        past_keys, past_values = past
        own_keys = torch.cat([past_keys, own_keys], 3)
        own_values = torch.cat([past_values, own_values], 3)
    prompt_scores = torch.einsum("bgqwd,bgtd->bgqwt", query, prompt.keys[index])
    padding = ~prompt.mask[:, None, None, None, :]
    prompt_scores = prompt_scores.masked_fill(padding, float("-inf"))
    own_scores = torch.einsum("bgqwd,bwgsd->bgqws", query, own_keys)
    # One softmax over prompt and own tokens, in float32 as the model's own attention does.
    scores = torch.cat([prompt_scores, own_scores], -1)
    weights = torch.softmax(scores.float(), -1).to(hidden.dtype)
    length = prompt.mask.shape[1]
    mixed = torch.einsum("bgqwt,bgtd->bwgqd", weights[..., :length], prompt.values[index])
    mixed = mixed + torch.einsum("bgqws,bwgsd->bwgqd", weights[..., length:], own_values)
    return attention.o_proj(mixed.reshape(batch, beams, -1)), own_keys, own_values
