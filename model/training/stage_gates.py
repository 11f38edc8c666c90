"""Stage gates: what a training stage has learnt, and the bounds that it must meet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log

import numpy as np
import torch

from model.decoding.assign import BeamSearchAssigner
from model.decoding.decoder import Decoder
from model.identifiers.codebook import pack_all
from model.network.encoder import Encoder
from model.network.profiles import StageName
from model.network.sigma import SigmaModel
from model.retrieval.recall import wilson
from model.retrieval.search import SearchIndex, search
from model.retrieval.trie import Trie
from model.training.training_set import TrainingSet
from schemas.identifiers import LEVELS
from schemas.records import HalfArray, IntArray
from schemas.settings import RetrievalSettings

# What a stage was measured at, by name: `samples`, `images` and `chance`, and the stage's own.
Figures = dict[str, float]

# Samples that are decoded at once.
_BATCH = 16

# An image counts as found among this many results; the figure's name, R@10, is stored.
_DEPTH = 10

# Fewer say nothing about a share.
_MIN_SAMPLES = 32

# At most one in this many images is a sample, so that measuring takes little time.
_SAMPLED_SHARE = 10


@dataclass(frozen=True, slots=True)
class Gates:
    """How many samples a stage is measured on, and how bad it may be.

    Identifiers and recall must have come `progress` of the way from chance to perfect. In a refresh
    they may be `drop` below the parent's, and the captions' loss `rise` (nats a token) above it.

    A share counts as below its bound only if its interval, of `z` standard errors, is: few samples
    shall not stop a good stage. With fewer than `images` images the first two stages are a few
    steps of the optimizer each, so only finite figures are asked of them; alignment is always
    judged.
    """

    sample: int = 200
    progress: float = 0.1
    drop: float = 0.1
    rise: float = 0.5
    z: float = 1.96
    images: int = 500


@dataclass(frozen=True, slots=True)
class StageProbe:
    """What stages are measured with.

    `data`: the N training images. `queries`: one text for each, a caption that training does not
    show where there is one. `embeddings` (N, D) float16: the ranking embeddings.
    """

    data: TrainingSet
    queries: Sequence[str]
    embeddings: HalfArray
    encoder: Encoder
    retrieval: RetrievalSettings = RetrievalSettings()


def evaluate_stage(
    name: StageName, sigma: SigmaModel, probe: StageProbe, gates: Gates, seed: int
) -> Figures:
    """The figures of a stage that was just trained, on the same samples for the same seed."""
    images = len(probe.data)
    count = min(gates.sample, max(_MIN_SAMPLES, images // _SAMPLED_SHARE), images)
    # A stream of random numbers apart from those that choose what is replayed.
    order = np.random.default_rng((seed, 2)).permutation(images)
    rows = np.sort(order[:count])
    sigma.eval()
    figures: Figures = {"samples": float(count), "images": float(images)}
    if name == "memorize":
        return figures | _measure_memorized(sigma, probe, rows)
    if name == "comprehend":
        return figures | _measure_comprehended(sigma, probe, rows)
    return figures | _measure_aligned(sigma, probe, rows)


def gate_failures(
    name: StageName, figures: Mapping[str, float], parent: Mapping[str, float] | None, gates: Gates
) -> list[str]:
    """Why a stage does not pass its gate, in sentences; empty when it does.

    `parent` are the same figures of the generation that a refresh started from.
    """
    not_finite = [figure for figure, value in figures.items() if not isfinite(value)]
    if not_finite:
        return [f"{figure} is not finite; lower the learning rate" for figure in not_finite]
    if name != "align" and parent is None and figures["images"] < gates.images:
        return []
    if name == "comprehend":
        return _loss_failures(figures, parent, gates)
    return _share_failures("id1" if name == "memorize" else "R@10", figures, parent, gates)


def _loss_failures(
    figures: Mapping[str, float], parent: Mapping[str, float] | None, gates: Gates
) -> list[str]:
    bound = figures["chance"]
    if parent is not None:
        bound = min(bound, parent["loss"] + gates.rise)
    if figures["loss"] <= bound:
        return []
    return [f"loss must be at most {bound:.2f} a token, got {figures['loss']:.2f}; train longer"]


def _share_failures(
    figure: str,
    figures: Mapping[str, float],
    parent: Mapping[str, float] | None,
    gates: Gates,
) -> list[str]:
    share = figures[figure]
    bound = figures["chance"] + gates.progress * (1 - figures["chance"])
    if parent is not None:
        bound = max(bound, parent[figure] - gates.drop)
    samples = int(figures["samples"])
    _, upper = wilson(round(share * samples), samples, gates.z)
    if upper >= bound:
        return []
    return [
        f"{figure} must be at least {bound:.3f}, got {share:.3f} over {samples} samples; "
        "train longer"
    ]


def _measure_memorized(sigma: SigmaModel, probe: StageProbe, rows: IntArray) -> Figures:
    """How often the model gives an image its id1 and its leaf.

    Chance is always to name the most frequent id1.
    """
    shape = sigma.profile.shape
    assigner = BeamSearchAssigner(Decoder(sigma), postings=1)
    parts: list[IntArray] = []
    for start in range(0, len(rows), _BATCH):
        images = [probe.data.images[row] for row in rows[start : start + _BATCH].tolist()]
        leaves, _ = assigner.search(images)
        parts.append(leaves[:, 0])
    assigned = np.concatenate(parts)
    expected = pack_all(probe.data.identifiers[rows, :LEVELS], shape)
    below_id1 = shape.leaves // shape.codes[0]
    expected_id1 = expected // below_id1
    return {
        "id1": float((assigned // below_id1 == expected_id1).mean()),
        "leaf": float((assigned == expected).mean()),
        "chance": float(np.bincount(expected_id1).max() / len(expected_id1)),
    }


@torch.inference_mode()
def _measure_comprehended(sigma: SigmaModel, probe: StageProbe, rows: IntArray) -> Figures:
    """Nats a token of captions behind their identifiers.

    Chance is to know nothing, not even which words are frequent.
    """
    total = 0.0
    tokens = 0.0
    for start in range(0, len(rows), _BATCH):
        examples = []
        for row in rows[start : start + _BATCH].tolist():
            caption = probe.data.captions[row][0]
            examples.append(sigma.prompts.comprehend(probe.data.identifiers[row], caption))
        losses = sigma.losses(examples, None)
        # Batches have different numbers of tokens: their means are weighted by them.
        predicted = float(losses.counts[0])
        total += float(losses.generation) * predicted
        tokens += predicted
    return {"loss": total / max(tokens, 1.0), "chance": log(len(sigma.tokenizer))}


def _measure_aligned(sigma: SigmaModel, probe: StageProbe, rows: IntArray) -> Figures:
    """Known-item recall among the training images, each with one posting.

    They are searched as a query worker does.
    """
    decoder = Decoder(sigma)
    trie = Trie(sigma.profile.shape, decoder.device)
    count = len(probe.data)
    leaves = pack_all(probe.data.identifiers[:, :LEVELS], sigma.profile.shape)
    suffixes = probe.data.identifiers[:, LEVELS]
    trie.insert(leaves, np.arange(count), np.zeros(count, np.float32), suffixes)
    index = SearchIndex(decoder, probe.encoder, trie, probe.embeddings)
    hits = 0
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH].tolist()
        texts = [probe.queries[row] for row in batch]
        results = search(index, texts, _DEPTH, probe.retrieval)
        for row, result in zip(batch, results, strict=True):
            hits += row in result.slots
    return {"R@10": hits / len(rows), "chance": min(1.0, _DEPTH / count)}
