"""The stage runner: trains one stage on every rank, as the first rank announces it."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.network.checkpoint import load_sigma
from model.network.profiles import Stage
from model.network.resize import Pixels
from model.network.sigma import SigmaModel
from model.progress import Progress, quiet
from model.training.image_views import visual_tokens
from model.training.ranks import from_first_rank, is_first_rank, sum_over_ranks
from model.training.stages import run_stage
from model.training.training_set import MismatchedPair, TrainingSet
from model.training.vector_set import VectorSet
from schemas.records import FloatArray, HalfArray, IntArray
from stream.images.store import ImageStore
from workers.trainer.training_images import training_pictures


@dataclass(frozen=True, slots=True)
class StageJob:
    """One stage as the first rank announces it. All ranks read the same checkpoint and pictures."""

    folder: Path
    """Folder of the checkpoint."""
    stage: Stage
    uris: tuple[str, ...]
    """Addresses of the N training pictures in the store."""
    captions: tuple[tuple[str, ...], ...]
    identifiers: IntArray
    """(N, 5)"""
    labels: list[FloatArray] | None
    """The teacher's score of each caption of each image, for alignment."""
    mismatched: tuple[MismatchedPair, ...]
    """Captions beside identifiers of other images, for alignment."""
    views: int
    """Shifted views of each picture, whose visual tokens are computed once; 0 trains the vision
    tower."""
    vectors: VectorSet | None
    """None for a model that reads none."""
    query_vectors: HalfArray | None
    """See `TrainingSet.query_vectors`."""
    seed: int
    resume: bool
    """Continue from the newest checkpoint inside the stage."""
    round: int = 0
    """How often the stage was trained before, without passing its gate."""


# What the first rank announces at the end.
_NO_MORE_STAGES: StageJob | None = None


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """A stage that was trained."""

    loss: float
    """Of the last batch."""
    cpu_seconds: float
    """Of all ranks together."""


class StageRunner:
    """A model and its training pictures on one rank; `run` changes the model.

    Visual tokens are computed when the first stage needs them, and kept for the others.
    """

    def __init__(self, sigma: SigmaModel, pictures: Pixels) -> None:
        self.sigma = sigma
        self.pictures = pictures
        self._visual: Tensor | None = None

    def run(self, job: StageJob, progress: Progress) -> StageOutcome:
        """Train one stage in place, together with the other ranks."""
        cpu_before = time.process_time()
        projector = self.sigma.projector
        reads_pictures = projector is None or not projector.reading.pictures
        if job.views and self._visual is None and reads_pictures:
            # (N, side, side, 3): frozen vision needs pictures of one size, those of `tiny`.
            squares = np.stack(self.pictures[:])
            self._visual = visual_tokens(self.sigma, squares, job.views, job.seed, progress)
        data = TrainingSet(
            self.pictures,
            job.identifiers,
            job.captions,
            job.labels,
            self._visual,
            job.mismatched,
            job.vectors,
            job.query_vectors,
        )
        loss = run_stage(
            self.sigma,
            data,
            job.stage,
            job.folder / "training",
            seed=job.seed,
            resume=job.resume,
            progress=progress,
        )
        # A tensor because the ranks sum it; float64 keeps hundredths of days-long trainings.
        spent = torch.tensor([time.process_time() - cpu_before], dtype=torch.float64)
        return StageOutcome(loss, float(sum_over_ranks(spent)[0]))


def announce(job: StageJob) -> StageJob:
    """Tell the other ranks, which wait in `assist_first_rank`, which stage is trained next."""
    return from_first_rank(job)


def announce_end() -> None:
    """Tell the other ranks that no stage follows."""
    if is_first_rank():
        from_first_rank(_NO_MORE_STAGES)


def assist_first_rank(store: ImageStore) -> None:
    """What every rank but the first does: train the stages that the first one announces."""
    runner: StageRunner | None = None
    while True:
        job = from_first_rank(_NO_MORE_STAGES)
        if job is None:
            return
        # Weights of later stages need no reading: every rank makes the same steps.
        if runner is None:
            sigma = load_sigma(job.folder)
            runner = StageRunner(sigma, training_pictures(store, job.uris, sigma.profile))
        runner.run(job, quiet)
