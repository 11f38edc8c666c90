"""The trial of an adaptation: does a base learn to tell these pictures by their texts at all?

A text side that was made for one kind of words learns others from the captions of a corpus, where
they repeat. Names and keywords that hardly repeat it cannot learn, and a whole training would find
that out at its last gate.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from model.network.base import Base
from model.progress import Progress
from model.training.contrastive import CaptionedImages, ContrastiveConfig, train_two_tower
from schemas.records import ByteArray, FloatArray, IntArray

# Fewer images cannot tell chance from learning; and their whole training is short.
LEAST_IMAGES = 100

# Images that the trial holds out, which bounds the error of its figure, and their share where there
# are few.
_MOST_HELD_OUT = 200
_HELD_OUT_SHARE = 0.25

# What the trial must reach: the share of the other held-out pictures that a text puts behind its
# own; chance is one half. Landscapes of other words have .84 after one round, open clip art, whose
# words are names, .64 after four (docs/experiments/trial.md).
SUFFICIENT_ORDER = 0.75

# As in an adaptation: the base is trained further, not anew.
_LEARNING_RATE = 8e-4

# Standard errors that a figure may lie below its bound: it has several rounds to reach it by luck.
_Z = 1.0

# Standard deviation of a place between 0 and 1 that is drawn at random.
_CHANCE_DEVIATION = 12**-0.5


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """How long a trial is at most: 8,000 views take 40 seconds of one core."""

    rounds: int = 4
    """It ends after the first that is promising."""
    views: int = 2000
    """Images shown in a round, repetitions included."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class AdaptationTrial:
    """What a short training on most of a corpus has taught of the rest."""

    order: float
    """Share of the other held-out pictures that a held-out picture's text puts behind its own."""
    held_out: int
    """Pictures that were held out."""
    views: int
    """Images that were shown, repetitions included."""

    @property
    def is_promising(self) -> bool:
        """Whether a training has something to build on; the error of few images is granted."""
        error = _Z * _CHANCE_DEVIATION / self.held_out**0.5
        return self.order + error >= SUFFICIENT_ORDER


def try_adaptation(
    base: Base,
    data: CaptionedImages,
    queries: Sequence[str],
    config: TrialConfig,
    progress: Progress,
) -> AdaptationTrial | None:
    """Train a copy of the base's towers for a moment, until it is promising; None for few images.

    `queries`: one text of each image, a caption that is held out where there is one. Neither the
    base nor torch's random numbers are touched, so a training goes on as without a trial.
    """
    if len(data) < LEAST_IMAGES:
        return None
    order = np.random.default_rng((config.seed, 7)).permutation(len(data))
    count = min(_MOST_HELD_OUT, round(_HELD_OUT_SHARE * len(data)))
    held_out, rest = order[:count], order[count:]
    texts = [queries[row] for row in held_out.tolist()]
    copied = replace(base, towers=copy.deepcopy(base.towers))
    with torch.random.fork_rng(), progress("trial", config.rounds) as bar:
        for number in range(config.rounds):
            _train_round(copied, data, np.roll(rest, -number * config.views), number, config)
            trial = AdaptationTrial(
                order=_mean_order(copied, data.pixels[held_out], texts),
                held_out=count,
                views=(number + 1) * config.views,
            )
            bar.update(1, order=trial.order)
            if trial.is_promising:
                break
    return trial


def _train_round(
    base: Base, data: CaptionedImages, rest: IntArray, number: int, config: TrialConfig
) -> None:
    """Train on the first of the rows that are left, which are others in each round."""
    rows = rest[: config.views]
    part = CaptionedImages(data.pixels[rows], [data.captions[row] for row in rows.tolist()])
    contrastive = ContrastiveConfig(
        epochs=max(1, config.views // len(part)),
        learning_rate=_LEARNING_RATE,
        limit=base.limit,
        seed=config.seed + number,
    )
    train_two_tower(base.towers, base.tokenizer, part, contrastive)


def _mean_order(base: Base, pixels: ByteArray, texts: list[str]) -> float:
    """Mean over N texts of the share of the other N - 1 pictures that are less similar."""
    encoder = base.encoder
    scores: FloatArray = encoder.embed_texts(texts) @ encoder.embed_images(list(pixels)).T
    own = np.diag(scores)[:, None]
    below = (scores < own).sum(1)
    # Ties are half won: equal vectors know nothing.
    equal = (scores == own).sum(1) - 1
    return float(((below + equal / 2) / (len(texts) - 1)).mean())
