"""Constrained beam search over identifiers: only children that the trie allows.

Paper, appendix B.

The search knows nothing of a neural network: a `DecodingEngine` scores the next codes, the trie's
`Branches` mask them. Letters in shapes: B prompts, W beams of each prompt, K codes of the level at
hand.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from model.retrieval.branches import Branches
from model.retrieval.filtered_trie import SearchableTrie
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import FloatArray, IntArray

# Log-probability of a beam that does not exist or that the trie forbids.
NEVER = float("-inf")

P = TypeVar("P")
ReadPrompt = TypeVar("ReadPrompt", contravariant=True)
TextPrompt = TypeVar("TextPrompt")


class DecodingState(Protocol):
    """B prompts at some level between id1 and id5, inside a decoding engine.

    The search holds the codes and scores of the beams; the state holds what the engine needs to
    continue them.
    """

    @property
    def batch(self) -> int:
        """B, the number of prompts."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the search keeps its tensors, those of the trie included."""
        ...

    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        """Score every code of id`level + 1` behind each beam.

        `prefixes` (B, W) int64: the first `level` codes of each beam, packed into one number.
        `parents` (B, W) int64: which beam of the previous call each beam continues by its last
        code; None restarts at the prompts. `alive` (B, W) bool: where it is False there is no beam,
        and the numbers returned for it are ignored.

        Returns (B, W, K) float32 log-probabilities, normalised over the K codes of the level.
        """
        ...


class DecodingEngine(Protocol[ReadPrompt]):
    """Scores identifiers behind prompts that it has read, in a type of its own."""

    def begin(self, prompt: ReadPrompt) -> DecodingState:
        """Start decoding behind prompts."""
        ...


@runtime_checkable
class SearchingEngine(DecodingEngine[ReadPrompt], Protocol[ReadPrompt]):
    """One that runs whole searches, `search_planned` as it sees fit."""

    def search(self, prompt: ReadPrompt, plan: "BeamPlan", queries: Tensor | None) -> "Beams":
        """Search behind prompts; `queries` (B, D) are what a guide compares with."""
        ...


class TextDecodingEngine(Protocol[TextPrompt]):
    """A decoding engine that also reads queries."""

    def read_texts(self, texts: Sequence[str], vectors: FloatArray | None = None) -> TextPrompt:
        """Read the prompts of B queries; `vectors` (B, D) are the encoder's of the texts.

        An engine whose model reads no vectors does without.
        """
        ...

    def begin(self, prompt: TextPrompt) -> DecodingState:
        """Start decoding behind prompts."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class HostBeams:
    """`Beams` where numpy reads them."""

    leaves: IntArray
    """(B, W)"""
    scores: FloatArray
    """(B, W)"""
    suffix_gains: FloatArray | None = None
    """(B, W, K)"""
    promises: FloatArray | None = None
    """(B, W)"""


@dataclass(frozen=True, slots=True)
class Beams:
    """Best leaves of B prompts, best first.

    `leaves` (B, W) int64, `scores` (B, W) float32 log-probabilities. `states` (B, H) of the last
    tokens of the prompts, from an engine that has them. `suffix_gains` (B, W, K) log-probabilities
    of the suffixes behind each leaf, where five tokens were decoded. `promises` (B, W) of the
    leaves, where a guide gave any; of a prefix where it knows leaves no better.

    Beams that do not exist (fewer leaves than W) have the score `NEVER`.
    """

    leaves: Tensor
    scores: Tensor
    states: Tensor | None = None
    suffix_gains: Tensor | None = None
    promises: Tensor | None = None

    def first(self, count: int) -> "Beams":
        """The beams of the first prompts."""
        if count == len(self.leaves):
            return self
        states, gains, promises = self.states, self.suffix_gains, self.promises
        return Beams(
            self.leaves[:count],
            self.scores[:count],
            None if states is None else states[:count],
            None if gains is None else gains[:count],
            None if promises is None else promises[:count],
        )

    def on_host(self) -> HostBeams:
        """Copy all but the states to the host, at once."""
        # Both kinds of numbers fit into float64 as they are.
        parts = [self.leaves.unsqueeze(-1), self.scores.unsqueeze(-1)]
        if self.promises is not None:
            parts.append(self.promises.unsqueeze(-1))
        if self.suffix_gains is not None:
            parts.append(self.suffix_gains)
        packed = torch.cat([part.double() for part in parts], -1).cpu().numpy()
        leaves = packed[..., 0].astype(np.int64)
        floats = packed[..., 1:].astype(np.float32)
        after = 1 if self.promises is None else 2
        return HostBeams(
            leaves,
            floats[..., 0],
            None if self.suffix_gains is None else floats[..., after:],
            None if self.promises is None else floats[..., 1],
        )


class Promises(Protocol):
    """A second opinion on prefixes: of `PrefixMeans`, or of the codebook."""

    def promise(self, level: int, prefixes: Tensor, queries: Tensor) -> Tensor | None:
        """(B, W) float32, the higher the better, of (B, W) prefixes of level + 1 codes.

        `queries` (B, D) are what is asked for. None for a level that it knows nothing of.
        """
        ...


@dataclass(frozen=True, slots=True)
class Guide:
    """A second opinion on which beams to keep.

    `queries` (B, D) are what it compares with. `weight` turns a promise into nats.
    """

    promises: Promises
    queries: Tensor
    weight: float


@dataclass(frozen=True, slots=True)
class BeamPlan:
    """All of a search but its prompts: two searches of one plan do the same operations."""

    shape: IdentifierShape
    beams: int
    branches: Branches | None
    """Without, any leaf may be reached."""
    promises: Promises | None = None
    """Of a guide."""
    weight: float = 0.0
    five_tokens: bool = False
    """Whether suffixes are scored too, and codes that are forced."""

    @property
    def key(self) -> Hashable:
        """The same for plans that do the same; the plan keeps what it is made of."""
        tables = (id(self.branches), id(self.promises))
        return (self.shape, self.beams, *tables, self.weight, self.five_tokens)

    @property
    def widths(self) -> tuple[int, ...]:
        """Beams of a prompt behind each of the four levels."""
        widths = []
        width = 1
        for level, codes in enumerate(self.shape.codes):
            # A guide looks at every leaf below the last prefixes.
            every = self.promises is not None and level == LEVELS - 1
            width = width * codes if every else min(self.beams, width * codes)
            widths.append(width)
        return tuple(widths)


@torch.inference_mode()
def search_leaves(
    engine: DecodingEngine[P],
    prompt: P,
    shape: IdentifierShape,
    beams: int,
    branches: Branches | None,
    guide: Guide | None = None,
) -> Beams:
    """Beam search over id1..id4 with at most `beams` beams for each prompt.

    With `branches` only occupied leaves are reached; without, any leaf is (inductive assignment,
    paper section 5).

    A beam's score is the sum of its codes' log-probabilities, each normalised over its level. Once
    every beam of a prompt has a single leaf below it, the rest adds nothing: codes that are forced
    carry no information about the query.

    A `guide` has a say in which beams are kept and comes before; scores stay those of the decoder.
    All leaves below the beams are returned then, W of them, for a guide looks at each anyway.
    """
    if guide is None:
        return _search(engine, prompt, BeamPlan(shape, beams, branches), None)
    plan = BeamPlan(shape, beams, branches, guide.promises, guide.weight)
    return _search(engine, prompt, plan, guide.queries)


def _search(engine: DecodingEngine[P], prompt: P, plan: BeamPlan, queries: Tensor | None) -> Beams:
    if isinstance(engine, SearchingEngine):
        return engine.search(prompt, plan, queries)
    return search_planned(engine.begin(prompt), plan, queries, looks=True)


def search_planned(
    state: DecodingState, plan: BeamPlan, queries: Tensor | None, *, looks: bool
) -> Beams:
    """The search itself, operations of fixed shapes in a fixed order.

    With `looks` the host looks whether all that is left is forced, and then scores it no more.
    `queries` (B, D) are what a guide compares with.
    """
    branches = plan.branches
    prefixes = torch.zeros((state.batch, 1), dtype=torch.int64, device=state.device)
    scores = torch.zeros((state.batch, 1), device=state.device)
    parents: Tensor | None = None
    promises: Tensor | None = None
    for level, codes in enumerate(plan.shape.codes):
        alive = scores > NEVER
        forced: Tensor | None = None
        if branches is not None and level > 0 and not plan.five_tokens:
            forced = _forced(branches, level, prefixes, alive)
            if looks and bool(forced.all()):
                leaves = _only_leaves(branches, level, prefixes)
                own = _promise(plan, LEVELS - 1, leaves, queries)
                return Beams(leaves, scores, promises=promises if own is None else own)
        gains = state.score(level, prefixes, parents, alive)  # (B, W, K)
        if forced is not None:
            gains = gains.masked_fill(forced.view(-1, 1, 1), 0.0)
        if branches is not None:
            gains = gains.masked_fill(branches.children(level, prefixes) == 0, NEVER)
        totals = (scores.unsqueeze(-1) + gains).flatten(1)  # (B, W·K)
        own_codes = torch.arange(codes, device=state.device)
        children = (prefixes.unsqueeze(-1) * codes + own_codes).flatten(1)  # (B, W·K)
        promise = _promise(plan, level, children, queries)
        preferred = totals if promise is None else totals + plan.weight * promise
        chosen = preferred.topk(plan.widths[level], dim=1).indices
        scores = totals.gather(1, chosen)
        prefixes = children.gather(1, chosen)
        parents = chosen // codes
        if promise is not None:
            promises = promise.gather(1, chosen)
        elif promises is not None:
            promises = promises.gather(1, parents)
    if not plan.five_tokens:
        return Beams(prefixes, scores, promises=promises)
    gains = state.score(LEVELS, prefixes, parents, scores > NEVER)
    return Beams(prefixes, scores, suffix_gains=gains)


def _promise(plan: BeamPlan, level: int, prefixes: Tensor, queries: Tensor | None) -> Tensor | None:
    """(B, W) the guide's promise of prefixes of level + 1 codes; None without, or of a level."""
    if plan.promises is None or queries is None:
        return None
    return plan.promises.promise(level, prefixes, queries.to(prefixes.device))


def _forced(branches: Branches, level: int, prefixes: Tensor, alive: Tensor) -> Tensor:
    """(B,) bool: whether each of a prompt's (B, W) beams that are alive has one leaf below it."""
    return ((branches.below(level, prefixes) == 1) | ~alive).all(1)


def _only_leaves(branches: Branches, level: int, prefixes: Tensor) -> Tensor:
    """Follow the single child of each (B, W) prefix down to its leaf."""
    for depth in range(level, LEVELS):
        occupied = branches.children(depth, prefixes) > 0
        only_child = occupied.int().argmax(-1)
        prefixes = prefixes * branches.shape.codes[depth] + only_child
    return prefixes


@dataclass(frozen=True, slots=True)
class ScoredIdentifier:
    """One identifier of the paper's five-token mode, the slot of its image, its log-probability."""

    leaf: int
    suffix: int
    slot: int
    score: float


@torch.inference_mode()
def search_identifiers(
    engine: DecodingEngine[P], prompt: P, trie: SearchableTrie, beams: int
) -> list[list[ScoredIdentifier]]:
    """The paper's own mode: decode all five tokens over primary identifiers (appendix B).

    Returns for each of the B prompts at most `beams` identifiers, best first. A score is the
    log-probability of all five tokens (equation 14), those that the trie leaves no choice included;
    each is normalised over the tokens of its level.
    """
    plan = BeamPlan(trie.shape, beams, trie.primaries, five_tokens=True)
    found = _search(engine, prompt, plan, None).on_host()
    if found.suffix_gains is None:
        raise AssertionError("five tokens were decoded without suffixes")
    return [
        _best_suffixes(trie, own.tolist(), own_scores.tolist(), own_gains, beams)
        for own, own_scores, own_gains in zip(
            found.leaves, found.scores, found.suffix_gains, strict=True
        )
    ]


def _best_suffixes(
    trie: SearchableTrie,
    leaves: Sequence[int],
    scores: Sequence[float],
    gains: FloatArray,
    beams: int,
) -> list[ScoredIdentifier]:
    """The best identifiers of one prompt.

    `leaves` and `scores` are its W beams; `gains` (W, K) log-probabilities of their suffixes.
    """
    identifiers: list[ScoredIdentifier] = []
    for row, (leaf, leaf_score) in enumerate(zip(leaves, scores, strict=True)):
        if leaf_score == NEVER:
            continue
        for suffix, slot in trie.suffixes(leaf).items():
            score = leaf_score + float(gains[row, suffix])
            identifiers.append(ScoredIdentifier(leaf, suffix, slot, score))
    # Ties are broken by leaf and suffix, so that an answer does not depend on the order in a
    # dictionary.
    identifiers.sort(key=lambda identifier: (-identifier.score, identifier.leaf, identifier.suffix))
    return identifiers[:beams]
