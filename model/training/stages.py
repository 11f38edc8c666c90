"""The three training stages of the paper (section 3.2) on the `transformers` Trainer: one dataset kind, one loss."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from model.network.backbone import ImagePatches
from model.network.profiles import Stage, StageName
from model.network.prompts import TrainingExample
from model.network.sigma import SigmaModel
from model.network.weights_io import load_module, save_module
from model.progress import Bar, Progress, quiet
from model.training.ranks import is_first_rank, sum_over_ranks, wait_for_all_ranks, world_size
from schemas.records import ByteArray, FloatArray, IntArray

WEIGHTS = "model.safetensors"
SHIFT_PX, VIEW_BATCH = 3, 128


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What the stages learn from: N images (pixels as (H, W, 3) uint8), their identifiers (N, 5) int64, captions, and for
    each caption the teacher's score (None before scoring)."""

    images: Sequence[ByteArray]
    identifiers: IntArray
    captions: Sequence[Sequence[str]]
    soft_labels: Sequence[FloatArray] | None = None
    visual: Tensor | None = None
    """(V, N, T, H) visual tokens of V views of each image, when the vision tower is frozen."""

    def __len__(self) -> int:
        return len(self.images)


class Examples(Dataset[TrainingExample]):
    """A stage's sequences."""

    def __init__(self, rows: Sequence[TrainingExample]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TrainingExample:
        return self.rows[index]


def examples(model: SigmaModel, data: TrainingSet, stage: Stage, seed: int) -> Examples:
    """The sequences of one stage, in corpus order, with the replay of earlier stages' after them.

    An example's `image` counts views first: image i in view v is v·N + i.
    """
    prompts, tokens = model.prompts, _image_tokens(model, data)
    views = 1 if data.visual is None else len(data.visual)
    memorize = [
        prompts.memorize(v * len(data) + i, tokens[i], data.identifiers[i])
        for v in range(views)
        for i in range(len(data))
    ]
    if stage.name == "memorize":
        return Examples(memorize)
    order = np.random.default_rng(seed).permutation(len(memorize))
    kept = [memorize[int(i)] for i in order[: round(stage.replay * len(data))]]
    labels = data.soft_labels
    rows = [
        prompts.comprehend(data.identifiers[i], caption)
        if stage.name == "comprehend"
        else prompts.align(
            caption, data.identifiers[i], None if labels is None else float(labels[i][k])
        )
        for i, texts in enumerate(data.captions)
        for k, caption in enumerate(texts)
    ]
    if stage.caption_replay:
        pairs = [(i, caption) for i, texts in enumerate(data.captions) for caption in texts]
        chosen = np.random.default_rng((seed, 1)).permutation(len(pairs))[
            : round(stage.caption_replay * len(data))
        ]
        kept += [
            prompts.comprehend(data.identifiers[pairs[int(j)][0]], pairs[int(j)][1]) for j in chosen
        ]
    return Examples([*rows, *kept])


def _image_tokens(model: SigmaModel, data: TrainingSet) -> list[int]:
    if model.inputs.side_px:
        return model.inputs(data.images[:1]).tokens(model.merge) * len(data) if len(data) else []
    return [model.inputs([image]).tokens(model.merge)[0] for image in data.images]


class LengthBuckets(Sampler[int]):
    """Seeded shuffle that keeps sequences of like length together in a batch: little padding, a new order each epoch."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer, so that a resumed run sees the order it would have seen."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        pool = self.batch * 50
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches = [part[i : i + self.batch] for i in range(0, len(part), self.batch)]
            for index in rng.permutation(len(batches)):
                yield from (int(i) for i in batches[index])


class _BarCallback(TrainerCallback):
    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.loss = float("nan")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        self.bar.update(1, loss=self.loss)


class StageTrainer(Trainer):
    """The Trainer with this project's batches and losses (equation 12)."""

    def __init__(
        self,
        sigma: SigmaModel,
        stage: Stage,
        data: TrainingSet,
        rows: Examples,
        bar: _BarCallback,
        args: TrainingArguments,
    ) -> None:
        self.sigma, self.stage, self.data, self.rows, self.bar_callback = (
            sigma,
            stage,
            data,
            rows,
            bar,
        )
        super().__init__(
            model=sigma, args=args, train_dataset=rows, data_collator=_gather, callbacks=[bar]
        )
        # It would print a dictionary to standard output, where our JSON goes.
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """L_gen + λ·L_ssp of a batch. With several processes each one's means are weighted by what they are means over, so
        that the average of their gradients is that of one process with the whole batch."""
        batch: list[TrainingExample] = inputs["examples"]
        generation, similarity, counts = model(
            batch, *self._pictures([e.image for e in batch if e.image is not None])
        )
        share = world_size() * counts / sum_over_ranks(counts).clamp(min=1.0)
        loss: Tensor = share[0] * generation + self.stage.soft_label_weight * share[1] * similarity
        self.bar_callback.loss = float(loss.detach())
        return loss

    def _pictures(
        self, rows: list[int]
    ) -> tuple[ImagePatches | None, Tensor | None, Tensor | None]:
        """Pictures to look at, or their visual tokens and grid when they were looked at before."""
        if not rows:
            return None, None, None
        if self.data.visual is not None:
            _, _, count, hidden = self.data.visual.shape
            grid = self.sigma.inputs(self.data.images[:1]).grid.repeat(len(rows), 1)
            return None, self.data.visual.view(-1, count, hidden)[rows].reshape(-1, hidden), grid
        return self.sigma.inputs([self.data.images[row] for row in rows]), None, None

    def _get_train_sampler(
        self, train_dataset: Dataset[TrainingExample] | None = None
    ) -> LengthBuckets:
        lengths = [len(example.tokens) for example in self.rows.rows]
        # The order of one process with the whole batch: accelerate deals each batch out to the processes in equal parts.
        return LengthBuckets(lengths, per_process(self.stage) * world_size(), self.args.seed)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        # The Trainer's own way refuses the tied embedding, which two names share.
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_module(self.sigma, folder / WEIGHTS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_module(self.sigma, Path(resume_from_checkpoint) / WEIGHTS)


def _gather(batch: list[TrainingExample]) -> dict[str, Any]:
    return {"examples": batch}


def per_process(stage: Stage) -> int:
    """Sequences of a batch that each process takes, so that all together have the stage's batch (rounded up)."""
    return -(-stage.batch // world_size())


def _arguments(
    folder: Path, stage: Stage, steps: int, seed: int, checkpoints: int
) -> TrainingArguments:
    every = max(1, steps // max(1, checkpoints)) if checkpoints else steps + 1
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=per_process(stage),
        max_steps=steps,
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        adam_beta2=stage.beta2,
        max_grad_norm=stage.clip,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(steps * stage.warmup)),
        seed=seed,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="steps" if checkpoints else "no",
        save_steps=every,
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        # The vision tower, or the soft-label head, has no part in some batches.
        ddp_find_unused_parameters=True,
    )
    # One process sees one GPU, others come with torchrun; left alone, the Trainer splits batches over all GPUs that it finds.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


@torch.no_grad()
def visual_tokens(
    model: SigmaModel, squares: ByteArray, views: int, seed: int, progress: Progress = quiet
) -> Tensor:
    """(V, N, T, H) visual tokens of (N, side, side, 3) images: the first view as it is, the others shifted by a few pixels."""
    rng = np.random.default_rng(seed)
    parts: list[Tensor] = []
    with progress("visual tokens", views * len(squares)) as bar:
        for view in range(views):
            for start in range(0, len(squares), VIEW_BATCH):
                part = squares[start : start + VIEW_BATCH]
                seen = model.see(model.inputs.from_squares(shifted(part, rng) if view else part))
                parts.append(seen.view(len(part), -1, seen.shape[-1]))
                bar.update(len(part))
    count, hidden = parts[0].shape[1:]
    return torch.cat(parts).view(views, len(squares), count, hidden)


def shifted(squares: ByteArray, rng: np.random.Generator) -> ByteArray:
    """Each image moved by up to `SHIFT_PX` pixels, its border repeated."""
    side = squares.shape[1]
    padded = np.pad(
        squares, ((0, 0), (SHIFT_PX, SHIFT_PX), (SHIFT_PX, SHIFT_PX), (0, 0)), mode="edge"
    )
    moves = rng.integers(0, 2 * SHIFT_PX + 1, size=(len(squares), 2))
    return np.stack(
        [image[y : y + side, x : x + side] for image, (y, x) in zip(padded, moves, strict=True)]
    )


def run_stage(
    model: SigmaModel,
    data: TrainingSet,
    stage: Stage,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    checkpoints: int = 2,
    progress: Progress = quiet,
) -> float:
    """Train one stage in place; returns the last batch's loss. `folder` holds the Trainer's checkpoints while it runs and is
    removed when the stage is done; with `resume` a killed run continues from the newest one."""
    rows = examples(model, data, stage, seed)
    if not len(rows):
        return 0.0
    steps = max(1, round(stage.epochs * -(-len(rows) // (per_process(stage) * world_size()))))
    newest = newest_checkpoint(folder) if resume else None
    if newest is None:
        _remove(folder)
    with progress(_LABELS[stage.name], steps) as bar:
        callback = _BarCallback(bar)
        trainer = StageTrainer(
            model, stage, data, rows, callback, _arguments(folder, stage, steps, seed, checkpoints)
        )
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    model.eval()
    _remove(folder)
    return callback.loss


def _remove(folder: Path) -> None:
    wait_for_all_ranks()
    if is_first_rank() and folder.is_dir():
        # Moved first: a removal that is cut short must not leave half a checkpoint to resume from.
        doomed = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        shutil.rmtree(folder.rename(doomed), ignore_errors=True)
    wait_for_all_ranks()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of the Trainer: one whose saving was cut short lacks its state, which comes last."""
    for found in sorted(
        folder.glob("checkpoint-*"),
        key=lambda path: int(path.name.rpartition("-")[2]),
        reverse=True,
    ):
        try:
            json.loads((found / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return found
    return None


_LABELS: dict[StageName, str] = {
    "memorize": "1 memorisation",
    "comprehend": "2 comprehension",
    "align": "3 alignment",
}
