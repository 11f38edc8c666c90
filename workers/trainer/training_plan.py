"""The training plan: the stages of a run, each of them trained, measured, gated and saved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import isfinite
from pathlib import Path

import numpy as np

from model.network.checkpoint import Checkpoint, save_checkpoint
from model.network.encoder import Encoder
from model.network.encoders.teacher import EncoderTeacher
from model.network.parking import parked
from model.network.profiles import Stage, StageName
from model.network.query_head import QueryHeadEncoder
from model.network.querybank import Querybank
from model.network.sketch import Sketch
from model.network.teacher import Teacher
from model.progress import Progress
from model.training.querybank_fit import can_fit, fit_querybank
from model.training.relevance import calibrate
from model.training.stage_gates import Gates, StageProbe, evaluate_stage, gate_failures
from model.training.training_set import MismatchedPair
from model.training.vector_set import VectorSet
from schemas.records import FloatArray, HalfArray
from schemas.training_record import StageEvaluation, TrainingRecord
from workers.trainer.request import STAGES
from workers.trainer.stage_runner import StageJob, StageOutcome, StageRunner, announce
from workers.trainer.step_clock import StepClock
from workers.trainer.training_images import TrainingImages

# Images whose captions the teacher scores at a time.
_BATCH = 64

# Captions that a query head learns from at most: 2 GB of vectors of the paper's encoder.
_MOST_QUERIES = 500_000

# Decimals of a stored figure.
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """A run whose stages are about to be trained."""

    checkpoint: Checkpoint
    """Its model is trained in place."""
    folder: Path
    """Where the checkpoint is saved after each stage."""
    stages: Sequence[Stage]
    """All stages of the run's mode, those that are finished among them."""
    images: TrainingImages
    probe: StageProbe
    teacher: Callable[[], Teacher]
    parent_evaluations: Mapping[str, StageEvaluation]
    """What the parent's stages were measured at, by name; empty for a full training."""
    gates: Gates
    views: int
    """See `StageJob.views`."""
    vectors: VectorSet | None
    """See `StageJob.vectors`."""
    seed: int
    resume: bool
    before_save: Callable[[], None]
    """Called before a checkpoint replaces the one before; raises when another process trains now,
    because this one hung: the folder is its."""
    report: Callable[[TrainingRecord], None]
    """Called when a stage was measured."""


@dataclass(frozen=True, slots=True)
class StagesResult:
    """The record after the stages that were run, and why the last one did not pass its gate."""

    record: TrainingRecord
    failures: tuple[str, ...] = ()
    """Empty when all stages passed."""


def run_stages(
    plan: TrainingPlan, record: TrainingRecord, until: str, progress: Progress
) -> StagesResult:
    """Train the stages up to `until` that are not finished, until one does not pass its gate."""
    runner = StageRunner(plan.checkpoint.sigma, plan.images.pictures)
    result = StagesResult(record)
    for stage in stages_to_run(plan.stages, record, until):
        clock = StepClock.start()
        # Before the stage is announced: the teacher runs on the first rank only.
        labels = _soft_labels(plan, stage, progress)
        result = StagesResult(clock.add_to(result.record, stage.name))
        result = _train_until_it_passes(plan, runner, stage, labels, result.record, progress)
        if result.failures:
            return result
    return result


def _train_until_it_passes(
    plan: TrainingPlan,
    runner: StageRunner,
    stage: Stage,
    labels: "_SoftLabels",
    record: TrainingRecord,
    progress: Progress,
) -> StagesResult:
    """Train a stage until it passes its gate, at most as many rounds as it says."""
    job = _job(plan, stage, labels)
    while True:
        clock = StepClock.start()
        with parked(plan.checkpoint.encoder):
            outcome = runner.run(announce(job), progress)
        record = _with_stage_time(clock.add_to(record, stage.name), stage.name, outcome)
        result = _evaluate(plan, record, stage.name, outcome.loss)
        record = result.record
        job = replace(job, round=job.round + 1, resume=False)
        # A model that has diverged gets no better.
        if not result.failures or job.round >= stage.rounds or not isfinite(outcome.loss):
            return result


def stages_to_run(stages: Sequence[Stage], record: TrainingRecord, until: str) -> list[Stage]:
    """The stages up to and including `until`, in their order, that the record does not name yet."""
    # The first of `STAGES` is the codebook, which is no stage of the optimiser.
    wanted = STAGES[1 : STAGES.index(until) + 1]
    return [stage for stage in stages if stage.name in wanted and stage.name not in record.stages]


def soft_labels(
    teacher: Teacher, images: TrainingImages, embeddings: HalfArray, progress: Progress
) -> list[FloatArray]:
    """The teacher's score of each image with each of its captions (paper, equation 7).

    `embeddings` (N, D) are the encoder's vectors of the images, for a teacher that goes by them.
    """
    if isinstance(teacher, EncoderTeacher):
        return _labels_of_encoder(teacher, images, embeddings, progress)
    labels: list[FloatArray] = []
    with progress("soft labels", len(images)) as bar:
        for start in range(0, len(images), _BATCH):
            captions = images.captions[start : start + _BATCH]
            pictures = images.pictures[start : start + _BATCH]
            pairs = [
                (picture, caption)
                for picture, own in zip(pictures, captions, strict=True)
                for caption in own
            ]
            scores = teacher.score(
                [picture for picture, _ in pairs], [caption for _, caption in pairs]
            )
            ends = np.cumsum([len(own) for own in captions])
            labels += np.split(scores, ends[:-1])
            bar.update(len(captions))
    return labels


def _labels_of_encoder(
    teacher: EncoderTeacher, images: TrainingImages, embeddings: HalfArray, progress: Progress
) -> list[FloatArray]:
    labels: list[FloatArray] = []
    with progress("soft labels", len(images)) as bar:
        for row, captions in enumerate(images.captions):
            pictures = np.repeat(embeddings[row : row + 1].astype(np.float32), len(captions), 0)
            labels.append(teacher.score_embedded(pictures, captions))
            bar.update(1)
    return labels


@dataclass(frozen=True, slots=True)
class _SoftLabels:
    """What teacher and encoder say for alignment; nothing in the other stages."""

    own: list[FloatArray] | None = None
    mismatched: tuple[MismatchedPair, ...] = ()
    query_vectors: HalfArray | None = None
    """The encoder's of the captions; None for a model without a query head."""


def _soft_labels(plan: TrainingPlan, stage: Stage, progress: Progress) -> _SoftLabels:
    if stage.name != "align":
        return _SoftLabels()
    queries = None
    if plan.checkpoint.sigma.query_head is not None:
        queries = query_vectors(plan.checkpoint.encoder, plan.images, progress)
    if stage.soft_label_weight <= 0 or plan.vectors is not None:
        # The head is taught by texts, which a model that reads vectors does not read.
        return _SoftLabels(query_vectors=queries)
    teacher = plan.teacher()
    embeddings = plan.probe.embeddings
    return _SoftLabels(
        soft_labels(teacher, plan.images, embeddings, progress),
        mismatched_pairs(teacher, plan.images, embeddings, stage.mismatched, plan.seed),
        queries,
    )


def query_vectors(encoder: Encoder, images: TrainingImages, progress: Progress) -> HalfArray:
    """(m, D) the encoder's vectors of the first m captions in corpus order, for the query head."""
    captions = list(islice(chain.from_iterable(images.captions), _MOST_QUERIES))
    vectors = np.zeros((len(captions), encoder.width), np.float16)
    with progress("query vectors", len(captions)) as bar:
        for start in range(0, len(captions), _BATCH):
            batch = captions[start : start + _BATCH]
            vectors[start : start + len(batch)] = encoder.embed_texts(batch)
            bar.update(len(batch))
    return vectors


def mismatched_pairs(
    teacher: Teacher, images: TrainingImages, embeddings: HalfArray, share: float, seed: int
) -> tuple[MismatchedPair, ...]:
    """Captions beside other images, `share` times as many as there are images, with their scores.

    The teacher scores them as any pair, for a caption may fit a second image too. `embeddings`
    (N, D) as in `soft_labels`.
    """
    captioned = np.flatnonzero(images.captioned)
    if len(captioned) < 2:
        return ()
    rng = np.random.default_rng((seed, 5))
    pairs: list[MismatchedPair] = []
    for place in rng.permutation(len(captioned))[: round(share * len(captioned))].tolist():
        row = int(captioned[place])
        # Any row but this one.
        other = int(captioned[(place + int(rng.integers(1, len(captioned)))) % len(captioned)])
        number = int(rng.integers(len(images.captions[other])))
        pairs.append(MismatchedPair(row, (other, number), 0.0))
    scored: list[MismatchedPair] = []
    for start in range(0, len(pairs), _BATCH):
        batch = pairs[start : start + _BATCH]
        captions = [images.captions[pair.caption_of[0]][pair.caption_of[1]] for pair in batch]
        rows = [pair.identifier_of for pair in batch]
        if isinstance(teacher, EncoderTeacher):
            vectors = embeddings[rows].astype(np.float32)
            scores = teacher.score_embedded(vectors, captions).tolist()
        else:
            scores = teacher.score([images.pictures[row] for row in rows], captions).tolist()
        scored += [
            replace(pair, soft_label=score) for pair, score in zip(batch, scores, strict=True)
        ]
    return tuple(scored)


def _job(plan: TrainingPlan, stage: Stage, labels: _SoftLabels) -> StageJob:
    return StageJob(
        folder=plan.folder,
        stage=stage,
        uris=plan.images.uris,
        captions=plan.images.captions,
        identifiers=plan.probe.data.identifiers,
        labels=labels.own,
        mismatched=labels.mismatched,
        views=plan.views,
        vectors=plan.vectors,
        query_vectors=labels.query_vectors,
        seed=plan.seed,
        resume=plan.resume,
    )


def _with_stage_time(
    record: TrainingRecord, stage: StageName, outcome: StageOutcome
) -> TrainingRecord:
    # The clock counts the CPU time of this process only; the outcome has that of all ranks.
    cpu = round(max(outcome.cpu_seconds, record.cpu_seconds[stage]), 2)
    return replace(record, cpu_seconds={**record.cpu_seconds, stage: cpu})


def _with_relevance(plan: TrainingPlan, record: TrainingRecord) -> TrainingRecord:
    """The record with what the cosines of its queries say; its parent's without enough texts."""
    clock = StepClock.start()
    images = plan.images
    calibration = calibrate(
        _asking_encoder(plan), images.queries, images.captions, plan.probe.embeddings, plan.seed
    )
    return clock.add_to(replace(record, relevance=calibration or record.relevance), "relevance")


def _querybank(plan: TrainingPlan) -> Querybank | None:
    """The bank of its captions, where that is of use; its parent's without enough texts."""
    images = plan.images
    if not can_fit(images.queries, images.captions):
        return plan.checkpoint.querybank
    return fit_querybank(
        _asking_encoder(plan), images.queries, images.captions, plan.probe.embeddings, plan.seed
    )


def _asking_encoder(plan: TrainingPlan) -> Encoder:
    """What embeds texts as a query worker does."""
    sigma = plan.checkpoint.sigma
    if sigma.query_head is None:
        return plan.checkpoint.encoder
    return QueryHeadEncoder(sigma, sigma.query_head)


def _evaluate(
    plan: TrainingPlan, record: TrainingRecord, stage: StageName, loss: float
) -> StagesResult:
    """Measure a stage that was just trained, and save the checkpoint if it passes its gate."""
    # A model that diverged has no figures worth the time to measure.
    if not isfinite(loss):
        failure = f"stage {stage}: its loss is {loss}; lower the learning rate"
        return StagesResult(record, (failure,))
    clock = StepClock.start()
    figures = evaluate_stage(stage, plan.checkpoint.sigma, plan.probe, plan.gates, plan.seed)
    record = clock.add_to(record, "evaluate")
    parent = plan.parent_evaluations.get(stage)
    failures = gate_failures(stage, figures, None if parent is None else parent.figures, plan.gates)
    rounded = {name: round(value, _DIGITS) for name, value in figures.items()}
    record = record.with_evaluation(stage, StageEvaluation(rounded, round(loss, _DIGITS)))
    if not failures:
        checkpoint = plan.checkpoint
        if stage == "align":
            record = _with_relevance(plan, record)
            clock = StepClock.start()
            sketch = Sketch.fit(plan.probe.embeddings, plan.seed)
            checkpoint = replace(checkpoint, querybank=_querybank(plan), sketch=sketch)
            record = clock.add_to(record, "querybank")
        # Saved only when it passes, so that a resumed run trains a failed stage again.
        record = record.with_stage(stage)
        plan.before_save()
        save_checkpoint(replace(checkpoint, record=record), plan.folder)
    plan.report(record)
    return StagesResult(record, tuple(f"stage {stage}: {failure}" for failure in failures))
