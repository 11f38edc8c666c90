"""The torch decoder: the language half of Qwen2.5-VL, run step by step for all beams at once.

A prompt of T tokens is read once; its W beams attend to that single copy and to the few tokens
that they descend from. The output layer is evaluated on the tokens of one identifier level only.
tests/unit/model/decoding/test_decoder.py compares it with the full model.

Letters in shapes: B prompts, T prompt tokens, W beams of a prompt, R tokens of a prompt and all its
beams, H hidden width, G key-value heads, d head width, K codes of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model.decoding.beam import BeamPlan, Beams, search_planned
from model.decoding.graphs import SearchGraphs, capture_cuda
from model.decoding.layers import DecoderLayer, Rotation, rms_norm, signed, step_mask
from model.network.inputs import EmbeddedRows, ImagePatches, VisualTokens, sent
from model.network.sigma import SigmaModel
from model.network.vector_reading import VectorProjector
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray


@dataclass(frozen=True, slots=True)
class Prompts:
    """B prompts that the model has yet to read. The first `count` are real, others fill up."""

    rows: EmbeddedRows
    count: int


@dataclass(frozen=True, slots=True)
class PromptCache:
    """B prompts that the model has read, padded on the right to T tokens.

    `seen`: keys and values of each layer (B, 2·G, T, d). `mask` (B, T) bool, False on padding.
    `next_position` (B,) int64: the position of the first generated token. `state` (B, H): the
    hidden state of the last prompt token.
    """

    seen: tuple[Tensor, ...]
    mask: Tensor
    next_position: Tensor
    state: Tensor


@dataclass(frozen=True, slots=True)
class BeamCache:
    """What the beams of B prompts have generated so far, those that were given up too.

    `seen`: keys and values of each layer, of the prompt and of every generated token,
    (B, 2·G, R, d). `sees` (B, W, R) bool: which of them each beam descends from. `length`: the
    tokens that a beam has generated.
    """

    seen: tuple[Tensor, ...]
    sees: Tensor
    length: int

    def select(self, parents: Tensor) -> "BeamCache":
        """The caches of the chosen parents, (B, W') int64."""
        return replace(self, sees=_of_beams(self.sees, parents))


@dataclass(frozen=True, slots=True)
class AheadCache:
    """Every code of id1 behind B prompts: `states` (B, K, H) of it, and a cache of K beams."""

    states: Tensor
    cache: BeamCache

    def select(self, codes: Tensor) -> tuple[Tensor, BeamCache]:
        """States and caches of the chosen codes, (B, W) int64."""
        return _of_beams(self.states, codes), self.cache.select(codes)


# Tokens of a batch that a GPU reads in the time that it takes to read the weights, and some more:
# so many are worth the pass that they save.
AHEAD_TOKENS = 384


class Decoder:
    """A `SearchingEngine` on torch, which reads prompts of images too.

    It joins weights of the model, which is not to be moved to another device or format afterwards.
    """

    def __init__(
        self, sigma: SigmaModel, graphs: SearchGraphs | None = None, ahead: int | None = None
    ) -> None:
        """`graphs` replays searches; without, those of a GPU are captured in CUDA graphs.

        Prompts that have, with every code of id1 behind each, at most `ahead` tokens are read
        together with these codes, one pass less; `AHEAD_TOKENS` on a GPU. On a CPU it is 0, for
        there each token takes its time.
        """
        self.sigma = sigma.eval()
        self.language_model: Any = sigma.backbone.model.language_model
        self.layers = [DecoderLayer(layer) for layer in self.language_model.layers]
        if graphs is None and sigma.device.type == "cuda":
            graphs = SearchGraphs(capture_cuda())
        self.graphs = graphs
        by_device = AHEAD_TOKENS if sigma.device.type == "cuda" else 0
        self._ahead = by_device if ahead is None else ahead
        self._level_tokens: list[Tensor] = []
        for token_ids in sigma.levels:
            self._level_tokens.append(torch.tensor(token_ids, device=sigma.device))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.sigma.device

    @torch.inference_mode()
    def read_texts(self, texts: Sequence[str], vectors: FloatArray | None = None) -> Prompts:
        """The prompts of B queries (paper, figure 2, stage 3: caption → identifier).

        `vectors` (B, D) are the encoder's of the texts, for a model that reads them.
        """
        prompts = self.sigma.prompts
        projector = self.sigma.projector
        if projector is None:
            return self._prompts([prompts.query_prompt(text) for text in texts], None)
        if vectors is None:
            raise AssertionError("a model that reads vectors was asked without any")
        reading = projector.reading
        rows: list[list[int]] = []
        for text in texts:
            own = text if reading.with_text else ""
            rows.append(prompts.vector_query_prompt(reading.tokens, own))
        return self._prompts(rows, projector.placed_texts(vectors))

    @torch.inference_mode()
    def read_images(self, patches: ImagePatches) -> Prompts:
        """The prompts of B images (paper, equation 3: image → identifier)."""
        token_counts = patches.token_counts(self.sigma.merge)
        rows = [self.sigma.prompts.image_prompt(count) for count in token_counts]
        # As they are: pictures of a batch have their own sizes, and the tower sees few at once.
        return Prompts(self.sigma.embed(rows, self.sigma.encode_images(patches)), len(rows))

    @torch.inference_mode()
    def read_image_vectors(self, projector: VectorProjector, vectors: FloatArray) -> Prompts:
        """The prompts of B images by their (B, D) vectors, by the model's own projector."""
        rows = [self.sigma.prompts.vector_prompt(projector.reading.tokens)] * len(vectors)
        return self._prompts(rows, projector.placed_images(vectors))

    @torch.inference_mode()
    def read_rows(self, rows: Sequence[Sequence[int]]) -> Prompts:
        """Prompts given as B rows of token ids, and no others beside them."""
        return Prompts(self.sigma.embed(rows, None), len(rows))

    def begin(self, prompt: Prompts) -> "TorchDecodingState":
        """Start decoding behind prompts."""
        batch, length = prompt.rows.mask[: prompt.count].shape
        if batch * (length + self.sigma.profile.shape.codes[0]) <= self._ahead:
            return TorchDecodingState(self, *self.read_ahead(prompt))
        return TorchDecodingState(self, self.read(prompt))

    @torch.inference_mode()
    def search(self, prompt: Prompts, plan: BeamPlan, queries: Tensor | None) -> Beams:
        """Search behind prompts, by a graph where there are any.

        `queries` (B, D) are what a guide compares with.
        """
        count = prompt.count
        if queries is not None:
            queries = sent(_filled_up(queries, len(prompt.rows.mask)), self.device)
        if self.graphs is None:
            found = self._search(prompt.rows, plan, queries)
        else:
            found = self.graphs.search(self._search, prompt.rows, plan, queries)
        return found.first(count)

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
    def read(self, prompt: Prompts) -> PromptCache:
        """Read prompts, the real ones."""
        rows = self._rows(prompt)
        rotation = self._rotation(rows.embeddings, rows.positions)
        # Layers overwrite what they read.
        hidden = rows.embeddings.clone()
        seen: list[Tensor] = []
        for layer in self.layers:
            # Without a mask: what pads a prompt comes behind it, where none of its tokens looks.
            hidden, own = layer.read(hidden, rotation)
            seen.append(own)
        return PromptCache(
            seen=tuple(seen),
            mask=rows.mask,
            next_position=rows.next_positions(),
            state=rms_norm(rows.of_last(hidden), self.language_model.norm),
        )

    @torch.inference_mode()
    def read_ahead(self, prompt: Prompts) -> "tuple[PromptCache, AheadCache]":
        """Read prompts, the real ones, and behind each of them every code of id1, in one pass."""
        rows = self._rows(prompt)
        batch, length = rows.mask.shape
        tokens = self._level_tokens[0]
        codes = len(tokens)
        own = self.language_model.embed_tokens(tokens).expand(batch, -1, -1)
        hidden = torch.cat([rows.embeddings, own], 1)
        next_position = rows.next_positions()
        behind = next_position.view(1, -1, 1).expand(3, -1, codes)
        rotation = self._rotation(hidden, torch.cat([rows.positions, behind], 2))
        everything = torch.ones(length, length + codes, dtype=torch.bool, device=self.device)
        itself = torch.eye(codes, dtype=torch.bool, device=self.device).expand(batch, -1, -1)
        before = rows.mask.unsqueeze(1).expand(-1, codes, -1)
        sees_codes = torch.cat([before, itself], 2)
        sees = torch.cat([everything.tril().expand(batch, -1, -1), sees_codes], 1)
        mask = self._mask(sees, hidden.dtype)
        seen: list[Tensor] = []
        for layer in self.layers:
            hidden, keys_and_values = layer.step(hidden, rotation, None, mask)
            seen.append(keys_and_values)
        norm = self.language_model.norm
        read = PromptCache(
            seen=tuple(part[:, :, :length] for part in seen),
            mask=rows.mask,
            next_position=next_position,
            state=rms_norm(rows.of_last(hidden), norm),
        )
        cache = BeamCache(tuple(seen), sees_codes, 1)
        return read, AheadCache(rms_norm(hidden[:, length:], norm), cache)

    @torch.inference_mode()
    def step(
        self, prompt: PromptCache, cache: BeamCache | None, tokens: Tensor
    ) -> tuple[Tensor, BeamCache]:
        """Feed one token to every beam.

        `tokens` (B, W) int64. Returns hidden states (B, W, H) and the extended cache.
        """
        batch, beams = tokens.shape
        if cache is None:
            before = prompt.mask.unsqueeze(1).expand(-1, beams, -1)
            cache = BeamCache(prompt.seen, before, 0)
        hidden = self.language_model.embed_tokens(tokens)
        positions = (prompt.next_position + cache.length).view(1, -1, 1)
        # Qwen2.5-VL has three position axes (time, row, column); in text all three are equal.
        rotation = self._rotation(hidden, positions.expand(3, -1, beams))
        itself = torch.eye(beams, dtype=torch.bool, device=tokens.device)
        sees = torch.cat([cache.sees, itself.expand(batch, -1, -1)], 2)
        mask = self._mask(sees, hidden.dtype)
        seen: list[Tensor] = []
        for layer, before in zip(self.layers, cache.seen, strict=True):
            hidden, own = layer.step(hidden, rotation, before, mask)
            seen.append(own)
        states = rms_norm(hidden, self.language_model.norm)
        return states, BeamCache(tuple(seen), sees, cache.length + 1)

    def _rows(self, prompt: Prompts) -> EmbeddedRows:
        """The real ones of prompts that are to be read."""
        if not self.layers[0].qkv.current:
            raise AssertionError("the model was moved after its decoder was made; make it anew")
        return prompt.rows.first(prompt.count)

    def _mask(self, sees: Tensor, dtype: torch.dtype) -> Tensor:
        return step_mask(sees, self.layers[0].rows, dtype)

    def _rotation(self, hidden: Tensor, positions: Tensor) -> Rotation:
        return signed(*self.language_model.rotary_emb(hidden, positions))

    def _search(self, rows: EmbeddedRows, plan: BeamPlan, queries: Tensor | None) -> Beams:
        state = self.begin(Prompts(rows, len(rows.mask)))
        # To look at what was computed costs nothing on a CPU; a GPU would be waited for.
        looks = self.graphs is None and self.device.type == "cpu"
        found = search_planned(state, plan, queries, looks=looks)
        return replace(found, states=state.prompt_states)

    def _prompts(self, rows: Sequence[Sequence[int]], placed: Tensor | None) -> Prompts:
        """Prompts of B rows, and (B, D) placed vectors of those that have one."""
        count = len(rows)
        length = max(map(len, rows))
        batch = count
        if self.graphs is not None:
            batch, length = self.graphs.bucket(count, length)
            rows = [*rows, *[rows[0]] * (batch - count)]
        visual: VisualTokens | None = None
        if placed is not None and self.sigma.projector is not None:
            visual = self.sigma.projector(_filled_up(placed, batch))
        return Prompts(self.sigma.embed(rows, visual, length), count)


class TorchDecodingState:
    """A `model.decoding.beam.DecodingState` that keeps the keys and values of its beams."""

    def __init__(
        self, decoder: Decoder, prompt: PromptCache, ahead: AheadCache | None = None
    ) -> None:
        self.batch: int = prompt.state.shape[0]
        self.device: torch.device = prompt.state.device
        self._decoder = decoder
        self._prompt = prompt
        self._shape: IdentifierShape = decoder.sigma.profile.shape
        self._ahead = ahead
        self._cache: BeamCache | None = None

    @property
    def prompt_states(self) -> Tensor:
        """(B, H) of the last token of each prompt."""
        return self._prompt.state

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
        if level == 0 and self._ahead is not None:
            states, self._cache = self._ahead.select(codes)
            return states
        tokens = self._decoder.tokens(level, codes)
        states, self._cache = self._decoder.step(self._prompt, past, tokens)
        return states


def _of_beams(rows: Tensor, chosen: Tensor) -> Tensor:
    """(B, W, n) rows of the chosen beams, (B, W') int64."""
    return rows.gather(1, chosen.unsqueeze(-1).expand(-1, -1, rows.shape[2]))


def _filled_up(rows: Tensor, batch: int) -> Tensor:
    """(B, D) rows, and copies of the first one up to a batch."""
    missing = batch - len(rows)
    return torch.cat([rows, rows[:1].expand(missing, -1)]) if missing else rows
