"""Gates: what a training stage has learnt, measured on a few hundred samples, and the bound that it must not fall below."""

from collections.abc import Callable, Mapping, Sequence
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
from model.training.stages import TrainingSet
from schemas.records import HalfArray, IntArray
from schemas.settings import RetrievalSettings

Figures = dict[str, float]

_BATCH, _DEPTH = 16, 10


@dataclass(frozen=True, slots=True)
class Gates:
    """How many samples a stage is measured on, and how bad it may be.

    `progress`: share of the way from chance to perfect that identifiers and recall must have come. `drop`: what they may be
    below the parent's, in a refresh; `rise`: what the captions' loss may be above the parent's, nats a token. A share counts
    as below its bound only if its interval, of `z` standard errors, is: few samples shall not stop a good stage. `images`: with
    fewer, the first two stages are a few steps of the optimiser each, of which only finite figures are asked; alignment is judged.
    """

    sample: int = 200
    progress: float = 0.1
    drop: float = 0.1
    rise: float = 0.5
    z: float = 1.96
    images: int = 500


@dataclass(frozen=True, slots=True)
class StageProbe:
    """What stages are measured with: the training images as `data`, one query of each that training does not show where there
    is such a caption, and (N, D) ranking embeddings."""

    data: TrainingSet
    queries: Sequence[str]
    embeddings: HalfArray
    encoder: Encoder
    retrieval: RetrievalSettings = RetrievalSettings()


def evaluate_stage(
    name: StageName, sigma: SigmaModel, probe: StageProbe, gates: Gates, seed: int
) -> Figures:
    """The figures of a stage that was just trained, `samples` and `chance` among them. Costs a few per cent of the stage."""
    count = min(gates.sample, max(32, len(probe.data) // 10), len(probe.data))
    rows = np.sort(np.random.default_rng((seed, 2)).permutation(len(probe.data))[:count])
    sigma.eval()
    return {
        "samples": float(len(rows)),
        "images": float(len(probe.data)),
        **_MEASURES[name](sigma, probe, rows),
    }


def gate_failures(
    name: StageName, figures: Mapping[str, float], parent: Mapping[str, float] | None, gates: Gates
) -> list[str]:
    """Why a stage does not pass its gate, in sentences; empty when it does. `parent` are the same figures of the parent."""
    if endless := [figure for figure, value in figures.items() if not isfinite(value)]:
        return [f"{figure} is not finite" for figure in endless]
    if name != "align" and parent is None and figures["images"] < gates.images:
        return []
    if name == "comprehend":
        bound = (
            figures["chance"]
            if parent is None
            else min(figures["chance"], parent["loss"] + gates.rise)
        )
        return (
            [f"loss {figures['loss']:.2f} a token, allowed is at most {bound:.2f}"]
            if not figures["loss"] <= bound
            else []
        )
    found = []
    for figure in ("id1",) if name == "memorize" else ("R@10",):
        bound = figures["chance"] + gates.progress * (1 - figures["chance"])
        if parent is not None:
            bound = max(bound, parent[figure] - gates.drop)
        samples = int(figures["samples"])
        _, high = wilson(round(figures[figure] * samples), samples, gates.z)
        if high < bound:
            found.append(
                f"{figure} is {figures[figure]:.3f} over {samples} samples, allowed is at least {bound:.3f}"
            )
    return found


def _memorised(sigma: SigmaModel, probe: StageProbe, rows: IntArray) -> Figures:
    """How often the model gives an image its identifier. Chance is always naming the most frequent id1."""
    assigner, shape = BeamSearchAssigner(Decoder(sigma), 1), sigma.profile.shape
    parts = [
        assigner.search([probe.data.images[int(row)] for row in rows[start : start + _BATCH]])[0][
            :, 0
        ]
        for start in range(0, len(rows), _BATCH)
    ]
    given, wanted = np.concatenate(parts), pack_all(probe.data.identifiers[rows, :4], shape)
    below = shape.leaves // shape.codes[0]
    first = wanted // below
    return {
        "id1": float((given // below == first).mean()),
        "leaf": float((given == wanted).mean()),
        "chance": float(np.bincount(first).max() / len(first)),
    }


@torch.inference_mode()
def _comprehended(sigma: SigmaModel, probe: StageProbe, rows: IntArray) -> Figures:
    """Nats a token of captions behind their identifiers. Chance is knowing nothing, not even how often words are used."""
    total = tokens = 0.0
    for start in range(0, len(rows), _BATCH):
        batch = [
            sigma.prompts.comprehend(probe.data.identifiers[row], probe.data.captions[row][0])
            for row in rows[start : start + _BATCH]
        ]
        found = sigma.losses(batch, None, None)
        total += float(found.generation) * float(found.counts[0])
        tokens += float(found.counts[0])
    return {"loss": total / max(tokens, 1.0), "chance": log(len(sigma.tokenizer))}


def _aligned(sigma: SigmaModel, probe: StageProbe, rows: IntArray) -> Figures:
    """Known-item recall among the training images: decode, then rank, as a query worker does, one posting an image."""
    shape, decoder = sigma.profile.shape, Decoder(sigma)
    trie = Trie(shape, decoder.device)
    count = len(probe.data)
    leaves = pack_all(probe.data.identifiers[:, :4], shape)
    trie.insert(leaves, np.arange(count), np.zeros(count, np.float32), probe.data.identifiers[:, 4])
    index = SearchIndex(decoder, probe.encoder, trie, probe.embeddings)
    hits = 0
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        texts = [probe.queries[int(row)] for row in part]
        results = search(index, texts, _DEPTH, probe.retrieval)
        for row, result in zip(part, results, strict=True):
            hits += int(row) in result.slots
    return {"R@10": hits / len(rows), "chance": min(1.0, _DEPTH / count)}


_MEASURES: Mapping[StageName, Callable[[SigmaModel, StageProbe, IntArray], Figures]] = {
    "memorize": _memorised,
    "comprehend": _comprehended,
    "align": _aligned,
}
