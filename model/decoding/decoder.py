"""The decoder: the language half of Qwen2.5-VL run step by step, the prompt's keys and values shared by all beams.

A prompt of T tokens is read once; W beams then attend to its single copy and to their own few tokens. The output layer is
evaluated on the tokens of one identifier level only. Equal to the full model's logits (tests/unit/test_decoder.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from model.network.backbone import ImagePatches
from model.network.sigma import SigmaModel
from schemas.identifiers import IdentifierShape


@dataclass(frozen=True, slots=True)
class Prompt:
    """B prompts that were read. `keys` and `values` of each layer (B, G, T, d), `mask` (B, T) bool, `next_position` (B,)
    int64 of the first generated token, `state` (B, H) the last prompt token's hidden state."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor
    next_position: Tensor
    state: Tensor


@dataclass(frozen=True, slots=True)
class BeamCache:
    """What W beams of B prompts generated so far: keys and values of each layer (B, W, G, t, d)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def select(self, parents: Tensor) -> "BeamCache":
        """The caches of the chosen parents, (B, W') int64."""
        index = parents[:, :, None, None, None]

        def gather(part: Tensor) -> Tensor:
            return part.gather(1, index.expand(-1, -1, *part.shape[2:]))

        return BeamCache(tuple(map(gather, self.keys)), tuple(map(gather, self.values)))


class Decoder:
    """Incremental decoding of one model's identifiers."""

    def __init__(self, sigma: SigmaModel) -> None:
        self.sigma = sigma.eval()
        self.text: Any = sigma.backbone.model.language_model
        self._levels = [torch.tensor(ids, device=sigma.device) for ids in sigma.levels]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.sigma.device

    @torch.inference_mode()
    def read_texts(self, texts: Sequence[str]) -> Prompt:
        """Prompts of B queries (paper, figure 2: caption → identifier)."""
        return self._read([self.sigma.prompts.query_prompt(text) for text in texts], None)

    @torch.inference_mode()
    def read_images(self, given: ImagePatches) -> Prompt:
        """Prompts of B images (paper, equation 4: image → identifier)."""
        rows = [self.sigma.prompts.image_prompt(count) for count in given.tokens(self.sigma.merge)]
        return self._read(rows, given)

    @torch.inference_mode()
    def logits(self, level: int, states: Tensor) -> Tensor:
        """(…, H) hidden states → (…, K) float32 logits of the tokens of id`level + 1`."""
        weight = self.sigma.backbone.lm_head.weight[self._levels[level]]
        return (states @ weight.T).float()

    def tokens(self, level: int, codes: Tensor) -> Tensor:
        """Token ids of codes of id`level + 1`, of any shape."""
        return self._levels[level][codes]

    @torch.inference_mode()
    def read_rows(self, rows: Sequence[Sequence[int]]) -> Prompt:
        """Prompts given as token rows."""
        return self._read(rows, None)

    @torch.inference_mode()
    def step(
        self, prompt: Prompt, cache: BeamCache | None, tokens: Tensor
    ) -> tuple[Tensor, BeamCache]:
        """Feed one token to every beam, (B, W) int64 → hidden states (B, W, H) and the longer caches."""
        hidden = self.text.embed_tokens(tokens)
        done = 0 if cache is None else cache.keys[0].shape[3]
        positions = (prompt.next_position + done).view(1, -1, 1).expand(3, -1, tokens.shape[1])
        cosine, sine = self.text.rotary_emb(hidden, positions)
        keys, values = [], []
        for index, layer in enumerate(self.text.layers):
            past = None if cache is None else (cache.keys[index], cache.values[index])
            mixed, own_keys, own_values = _attend(
                layer.self_attn, layer.input_layernorm(hidden), cosine, sine, prompt, index, past
            )
            hidden = hidden + mixed
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            keys.append(own_keys)
            values.append(own_values)
        return self.text.norm(hidden), BeamCache(tuple(keys), tuple(values))

    def begin(self, prompt: Prompt) -> "TorchDecodingState":
        """Begin a beam search at prompts that were read."""
        return TorchDecodingState(self, prompt)

    def _read(self, rows: Sequence[Sequence[int]], given: ImagePatches | None) -> Prompt:
        seen = None if given is None else self.sigma.see(given)
        _, mask, embeds, positions = self.sigma.embed(
            rows, seen, None if given is None else given.grid
        )
        out = self.text(
            inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions, use_cache=True
        )
        last = mask.sum(1) - 1
        batch = torch.arange(len(rows), device=mask.device)
        cache = out.past_key_values
        return Prompt(
            keys=tuple(layer.keys for layer in cache.layers),
            values=tuple(layer.values for layer in cache.layers),
            mask=mask,
            next_position=positions[0, batch, last] + 1,
            state=out.last_hidden_state[batch, last],
        )


class TorchDecodingState:
    """A beam search's way through one batch of prompts (`model.decoding.beam.DecodingState`): keeps the beams' hidden states and caches."""

    def __init__(self, decoder: Decoder, prompt: Prompt) -> None:
        self.batch: int = prompt.state.shape[0]
        self.device: torch.device = prompt.state.device
        self._decoder = decoder
        self._prompt = prompt
        self._shape: IdentifierShape = decoder.sigma.profile.shape
        self._cache: BeamCache | None = None

    @torch.inference_mode()
    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        """(B, W, K) float32 log-probabilities of id`level + 1`; see `model.decoding.beam.DecodingState`. Dead beams cost the same as live ones."""
        if parents is None:
            states = self._read_again(level, prefixes)
        else:
            past = None if self._cache is None else self._cache.select(parents)
            states = self._step(past, level - 1, prefixes % self._shape.codes[level - 1])
        return torch.log_softmax(self._decoder.logits(level, states), -1)

    def _read_again(self, level: int, prefixes: Tensor) -> Tensor:
        """Hidden states (B, W, H) behind whole prefixes, read from the prompt on."""
        self._cache = None
        states = self._prompt.state.unsqueeze(1).expand(-1, prefixes.shape[1], -1)
        for depth in range(level):
            below = self._shape.prefixes(level) // self._shape.prefixes(depth + 1)
            states = self._step(self._cache, depth, prefixes // below % self._shape.codes[depth])
        return states

    def _step(self, past: BeamCache | None, level: int, codes: Tensor) -> Tensor:
        states, self._cache = self._decoder.step(
            self._prompt, past, self._decoder.tokens(level, codes)
        )
        return states


def _attend(
    attention: Any,
    hidden: Tensor,
    cosine: Tensor,
    sine: Tensor,
    prompt: Prompt,
    index: int,
    past: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of one new token per beam over the shared prompt and the beam's own tokens: output (B, W, H), own keys, values."""
    batch, beams, _ = hidden.shape
    width, groups = attention.head_dim, attention.num_key_value_heads

    def heads(projected: Tensor) -> Tensor:
        return projected.view(batch, beams, -1, width).transpose(1, 2)

    query, key = apply_rotary_pos_emb(
        heads(attention.q_proj(hidden)), heads(attention.k_proj(hidden)), cosine, sine
    )
    query = query.view(batch, groups, -1, beams, width) * attention.scaling
    own_keys, own_values = (
        part.transpose(1, 2).unsqueeze(3) for part in (key, heads(attention.v_proj(hidden)))
    )  # (B, W, G, 1, d)
    if past is not None:
        own_keys, own_values = (
            torch.cat([past[0], own_keys], 3),
            torch.cat([past[1], own_values], 3),
        )
    shared = torch.einsum("bgqwd,bgtd->bgqwt", query, prompt.keys[index]).masked_fill(
        ~prompt.mask[:, None, None, None, :], float("-inf")
    )
    own = torch.einsum("bgqwd,bwgsd->bgqws", query, own_keys)
    share = torch.softmax(torch.cat([shared, own], -1).float(), -1).to(hidden.dtype)
    length = prompt.mask.shape[1]
    mixed = torch.einsum("bgqwt,bgtd->bwgqd", share[..., :length], prompt.values[index])
    mixed = mixed + torch.einsum("bgqws,bwgsd->bwgqd", share[..., length:], own_values)
    return attention.o_proj(mixed.reshape(batch, beams, -1)), own_keys, own_values
