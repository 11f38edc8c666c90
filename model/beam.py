"""Constrained beam search over identifiers: the allowed children of the trie, and nothing else, at every level."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoder import BeamCache, Decoder, Prompt
from model.trie import Branches, Trie
from schemas.identifiers import LEVELS, IdentifierShape

NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Beams:
    """Best leaves of B prompts, best first: `leaves` (B, W) int64, `scores` (B, W) float32 log-probabilities.

    Beams that do not exist (fewer leaves than W) have score -inf.
    """

    leaves: Tensor
    scores: Tensor


@torch.inference_mode()
def search_leaves(decoder: Decoder, prompt: Prompt, shape: IdentifierShape, beams: int, branches: Branches | None) -> Beams:
    """Beam search over id1..id4. With `branches` only occupied leaves are reached; without, any leaf (inductive assignment).

    A token's score is its log-probability among the tokens of its level. Prefixes with a single leaf below need no
    further pass once all beams have one: what is forced carries no information about the query.
    """
    batch = prompt.state.shape[0]
    prefixes = torch.zeros((batch, 1), dtype=torch.int64, device=prompt.state.device)
    scores = torch.zeros((batch, 1), device=prompt.state.device)
    states, cache = prompt.state.unsqueeze(1), None
    for level in range(LEVELS):
        if branches is not None and level and bool((branches.below(level, prefixes)[scores > NEVER] == 1).all()):
            return Beams(_only_leaf(branches, level, prefixes), scores)
        gained = torch.log_softmax(decoder.logits(level, states), -1)
        if branches is not None:
            gained = gained.masked_fill(branches.children(level, prefixes) == 0, NEVER)
        count = shape.codes[level]
        totals = (scores.unsqueeze(-1) + gained).flatten(1)
        scores, chosen = totals.topk(min(beams, totals.shape[1]), dim=1)
        parents, codes = chosen // count, chosen % count
        prefixes = prefixes.gather(1, parents) * count + codes
        if level < LEVELS - 1:
            states, cache = decoder.step(prompt, None if cache is None else cache.select(parents), decoder.tokens(level, codes))
    return Beams(prefixes, scores)


def _only_leaf(branches: Branches, level: int, prefixes: Tensor) -> Tensor:
    """Follow the single child of each prefix down to its leaf."""
    for depth in range(level, LEVELS):
        prefixes = prefixes * branches.shape.codes[depth] + (branches.children(depth, prefixes) > 0).int().argmax(-1)
    return prefixes


@dataclass(frozen=True, slots=True)
class Identified:
    """One identifier of the paper's five-token mode and its log-probability."""

    leaf: int
    suffix: int
    slot: int
    score: float


@torch.inference_mode()
def search_identifiers(decoder: Decoder, prompt: Prompt, trie: Trie, beams: int) -> list[list[Identified]]:
    """The paper's own mode: all five tokens over primary identifiers, best first, at most `beams` for each prompt."""
    shape = trie.shape
    found, states = _leaf_states(decoder, prompt, shape, beams, trie.primaries)
    gained = torch.log_softmax(decoder.logits(LEVELS, states), -1).cpu()
    return [
        _best_suffixes(trie, leaves, scores, gained[row], beams)
        for row, (leaves, scores) in enumerate(zip(found.leaves.tolist(), found.scores.tolist(), strict=True))
    ]


def _leaf_states(decoder: Decoder, prompt: Prompt, shape: IdentifierShape, beams: int, branches: Branches) -> tuple[Beams, Tensor]:
    """The best leaves and the hidden state behind each: all four codes are read again along the winning paths."""
    found = search_leaves(decoder, prompt, shape, beams, branches)
    cache: BeamCache | None = None
    states = prompt.state.unsqueeze(1)
    for level in range(LEVELS):
        below = shape.leaves // shape.prefixes(level + 1)
        states, cache = decoder.step(prompt, cache, decoder.tokens(level, found.leaves // below % shape.codes[level]))
    return found, states


def _best_suffixes(trie: Trie, leaves: Sequence[int], scores: Sequence[float], gained: Tensor, beams: int) -> list[Identified]:
    options = [
        Identified(leaf=leaf, suffix=suffix, slot=slot, score=score + float(gained[at, suffix]))
        for at, (leaf, score) in enumerate(zip(leaves, scores, strict=True))
        if score > NEVER
        for suffix, slot in trie.suffixes(leaf).items()
    ]
    return sorted(options, key=lambda option: (-option.score, option.leaf, option.suffix))[:beams]
