"""The three training stages of the paper (section 3.2): running and resuming one of them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from model.network.profiles import Stage, StageName
from model.network.prompts import TrainingExample
from model.network.sigma import SigmaModel
from model.progress import Progress, quiet
from model.training.ranks import is_first_rank, wait_for_all_ranks
from model.training.sharding import trainable_copy
from model.training.stage_checkpoint import newest_checkpoint
from model.training.stage_trainer import (
    LossCallback,
    StageTrainer,
    stage_steps,
    training_arguments,
)
from model.training.trainee import as_trainee
from model.training.training_set import TrainingSet, stage_examples

# How often a stage is saved on its way: a killed run loses at most half of it.
CHECKPOINTS = 2

# What the progress bar of each stage says.
_LABELS: dict[StageName, str] = {
    "memorize": "1 memorisation",
    "comprehend": "2 comprehension",
    "align": "3 alignment",
}


def run_stage(
    model: SigmaModel,
    data: TrainingSet,
    stage: Stage,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    checkpoints: int = CHECKPOINTS,
    progress: Progress = quiet,
) -> float:
    """Train one stage in place; returns the last batch's loss.

    `folder` holds the Trainer's checkpoints while it runs, and is removed when the stage is done.
    With `resume` a killed run continues from the newest one. Every rank must call this.
    """
    examples = stage_examples(model, data, stage, seed)
    return run_examples(
        model,
        data,
        stage,
        examples,
        folder,
        seed=seed,
        resume=resume,
        checkpoints=checkpoints,
        progress=progress,
    )


def run_examples(
    model: SigmaModel,
    data: TrainingSet,
    stage: Stage,
    examples: Sequence[TrainingExample],
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    checkpoints: int = CHECKPOINTS,
    progress: Progress = quiet,
) -> float:
    """Train one stage on given sequences; everything else as in `run_stage`."""
    if not examples:
        return 0.0
    steps = stage_steps(stage, len(examples))
    newest = newest_checkpoint(folder) if resume else None
    if newest is None:
        _remove(folder)
    with progress(_LABELS[stage.name], steps) as bar:
        callback = LossCallback(bar)
        compute = model.profile.compute
        arguments = training_arguments(folder, stage, steps, seed, checkpoints, compute)
        with as_trainee(model, seed), trainable_copy(model) as trainee:
            trainer = StageTrainer(trainee, stage, data, examples, callback, arguments)
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    model.eval()
    _remove(folder)
    return callback.loss


def _remove(folder: Path) -> None:
    """Remove a folder on the first rank, while the others wait."""
    wait_for_all_ranks()
    if is_first_rank() and folder.is_dir():
        # Moved first: a removal that is cut short must not leave half a checkpoint to resume from.
        removed = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(removed, ignore_errors=True)
        shutil.rmtree(folder.rename(removed), ignore_errors=True)
    wait_for_all_ranks()
