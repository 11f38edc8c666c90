"""Constrained beam search over identifiers: only children that the trie allows.

Paper, appendix B.

The search knows nothing of a neural network: a `DecodingEngine` scores the next codes, the trie's
`Branches` mask them. Letters in shapes: B prompts, W beams of each prompt, K codes of the level at
hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from model.retrieval.branches import Branches
from model.retrieval.filtered_trie import SearchableTrie
from model.retrieval.prefix_means import PrefixMeans
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import FloatArray

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


@dataclass(frozen=True, slots=True)
class Beams:
    """Best leaves of B prompts, best first.

    `leaves` (B, W) int64, `scores` (B, W) float32 log-probabilities.

    Beams that do not exist (fewer leaves than W) have the score `NEVER`.
    """

    leaves: Tensor
    scores: Tensor


@dataclass(frozen=True, slots=True)
class Guide:
    """What is below a prefix, as a second opinion on which beams to keep.

    `queries` (B, D) unit vectors. `weight` turns a cosine into nats.
    """

    means: PrefixMeans
    queries: Tensor
    weight: float

    def preference(self, level: int, prefixes: Tensor, totals: Tensor) -> Tensor:
        """(B, W) by which beams are chosen, where `totals` are their log-probabilities."""
        promise = self.means.promise(level, prefixes, self.queries)
        if promise is None:
            return totals
        return totals + self.weight * promise.to(totals.device)


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
    every beam's prefix has a single leaf below it, the search stops: codes that are forced carry no
    information about the query, so they add nothing.

    A `guide` has a say in which beams are kept and comes before; scores stay those of the decoder.
    All leaves below the beams are returned then, W of them, for a guide looks at each anyway.
    """
    beams_found, _ = _search(engine.begin(prompt), shape, beams, branches, guide)
    return beams_found


def _search(
    state: DecodingState,
    shape: IdentifierShape,
    beams: int,
    branches: Branches | None,
    guide: Guide | None = None,
    *,
    skip_forced: bool = True,
) -> tuple[Beams, Tensor | None]:
    """The beams, and the (B, W) parents by which `state` can continue them.

    `skip_forced` leaves codes unscored where no beam has a choice; nothing can be continued then,
    and the parents are None.
    """
    prefixes = torch.zeros((state.batch, 1), dtype=torch.int64, device=state.device)
    scores = torch.zeros((state.batch, 1), device=state.device)
    parents: Tensor | None = None
    for level in range(LEVELS):
        alive = scores > NEVER
        skippable = branches if skip_forced and level > 0 else None
        if skippable is not None and _all_forced(skippable, level, prefixes[alive]):
            return Beams(_only_leaves(skippable, level, prefixes), scores), None
        gains = state.score(level, prefixes, parents, alive)
        if branches is not None:
            forbidden = branches.children(level, prefixes) == 0
            gains = gains.masked_fill(forbidden, NEVER)
        codes = shape.codes[level]
        totals = (scores.unsqueeze(-1) + gains).flatten(1)  # (B, W·K)
        preferred = totals
        if guide is not None:
            children = prefixes.unsqueeze(-1) * codes + torch.arange(codes, device=state.device)
            preferred = guide.preference(level, children.flatten(1), totals)
        all_leaves = guide is not None and level == LEVELS - 1
        kept = totals.shape[1] if all_leaves else min(beams, totals.shape[1])
        chosen = preferred.topk(kept, dim=1).indices
        scores = totals.gather(1, chosen)
        parents = chosen // codes
        prefixes = prefixes.gather(1, parents) * codes + chosen % codes
    return Beams(prefixes, scores), parents


def _all_forced(branches: Branches, level: int, prefixes: Tensor) -> bool:
    """Whether each of the (n,) prefixes has exactly one leaf below it."""
    return bool((branches.below(level, prefixes) == 1).all())


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
    state = engine.begin(prompt)
    found, parents = _search(state, trie.shape, beams, trie.primaries, skip_forced=False)
    gains = state.score(LEVELS, found.leaves, parents, found.scores > NEVER).cpu()
    leaves = found.leaves.tolist()
    scores = found.scores.tolist()
    return [
        _best_suffixes(trie, leaves[row], scores[row], gains[row], beams)
        for row in range(len(leaves))
    ]


def _best_suffixes(
    trie: SearchableTrie, leaves: Sequence[int], scores: Sequence[float], gains: Tensor, beams: int
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
