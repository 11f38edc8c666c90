"""Comprehension: whether identifiers carry language, measured by exchanging them.

A model that ignores the identifier writes fluent captions too, and its loss looks good. So every
figure is taken twice: behind an image's own identifier, and behind another image's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.decoding.cider import CiderScorer
from model.decoding.decoder import Decoder
from model.decoding.explain import explain_all
from model.network.prompts import TrainingExample
from model.network.sigma import SigmaModel
from schemas.identifiers import LEVELS
from schemas.records import FloatArray, IntArray

# Sequences that the model reads at once.
_BATCH = 16


@dataclass(frozen=True, slots=True)
class ComprehensionFigures:
    """Captions of N images, behind their own identifiers and behind exchanged ones."""

    loss: float
    """Nats a token of captions behind the own identifiers."""
    shuffled_loss: float
    wins: float
    """Share of the images whose caption is likelier behind the own identifier; chance is 0.5."""
    cider: float
    """CIDEr-D, 0 to 10, of what the model says of the own identifiers."""
    shuffled_cider: float
    distinct: int
    """Different captions among those that the model generated."""


def compare_identifiers(
    sigma: SigmaModel,
    identifiers: IntArray,
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    seed: int,
) -> ComprehensionFigures:
    """Measure (N, 5) identifiers with a caption of each image, one that training has not shown.

    `references` are all captions of each image, which generated ones are compared with.
    """
    others = exchanged_rows(identifiers, seed)
    own = caption_losses(sigma, identifiers, captions)
    shuffled = caption_losses(sigma, identifiers[others], captions)
    generated = explain_all(Decoder(sigma), identifiers.tolist())
    scorer = CiderScorer(references)
    rows = range(len(generated))
    exchanged = [generated[row] for row in others.tolist()]
    return ComprehensionFigures(
        loss=float(own.mean()),
        shuffled_loss=float(shuffled.mean()),
        wins=float(win_shares(own, shuffled).mean()),
        cider=float(scorer.scores(generated, rows).mean()),
        shuffled_cider=float(scorer.scores(exchanged, rows).mean()),
        distinct=len(set(generated)),
    )


def exchanged_rows(identifiers: IntArray, seed: int) -> IntArray:
    """(N,) for each row of (N, 5) identifiers another row, of another leaf wherever there is one.

    Images of one leaf differ in the suffix only, which means nothing.
    """
    rng = np.random.default_rng((seed, 4))
    leaves = np.unique(identifiers[:, :LEVELS], axis=0, return_inverse=True)[1].reshape(-1)
    others = np.arange(len(identifiers))
    for row, leaf in enumerate(leaves.tolist()):
        elsewhere = np.flatnonzero(leaves != leaf)
        if len(elsewhere):
            others[row] = rng.choice(elsewhere)
    return others


def win_shares(own: FloatArray, shuffled: FloatArray) -> FloatArray:
    """(N,) 1 where the own loss is lower, 0 where it is higher, 0.5 where both are equal."""
    shares: FloatArray = ((own < shuffled) + 0.5 * (own == shuffled)).astype(np.float32)
    return shares


def caption_losses(sigma: SigmaModel, identifiers: IntArray, captions: Sequence[str]) -> FloatArray:
    """(N,) float32 nats a token of each caption behind id1 to id4 of its row (equation 6)."""
    examples: list[TrainingExample] = []
    for codes, caption in zip(identifiers[:, :LEVELS].tolist(), captions, strict=True):
        examples.append(sigma.prompts.comprehend(codes, caption))
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(examples), _BATCH):
        losses = sigma.continuation_losses(examples[start : start + _BATCH])
        parts.append(losses.cpu().numpy())
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class SimilarityFigures:
    """What the soft-label head says of N texts with their own identifiers and exchanged ones."""

    own: float
    mismatched: float
    wins: float
    """Share of the texts that fit the own identifier better; chance is 0.5."""


def compare_similarities(
    sigma: SigmaModel, identifiers: IntArray, texts: Sequence[str], seed: int
) -> SimilarityFigures:
    """Measure the soft-label head: (N, 5) identifiers, and N texts that training has not shown."""
    others = exchanged_rows(identifiers, seed)
    own = predicted_similarities(sigma, identifiers, texts)
    mismatched = predicted_similarities(sigma, identifiers[others], texts)
    return SimilarityFigures(
        own=float(own.mean()),
        mismatched=float(mismatched.mean()),
        wins=float(win_shares(mismatched, own).mean()),
    )


@torch.inference_mode()
def predicted_similarities(
    sigma: SigmaModel, identifiers: IntArray, texts: Sequence[str]
) -> FloatArray:
    """(N,) float32 in 0..1: similarity of each text and the image of its row (equation 9)."""
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(texts), _BATCH):
        examples: list[TrainingExample] = []
        for row in range(start, min(start + _BATCH, len(texts))):
            examples.append(sigma.prompts.align(texts[row], identifiers[row], None))
        parts.append(sigma.similarities(examples).cpu().numpy())
    return np.concatenate(parts)
