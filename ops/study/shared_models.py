"""Shared models: what the runs of a study have in common, made once and kept in a folder."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from model.network.base import SHIPPED, Base
from model.network.checkpoint import save_checkpoint
from model.network.parts import parts_from_base
from model.network.profiles import Profile
from model.progress import Progress
from model.training.adapt import AdaptConfig, adapt
from model.training.contrastive import CaptionedImages
from ops.study.learning import train_fully
from ops.study.streams import StreamConfig, draw_captioned_scene, draw_stream
from ops.study.study_config import StudyConfig, study_profile
from ops.study.study_corpus import StudyCorpus
from schemas.records import ByteArray
from schemas.training_record import TrainingRecord

# Captions of a wide scene, as many as a training image of the demo has.
_WIDE_CAPTIONS = 4


def study_base(config: StudyConfig, models: Path, progress: Progress) -> Path:
    """The base of all runs: the shipped one, taught the later words too unless `wide` is 0."""
    if not config.wide:
        return SHIPPED

    def save_adapted(folder: Path) -> None:
        # One base for all seeds, as pretrained models would be.
        images = draw_wide_images(config.wide, 0, progress)
        views = AdaptConfig(config.contrastive_views, config.pretrain_views)
        adapt(Base.load(SHIPPED), images, views, progress).save(folder)

    return make_once(models / f"base-{config.wide}", save_adapted)


def first_model_folder(models: Path, stream: StreamConfig) -> Path:
    """Return where the checkpoint trained on a stream's first images is stored."""
    return models / f"first-{stream.seed}-{stream.first}"


def train_first_model(config: StudyConfig, seed: int, base: Path, models: Path) -> Path:
    """Train on the first images, which all streams of a seed share, unless that is done."""
    # One session is the least that a stream can have; its arrivals are not trained on.
    stream = replace(config.stream, kind="stationary", seed=seed, sessions=1)

    def save_first(folder: Path) -> None:
        corpus = prepare_corpus(stream, base)
        generation = train_fully(base, study_profile(), corpus, corpus.stream.arrivals(0), seed)
        save_checkpoint(replace(generation.checkpoint, record=TrainingRecord()), folder)

    return make_once(first_model_folder(models, stream), save_first)


def prepare_corpus(stream: StreamConfig, base: Path, profile: Profile | None = None) -> StudyCorpus:
    """Draw a stream, and let the frozen models of the base look at it.

    The number of views is the profile's, by default the study's.
    """
    parts = parts_from_base(Base.load(base), profile or study_profile())
    return StudyCorpus.prepare(draw_stream(stream), parts, stream.seed)


def draw_wide_images(count: int, seed: int, progress: Progress) -> CaptionedImages:
    """Draw scenes of first and later words in equal parts that no stream shows.

    They stand for what pretrained models have seen of the world.
    """
    pixels: list[ByteArray] = []
    texts: list[Sequence[str]] = []
    with progress("draw scenes", count) as bar:
        for number in range(count):
            rng = Random(f"wide/{seed}/{number}")
            later = number % 2 == 1
            # Scenes of the world `base`, which no stream shows.
            image, captions = draw_captioned_scene(rng, later, _WIDE_CAPTIONS, "base")
            pixels.append(image)
            texts.append(captions)
            bar.update(1)
    return CaptionedImages(np.stack(pixels), texts)


def make_once(folder: Path, save: Callable[[Path], None]) -> Path:
    """Let `save` fill the folder unless it exists; it appears whole or not at all."""
    if not folder.is_dir():
        # Beside the folder, because a rename does not cross file systems.
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            partial = Path(aside) / folder.name
            save(partial)
            partial.replace(folder)
    return folder
