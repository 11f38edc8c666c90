"""Training in a study: the first model, a full retraining and a refresh, each from images of a stream to an index."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook, pack_all
from model.identifiers.instance_suffixes import assign_suffixes
from model.network.base import Base
from model.network.checkpoint import Checkpoint
from model.network.parts import parts_from_base
from model.network.profiles import Profile, Stage
from model.training.replay import refresh_rows
from model.training.stages import run_stage
from model.training.training_set import TrainingSet
from ops.study.index import Corpus
from schemas.identifiers import IdentifierShape
from schemas.records import BoolArray, IntArray


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that was trained, and the codes (n, 4) of the images `numbers` (n,) that it was to learn or keep."""

    checkpoint: Checkpoint
    numbers: IntArray
    codes: IntArray


def train_fully(
    base: Path, profile: Profile, corpus: Corpus, numbers: IntArray, seed: int
) -> Trained:
    """A new codebook on these images, and the three stages from the base's weights."""
    parts = parts_from_base(Base.load(base), profile)
    codebook = fit_codebook(corpus.embeddings[numbers], CodebookConfig(profile.shape, seed=seed))
    codes = codebook.encode(corpus.embeddings[numbers])
    checkpoint = Checkpoint(parts.sigma, codebook, parts.encoder)
    _learn(checkpoint, corpus, numbers, identifiers_of(codes, profile.shape), profile.stages, seed)
    return Trained(checkpoint, numbers, codes)


def refresh(
    weights: Checkpoint,
    codebook: Codebook,
    corpus: Corpus,
    numbers: IntArray,
    codes: IntArray,
    trained: BoolArray,
    seed: int,
) -> Trained:
    """The refresh stages from the weights given, on the images `numbers` that are not `trained` (n,) and a replay of those that are.

    Changes the model of `weights` in place.
    """
    profile = weights.sigma.profile
    rows = refresh_rows(trained, profile.replay, seed)
    checkpoint = Checkpoint(weights.sigma, codebook, weights.encoder)
    _learn(
        checkpoint,
        corpus,
        numbers[rows],
        identifiers_of(codes, profile.shape)[rows],
        profile.refresh,
        seed,
    )
    return Trained(checkpoint, numbers, codes)


def identifiers_of(codes: IntArray, shape: IdentifierShape) -> IntArray:
    """(n, 5) identifiers of (n, 4) codes, suffixes in row order."""
    return np.column_stack([codes, assign_suffixes(pack_all(codes, shape), shape).suffixes])


def _learn(
    checkpoint: Checkpoint,
    corpus: Corpus,
    numbers: IntArray,
    identifiers: IntArray,
    stages: Sequence[Stage],
    seed: int,
) -> None:
    data = TrainingSet(
        list(corpus.stream.pixels[numbers]),
        identifiers,
        [corpus.stream.captions[number] for number in numbers.tolist()],
        [corpus.soft_labels[number] for number in numbers.tolist()],
        corpus.visual[:, numbers],
    )
    with tempfile.TemporaryDirectory(prefix="sigma-study-") as folder:
        for stage in stages:
            run_stage(
                checkpoint.sigma, data, stage, Path(folder) / "training", seed=seed, checkpoints=0
            )
