"""Constrained beam search over identifiers: the allowed children of the trie, and nothing else, at every level."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from model.retrieval.trie import Branches, Trie
from schemas.identifiers import LEVELS, IdentifierShape

NEVER = float("-inf")

P = TypeVar("P")
ReadPrompt = TypeVar("ReadPrompt", contravariant=True)
TextPrompt = TypeVar("TextPrompt")


class DecodingState(Protocol):
    """B prompts on the way from id1 to id5. What a decoding engine tells a beam search; the trie stays outside of it."""

    @property
    def batch(self) -> int:
        """B, the number of prompts."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the search keeps its tensors, those of the trie included."""
        ...

    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        """(B, W, K) float32 log-probabilities of the tokens of id`level + 1` among themselves, behind each beam's first `level` codes.

        `prefixes` (B, W) int64 are those codes packed into one number. `parents` (B, W) int64 tells which beam of the call
        before each of them continues by its last code; None begins again at the prompt. Rows where `alive` (B, W) bool
        is False belong to no beam: any number may stand there.
        """
        ...


class DecodingEngine(Protocol[ReadPrompt]):
    """A decoding engine: scores identifiers behind prompts of its own kind."""

    def begin(self, prompt: ReadPrompt) -> DecodingState:
        """Begin at prompts that were read."""
        ...


class TextDecodingEngine(Protocol[TextPrompt]):
    """A decoding engine that reads queries too."""

    def read_texts(self, texts: Sequence[str]) -> TextPrompt:
        """Prompts of B queries."""
        ...

    def begin(self, prompt: TextPrompt) -> DecodingState:
        """Begin at prompts that were read."""
        ...


@dataclass(frozen=True, slots=True)
class Beams:
    """Best leaves of B prompts, best first: `leaves` (B, W) int64, `scores` (B, W) float32 log-probabilities.

    Beams that do not exist (fewer leaves than W) have score -inf.
    """

    leaves: Tensor
    scores: Tensor


@torch.inference_mode()
def search_leaves(
    scorer: DecodingEngine[P],
    prompt: P,
    shape: IdentifierShape,
    beams: int,
    branches: Branches | None,
) -> Beams:
    """Beam search over id1..id4. With `branches` only occupied leaves are reached; without, any leaf (inductive assignment).

    A token's score is its log-probability among the tokens of its level. Prefixes with a single leaf below need no
    further pass once all beams have one: what is forced carries no information about the query.
    """
    return _search(scorer.begin(prompt), shape, beams, branches)


def _search(
    walk: DecodingState, shape: IdentifierShape, beams: int, branches: Branches | None
) -> Beams:
    prefixes = torch.zeros((walk.batch, 1), dtype=torch.int64, device=walk.device)
    scores = torch.zeros((walk.batch, 1), device=walk.device)
    parents: Tensor | None = None
    for level in range(LEVELS):
        alive = scores > NEVER
        if (
            branches is not None
            and level
            and bool((branches.below(level, prefixes)[alive] == 1).all())
        ):
            return Beams(_only_leaf(branches, level, prefixes), scores)
        gained = walk.score(level, prefixes, parents, alive)
        if branches is not None:
            gained = gained.masked_fill(branches.children(level, prefixes) == 0, NEVER)
        count = shape.codes[level]
        totals = (scores.unsqueeze(-1) + gained).flatten(1)
        scores, chosen = totals.topk(min(beams, totals.shape[1]), dim=1)
        parents = chosen // count
        prefixes = prefixes.gather(1, parents) * count + chosen % count
    return Beams(prefixes, scores)


def _only_leaf(branches: Branches, level: int, prefixes: Tensor) -> Tensor:
    """Follow the single child of each prefix down to its leaf."""
    for depth in range(level, LEVELS):
        prefixes = prefixes * branches.shape.codes[depth] + (
            branches.children(depth, prefixes) > 0
        ).int().argmax(-1)
    return prefixes


@dataclass(frozen=True, slots=True)
class ScoredIdentifier:
    """One identifier of the paper's five-token mode and its log-probability."""

    leaf: int
    suffix: int
    slot: int
    score: float


@torch.inference_mode()
def search_identifiers(
    scorer: DecodingEngine[P], prompt: P, trie: Trie, beams: int
) -> list[list[ScoredIdentifier]]:
    """The paper's own mode: all five tokens over primary identifiers, best first, at most `beams` for each prompt."""
    walk = scorer.begin(prompt)
    found = _search(walk, trie.shape, beams, trie.primaries)
    gained = walk.score(LEVELS, found.leaves, None, found.scores > NEVER).cpu()
    return [
        _best_suffixes(trie, leaves, scores, gained[row], beams)
        for row, (leaves, scores) in enumerate(
            zip(found.leaves.tolist(), found.scores.tolist(), strict=True)
        )
    ]


def _best_suffixes(
    trie: Trie, leaves: Sequence[int], scores: Sequence[float], gained: Tensor, beams: int
) -> list[ScoredIdentifier]:
    options = [
        ScoredIdentifier(
            leaf=leaf, suffix=suffix, slot=slot, score=score + float(gained[at, suffix])
        )
        for at, (leaf, score) in enumerate(zip(leaves, scores, strict=True))
        if score > NEVER
        for suffix, slot in trie.suffixes(leaf).items()
    ]
    return sorted(options, key=lambda option: (-option.score, option.leaf, option.suffix))[:beams]
