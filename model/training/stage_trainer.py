"""The stage trainer: the `transformers` Trainer with this project's batches and losses.

The same class serves all three stages of the paper: they differ in their sequences and in λ_ssp of
equation 12.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

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

from model.network.compute import Compute
from model.network.inputs import ImagePatches, VisualTokens
from model.network.profiles import Stage
from model.network.prompts import TrainingExample
from model.network.sigma import SigmaModel
from model.network.weights_io import load_module, save_module
from model.progress import Bar
from model.training.batches import Collator, StageBatch, counts_of
from model.training.ranks import sum_over_ranks, world_size
from model.training.sharding import (
    begin_states,
    drop_idle_gradients,
    enable_sharding,
    is_sharded,
    sharding_arguments,
)
from model.training.stage_checkpoint import check_stage_digests, write_stage_digests
from model.training.trainee import drop_word_gradients, keeps_words, word_tables
from model.training.training_set import ExampleDataset, TrainingSet

# The model's weights in a checkpoint of the Trainer.
WEIGHTS = "model.safetensors"

# Weight of the query head's loss, 1 - cosine, beside the cross-entropy.
QUERY_HEAD_WEIGHT = 1.0

# Batches that are sorted by length together: little padding, and still a random mixture.
BUCKET_BATCHES = 50


class LengthBuckets(Sampler[int]):
    """A seeded shuffle that batches sequences of similar length, anew in each epoch."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer, so that a resumed run sees the order that it would have seen."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        bucket = self.batch * BUCKET_BATCHES
        for start in range(0, len(order), bucket):
            rows = order[start : start + bucket]
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            batches = [
                rows[begin : begin + self.batch] for begin in range(0, len(rows), self.batch)
            ]
            for index in rng.permutation(len(batches)):
                yield from batches[index].tolist()


class LossCallback(TrainerCallback):
    """Shows the loss of each step on a progress bar, and remembers the last one."""

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
        """Called by the Trainer."""
        self.bar.update(1, loss=self.loss)


class StageTrainer(Trainer):
    """Trains one stage of a model in place (equation 12)."""

    def __init__(
        self,
        sigma: SigmaModel,
        stage: Stage,
        data: TrainingSet,
        examples: Sequence[TrainingExample],
        callback: LossCallback,
        args: TrainingArguments,
    ) -> None:
        self.sigma = sigma
        self.stage = stage
        self.data = data
        self.examples = examples
        self.loss_callback = callback
        # Ranks that gather layers together must all run the same ones.
        sigma.uses_vision_always = is_sharded(sigma.profile.compute) and data.visual is None
        sigma.uses_heads_always = is_sharded(sigma.profile.compute)
        super().__init__(
            model=sigma,
            args=args,
            train_dataset=ExampleDataset(examples),
            data_collator=Collator(data.images, sigma.preprocessor, data.visual is None),
            callbacks=[callback],
        )
        # It would print a dictionary to standard output, where the command line's JSON goes.
        self.remove_callback(PrinterCallback)

    def create_accelerator_and_postprocess(self) -> None:
        """Called by the Trainer."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            enable_sharding(self.accelerator, self.args.fsdp_plugin_args, self.sigma)
            self.is_fsdp_enabled = True

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Add the gradients of L_gen + λ_ssp·L_ssp of a batch; returns this process's share of it.

        Each part's means are weighted by how much they are means over. So the sum over the parts of
        a batch, and the average over processes, equal the gradient of one process with the whole
        batch.
        """
        model.train()
        batch = self._drawn(inputs["batch"])
        counted = sum_over_ranks(counts_of(batch))
        totals = counted[:3].clamp(min=1.0)
        parts = batch.parts(self.sigma.profile.compute.micro_batch)
        loss = torch.zeros((), device=self.sigma.device)
        for number, part in enumerate(parts, 1):
            with self._gradients_of(model, is_last=number == len(parts)):
                own = self._loss(model, part, totals)
                self.accelerator.backward(own)
            loss += own.detach()
        if keeps_words(self.sigma):
            drop_word_gradients(self.sigma)
        if self.is_fsdp_enabled:
            drop_idle_gradients(self.sigma, counted)
            begin_states(cast(torch.optim.Optimizer, self.optimizer))
        self.loss_callback.loss = float(loss)
        return loss

    def _drawn(self, batch: StageBatch) -> StageBatch:
        """The batch as this step sees it: captions with hidden words, and the vectors to read."""
        # Every rank, and a run that was resumed, draws what one that was not would.
        seed = (self.args.seed, self.state.global_step)
        share = self.stage.hidden_words
        if share:
            hide = self.sigma.prompts.with_hidden_words
            batch = replace(batch, examples=[hide(each, share, seed) for each in batch.examples])
        if self.data.vectors is None:
            return batch
        examples, vectors = self.data.vectors.draw(
            batch.examples, self.data.identifiers, self.sigma.prompts, seed
        )
        return replace(batch, examples=examples, vectors=vectors)

    def _gradients_of(self, model: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """Where the gradients of a part are made: processes add theirs up behind the last one."""
        # Where they are divided, gradients of a whole layer must not be kept from part to part.
        if is_last or self.is_fsdp_enabled:
            return nullcontext()
        return self.accelerator.no_sync(model)

    def _loss(self, model: nn.Module, part: StageBatch, totals: Tensor) -> Tensor:
        """Share of a part in the loss (equation 12), of `totals` (3,) of all parts and ranks.

        A query head adds its own, which is not the paper's.
        """
        images = self._images(part)
        targets = self._targets(part)
        generation, similarity, counts, embedding = model(
            part.examples, images, part.vectors, targets
        )
        weights = world_size() * counts / totals.to(counts)
        loss: Tensor = weights[0] * generation + QUERY_HEAD_WEIGHT * weights[2] * embedding
        return loss + self.stage.soft_label_weight * weights[1] * similarity

    def _targets(self, part: StageBatch) -> Tensor | None:
        """(m, D) float32 vectors that the query head is to give for a part's queries, in order."""
        rows = [example.query for example in part.examples if example.query is not None]
        if self.data.query_vectors is None or not rows:
            return None
        return torch.from_numpy(self.data.query_vectors[rows].astype(np.float32))

    def _images(self, part: StageBatch) -> ImagePatches | VisualTokens | None:
        """The images of a part: visual tokens computed before, else patches."""
        rows = [example.image for example in part.examples if example.image is not None]
        if self.data.visual is None or not rows:
            return part.patches
        _, _, count, hidden = self.data.visual.shape
        states = self.data.visual.view(-1, count, hidden)[rows].reshape(-1, hidden)
        grid = self.sigma.preprocessor(self.data.images[:1]).grid.repeat(len(rows), 1)
        return VisualTokens(states, grid)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Which parameters decay: not the tables, where most of their words are not trained."""
        names: list[str] = super().get_decay_parameter_names(model)
        if not keeps_words(self.sigma):
            return names
        tables = [id(table) for table in word_tables(self.sigma)]
        kept = {name for name, each in model.named_parameters() if id(each) in tables}
        return [name for name in names if name not in kept]

    def _get_train_sampler(
        self, train_dataset: Dataset[TrainingExample] | None = None
    ) -> LengthBuckets:
        lengths = [len(example.tokens) for example in self.examples]
        # The order of one process with the whole batch: accelerate deals each batch out in equal
        # parts.
        whole_batch = batch_per_process(self.stage) * world_size()
        return LengthBuckets(lengths, whole_batch, self.args.seed)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        # The Trainer's own saving refuses the tied embedding, which two names share.
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_module(self.sigma, folder / WEIGHTS)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Nothing but the Trainer's state is written after this, by which a whole one is known.
        write_stage_digests(Path(output_dir))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        check_stage_digests(Path(resume_from_checkpoint))
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_module(self.sigma, Path(resume_from_checkpoint) / WEIGHTS)


def batch_per_process(stage: Stage) -> int:
    """Sequences of a batch that each process takes (rounded up)."""
    return -(-stage.batch // world_size())


def stage_steps(stage: Stage, examples: int) -> int:
    """How many steps a stage takes with that many sequences, at least one."""
    whole_batch = batch_per_process(stage) * world_size()
    steps_per_epoch = -(-examples // whole_batch)
    return max(1, round(stage.epochs * steps_per_epoch))


def training_arguments(
    folder: Path, stage: Stage, steps: int, seed: int, checkpoints: int, compute: Compute
) -> TrainingArguments:
    """The Trainer's arguments for a stage of `steps` steps, saved `checkpoints` times."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_per_process(stage),
        # Not epochs: a stage may be a fraction of one.
        max_steps=steps,
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        adam_beta2=stage.beta2,
        max_grad_norm=stage.clip,
        lr_scheduler_type="cosine",
        # The first step of a warm-up has a rate of zero: a stage of a few steps needs them all.
        warmup_steps=round(steps * stage.warmup),
        seed=seed,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="steps" if checkpoints else "no",
        save_steps=max(1, steps // checkpoints) if checkpoints else steps + 1,
        # Only the newest checkpoint is resumed from.
        save_total_limit=1,
        # The loss is on our progress bar; nothing is printed or sent anywhere.
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        # Examples are records without columns.
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=compute.loader_workers,
        **sharding_arguments(compute),
        # The vision tower, or the soft-label head, has no part in some batches.
        ddp_find_unused_parameters=True,
    )
    # One process uses one GPU, others come with torchrun; the Trainer alone would split batches
    # over all GPUs that it finds.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
