"""Beam search over identifiers of any length, and generation without a constraint.

A score is the log-probability of all tokens over the whole vocabulary (equation 14). Letters in
shapes: B prompts, W beams, H hidden width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoding.beam import NEVER
from model.decoding.decoder import BeamCache, Decoder, Prompts
from model.retrieval.sequence_trie import SequenceTrie


@dataclass(frozen=True, slots=True)
class FoundSequence:
    """One identifier that exists, its images and its log-probability."""

    images: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class SequenceAnswers:
    """For each of B prompts at most W identifiers, best first."""

    found: list[list[FoundSequence]]
    passes: int
    """Of the model, the prompt's included; all beams share one."""


@dataclass(slots=True)
class _Hypotheses:
    """The beams of one prompt that are not finished, and the identifiers that are."""

    nodes: list[int]
    scores: list[float]
    done: list[FoundSequence]

    def is_open(self, beams: int) -> bool:
        """Whether a beam may still come before the finished ones: scores only fall."""
        if not self.nodes:
            return False
        return len(self.done) < beams or max(self.scores) > self.done[beams - 1].score


@torch.inference_mode()
def search_sequences(
    decoder: Decoder, prompts: Prompts, trie: SequenceTrie, beams: int
) -> SequenceAnswers:
    """The best identifiers of a trie for B prompts."""
    prompt = decoder.read(prompts)
    rows = [_Hypotheses([0], [0.0], []) for _ in range(prompt.state.shape[0])]
    states = prompt.state.unsqueeze(1)
    cache: BeamCache | None = None
    passes = 1
    while True:
        chosen = [
            _extend(row, trie, gains, beams)
            for row, gains in zip(rows, _log_probabilities(decoder, states), strict=True)
        ]
        if not any(row.is_open(beams) for row in rows):
            break
        parents = _padded([[parent for parent, _ in row] for row in chosen])
        tokens = _padded([[token for _, token in row] for row in chosen])
        past = None if cache is None else cache.select(parents.to(decoder.device))
        states, cache = decoder.step(prompt, past, tokens.to(decoder.device))
        passes += 1
    return SequenceAnswers([row.done[:beams] for row in rows], passes)


@torch.inference_mode()
def generate(decoder: Decoder, prompts: Prompts, end: int, most: int) -> list[list[int]]:
    """The likeliest next token again and again, up to `end`, which is kept, or `most` tokens."""
    prompt = decoder.read(prompts)
    states = prompt.state.unsqueeze(1)
    cache: BeamCache | None = None
    columns: list[Tensor] = []
    ended = torch.zeros(prompt.state.shape[0], 1, dtype=torch.bool, device=decoder.device)
    for _ in range(most):
        tokens = _log_probabilities(decoder, states).argmax(-1)  # (B, 1)
        columns.append(tokens)
        ended |= tokens == end
        if bool(ended.all()):
            break
        states, cache = decoder.step(prompt, cache, tokens)
    rows: list[list[int]] = torch.cat(columns, 1).tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def _extend(
    row: _Hypotheses, trie: SequenceTrie, gains: Tensor, beams: int
) -> list[tuple[int, int]]:
    """Go on with the best children of a row's beams; (parent, token) of those not finished.

    `gains` (W, V) log-probabilities behind the beams.
    """
    parents: list[int] = []
    tokens: list[int] = []
    nodes: list[int] = []
    for beam, node in enumerate(row.nodes):
        for token, child in trie.children(node).items():
            parents.append(beam)
            tokens.append(token)
            nodes.append(child)
    row_scores = torch.tensor(row.scores)
    if not parents:
        row.nodes, row.scores = [], []
        return []
    totals = row_scores[parents] + gains[parents, tokens].cpu()
    best = totals.topk(min(beams, len(parents)))
    row.nodes, row.scores = [], []
    kept: list[tuple[int, int]] = []
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        node = nodes[place]
        images = trie.images(node)
        if images:
            row.done.append(FoundSequence(tuple(images), score))
        elif score > NEVER:
            row.nodes.append(node)
            row.scores.append(score)
            kept.append((parents[place], tokens[place]))
    row.done.sort(key=lambda each: -each.score)
    return kept


def _log_probabilities(decoder: Decoder, states: Tensor) -> Tensor:
    """(B, W, H) hidden states → (B, W, V) float32, normalised over the vocabulary."""
    weight = decoder.sigma.backbone.lm_head.weight
    return torch.log_softmax(states.float() @ weight.float().T, -1)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, W) int64; shorter rows are filled with 0, which nobody reads."""
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64)
