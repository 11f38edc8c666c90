"""Training in a study: a full training and a refresh, on images of a stream."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook, pack_all
from model.identifiers.instance_suffixes import assign_suffixes
from model.network.base import Base
from model.network.checkpoint import Checkpoint
from model.network.parts import ModelParts, parts_from_base
from model.network.profiles import Profile, Stage
from model.network.profiles import profile as profile_named
from model.network.sketch import Sketch
from model.progress import quiet
from model.training.replay import refresh_rows
from model.training.stages import run_stage
from model.training.training_set import TrainingSet
from ops.study.study_corpus import StudyCorpus
from schemas.identifiers import IdentifierShape
from schemas.records import BoolArray, IntArray
from workers.trainer.run_codebook import fit_run_codebook


@dataclass(frozen=True, slots=True, eq=False)
class StudyGeneration:
    """A trained model, and the codes under which its images are to be posted."""

    checkpoint: Checkpoint
    numbers: IntArray
    """(n,) image numbers"""
    codes: IntArray
    """(n, 4)"""


def train_fully(
    base: Path, profile: Profile, corpus: StudyCorpus, numbers: IntArray, seed: int
) -> StudyGeneration:
    """Train on images (n,): fit a new codebook, and run all stages from the base's weights."""
    # Loaded anew each time, because training changes the weights in place.
    return train_parts(parts_from_base(Base.load(base), profile), corpus, numbers, seed)


def train_as_product(
    base: Path, corpus: StudyCorpus, numbers: IntArray, seed: int
) -> StudyGeneration:
    """A full training by the profile `tiny` as it is, its codebook in caption directions."""
    parts = parts_from_base(Base.load(base), profile_named("tiny"))
    captions = [corpus.stream.captions[number] for number in numbers.tolist()]
    codebook = fit_run_codebook(
        parts.sigma.profile, seed, captions, corpus.encoder, corpus.embeddings[numbers], quiet
    )
    return train_parts(parts, corpus, numbers, seed, codebook)


def train_parts(
    parts: ModelParts,
    corpus: StudyCorpus,
    numbers: IntArray,
    seed: int,
    codebook: Codebook | None = None,
) -> StudyGeneration:
    """The same from given parts, whose weights are changed in place; None fits a codebook."""
    profile = parts.sigma.profile
    if codebook is None:
        config = CodebookConfig(
            profile.shape, profile.subspaces, seed, centred=profile.centred_components
        )
        codebook = fit_codebook(corpus.embeddings[numbers], config)
    codes = codebook.encode(corpus.embeddings[numbers])
    checkpoint = Checkpoint(
        parts.sigma, codebook, parts.encoder, sketch=Sketch.fit(corpus.embeddings[numbers], seed)
    )
    identifiers = identifiers_of(codes, profile.shape)
    _run_stages(checkpoint, corpus, numbers, identifiers, profile.stages, seed)
    return StudyGeneration(checkpoint, numbers, codes)


def refresh(
    parent: Checkpoint,
    corpus: StudyCorpus,
    numbers: IntArray,
    codes: IntArray,
    trained: BoolArray,
    seed: int,
) -> StudyGeneration:
    """Train the parent's weights further, in place, on new images and a replay of old ones.

    `numbers` (n,) are all images, `codes` (n, 4) the codes that they keep, and `trained` (n,) tells
    which ones the parent was trained on.
    """
    profile = parent.sigma.profile
    rows = refresh_rows(trained, profile.replay, seed)
    # Without the parent's training record: a study stores no checkpoint of a refresh.
    checkpoint = Checkpoint(
        parent.sigma,
        parent.codebook,
        parent.encoder,
        sketch=Sketch.fit(corpus.embeddings[numbers], seed),
    )
    # Suffixes depend on all images of a leaf, so they are assigned before rows are chosen.
    identifiers = identifiers_of(codes, profile.shape)[rows]
    _run_stages(checkpoint, corpus, numbers[rows], identifiers, profile.refresh, seed)
    return StudyGeneration(checkpoint, numbers, codes)


def identifiers_of(codes: IntArray, shape: IdentifierShape) -> IntArray:
    """(n, 5) identifiers of (n, 4) codes, suffixes in row order."""
    placed = assign_suffixes(pack_all(codes, shape), shape)
    return np.column_stack([codes, placed.suffixes])


def training_set(corpus: StudyCorpus, numbers: IntArray, identifiers: IntArray) -> TrainingSet:
    """Images (n,) of a corpus with identifiers (n, 5), as the stages read them."""
    keys = numbers.tolist()
    return TrainingSet(
        images=list(corpus.stream.pixels[numbers]),
        identifiers=identifiers,
        captions=[corpus.stream.captions[key] for key in keys],
        soft_labels=[corpus.soft_labels[key] for key in keys],
        visual=corpus.visual[:, numbers],
    )


def _run_stages(
    checkpoint: Checkpoint,
    corpus: StudyCorpus,
    numbers: IntArray,
    identifiers: IntArray,
    stages: Sequence[Stage],
    seed: int,
) -> None:
    """Train the checkpoint's model in place on images (n,) with identifiers (n, 5)."""
    data = training_set(corpus, numbers, identifiers)
    with tempfile.TemporaryDirectory(prefix="sigma-study-") as scratch:
        folder = Path(scratch) / "training"
        for stage in stages:
            # An experiment leaves a stage out so.
            if not stage.epochs:
                continue
            # No checkpoints on the way: a killed run starts again.
            run_stage(checkpoint.sigma, data, stage, folder, seed=seed, checkpoints=0)
