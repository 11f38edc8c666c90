"""The preparation of a run: the images, model, codebook and plan that its stages begin with."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import structlog
import torch

from model.identifiers.codebook import Codebook
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.encoders.kept import KeptEncoder
from model.network.encoders.teacher import EncoderTeacher
from model.network.profile_document import profile_document
from model.network.query_head import QuerySpace
from model.network.sigma import NO_QUERY_HEAD
from model.network.teacher import Teacher
from model.progress import Progress
from schemas.errors import UsageError
from schemas.records import HalfArray
from schemas.training_record import CODEBOOK, VECTORS, TrainingRecord
from workers.generations.model_assigner import load_generation_checkpoint
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.stored_images import newest_image
from workers.repository.training_data import embeddings_of, indexed_images, trainable_keys
from workers.runtime.pictures import picture_px
from workers.runtime.services import Services
from workers.trainer.captioning import pinned_captioner, with_captions
from workers.trainer.identifier_plan import (
    IdentifierPlan,
    plan_full,
    plan_recluster,
    plan_refresh,
)
from workers.trainer.reclustering import recluster_generation
from workers.trainer.run_base import (
    BASE,
    OpenedRun,
    copy_base,
    first_parts,
    open_run,
    teacher_of,
)
from workers.trainer.run_codebook import fit_run_codebook
from workers.trainer.step_clock import StepClock
from workers.trainer.training_images import TrainingImages, from_manifest, from_store
from workers.trainer.training_run import TrainingRun
from workers.trainer.vector_learning import add_reading, learns_vectors

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PreparedTraining:
    """What the stages begin with."""

    record: TrainingRecord
    checkpoint: Checkpoint
    images: TrainingImages
    """N images to train on."""
    plan: IdentifierPlan
    """The identifiers of those and of all other images that the generation begins with."""
    embeddings: HalfArray
    """(N, D) of the images to train on. The parent has those of the others."""
    teacher: Callable[[], Teacher]
    """Loads the teacher, which only alignment needs."""


def prepare(
    services: Services, conn: Connection, run: TrainingRun, progress: Progress
) -> PreparedTraining:
    """Make what a run's stages begin with, or read it when the run is resumed.

    Afterwards the codebook, the plan and a first checkpoint are in the run's folder. `UsageError`
    or `RefuseToStartError` when images, base or parent cannot be used.
    """
    if run.parent is None:
        return _prepare_full(services, conn, run, progress)
    return _prepare_from_parent(services, conn, run, run.parent, progress)


def _prepare_full(
    services: Services, conn: Connection, run: TrainingRun, progress: Progress
) -> PreparedTraining:
    clock = StepClock.start()
    opened = open_run(run)
    longest_side = _announce_encoder(services, conn, run, opened)
    captioner = pinned_captioner(run.record.captioner)
    images = _images_of_full_run(services, conn, run, longest_side, progress)
    images = with_captions(images, captioner, run.folder, progress)
    first = first_parts(run, opened, images, progress)
    embeddings = first.embeddings
    if run.has_codebook:
        codebook = Codebook.load(run.folder)
        plan = IdentifierPlan.load(run.folder)
        # Images may have been deleted since the run began, or have come after it.
        planned = np.isin(images.image_keys, plan.image_keys)
        images = images.select(planned)
        embeddings = embeddings[planned]
        plan = plan.without_missing(plan.image_keys, images.image_keys)
    else:
        codebook = fit_run_codebook(
            run.profile, run.request.seed, images.captions, first.encoder, embeddings, progress
        )
        leaves = codebook.leaves(embeddings)
        plan = plan_full(images.image_keys, leaves, run.profile.shape)
        planned = np.isin(images.image_keys, plan.image_keys)
        images = images.select(planned)
        embeddings = embeddings[planned]
        plan.save(run.folder)
    record = replace(run.record, captioner=captioner)
    if first.base_recall is not None:
        record = replace(record, base_recall=first.base_recall)
    encoder = first.encoder
    if isinstance(encoder, KeptEncoder):
        record = replace(record, encoder_source=encoder.source)
    # Hub names have a revision now.
    numbers = profile_document(first.sigma.profile)
    record = replace(record, encoder_px=opened.side_px, profile_numbers=numbers)
    record = replace(clock.add_to(record, "prepare"), images=len(images))
    checkpoint = Checkpoint(first.sigma, codebook, encoder)
    if not run.has_codebook and run.profile.query_head:
        if learns_vectors(run, images, encoder):
            raise UsageError(NO_QUERY_HEAD)
        torch.manual_seed(run.request.seed)
        first.sigma.add_query_head(QuerySpace(encoder.width, encoder.scale))
    if not run.has_codebook and learns_vectors(run, images, encoder):
        add_reading(run, first.sigma, encoder, embeddings, images)
        record = replace(record, reads=VECTORS)
    record = _keep_codebook(run, checkpoint, record)
    return PreparedTraining(
        record, checkpoint, images, plan, embeddings.astype(np.float16), first.load_teacher
    )


def _prepare_from_parent(
    services: Services,
    conn: Connection,
    run: TrainingRun,
    parent: Generation,
    progress: Progress,
) -> PreparedTraining:
    clock = StepClock.start()
    captioner = pinned_captioner(run.record.captioner) if run.mode == "refresh" else None
    record = replace(run.record, captioner=captioner)
    if run.has_codebook:
        checkpoint = load_checkpoint(run.folder)
        plan = IdentifierPlan.load(run.folder)
    else:
        before = load_generation_checkpoint(services.checkpoints, parent, answering=False)
        limit = services.settings.training_images
        # Weights and encoder are the parent's; only the codebook may be a new one.
        planned = _plan_from_parent(conn, run, parent, before.codebook, limit, progress)
        record, plan = replace(planned.record, captioner=captioner), planned.plan
        plan.save(run.folder)
        own = before.sigma.profile
        # Shape and sizes are those of the weights; versions before this one recorded no others.
        before.sigma.profile = replace(run.profile, shape=own.shape, tiny=own.tiny)
        checkpoint = replace(before, codebook=planned.codebook)
        copy_base(services.checkpoints / parent.folder / BASE, run.folder / BASE)
    # Images may be deleted at any moment: keep those that both store and parent still have.
    wanted = plan.image_keys[plan.learnt]
    images = from_store(conn, services.store, wanted, checkpoint.sigma.profile)
    stored = embeddings_of(conn, parent.id, images.image_keys)
    images = images.select(stored.present)
    plan = plan.without_missing(wanted, images.image_keys)
    images = with_captions(images, captioner, run.folder, progress)
    trained_on = len(images) if run.mode == "refresh" else len(plan)
    record = replace(clock.add_to(record, "prepare"), images=trained_on)
    return PreparedTraining(
        record=_keep_codebook(run, checkpoint, record),
        checkpoint=checkpoint,
        images=images,
        plan=plan,
        embeddings=stored.embeddings[stored.present],
        teacher=_teacher_loader(run, checkpoint, images, stored.embeddings[stored.present]),
    )


def _announce_encoder(
    services: Services, conn: Connection, run: TrainingRun, opened: OpenedRun
) -> int:
    """Record what the run's model and encoder read; pixels of the longer side pictures now keep.

    From here on intake, in another process, stores arrivals as large as the larger of both reads
    them.
    """
    asked = services.settings.picture_px
    before = picture_px(asked, generations.largest_encoder(conn))
    side = opened.side_px
    if side is None:
        return before
    record = replace(run.record, encoder_px=side)
    generations.update(conn, run.generation, training=record)
    if asked is not None and asked < side:
        log.warning(
            "SIGMA_PICTURE_PX shrinks pictures below what model or encoder reads; leave it out",
            picture_px=asked,
            encoder_px=side,
        )
    elif before < side and newest_image(conn):
        log.warning(
            "pictures stored before this training are smaller than its model or encoder reads; to "
            "have them in full, delete them and ingest them anew",
            picture_px=before,
            encoder_px=side,
        )
    return picture_px(asked, generations.largest_encoder(conn))


def _keep_codebook(
    run: TrainingRun, checkpoint: Checkpoint, record: TrainingRecord
) -> TrainingRecord:
    """Save the first checkpoint of a new run; returns the record that names the codebook."""
    if run.has_codebook:
        return record
    # The plan was saved before: a record that names the codebook promises both.
    record = record.with_stage(CODEBOOK)
    save_checkpoint(replace(checkpoint, record=record), run.folder)
    return record


def _images_of_full_run(
    services: Services,
    conn: Connection,
    run: TrainingRun,
    longest_side: int,
    progress: Progress,
) -> TrainingImages:
    store = services.store
    if run.entries is not None:
        return from_manifest(
            conn, store, services.limits, run.entries, run.profile, progress, longest_side
        )
    if run.has_codebook:
        # The images of the plan, not a new sample: more may have come since.
        keys = IdentifierPlan.load(run.folder).image_keys
    else:
        keys = trainable_keys(conn, services.settings.training_images, run.request.seed)
    images = from_store(conn, store, keys, run.profile)
    if not len(images):
        raise UsageError(
            "the store holds no image, and there is nothing to learn from; ingest some first"
        )
    return images


@dataclass(frozen=True, slots=True)
class _PlanFromParent:
    record: TrainingRecord
    codebook: Codebook
    plan: IdentifierPlan


def _plan_from_parent(
    conn: Connection,
    run: TrainingRun,
    parent: Generation,
    codebook: Codebook,
    limit: int,
    progress: Progress,
) -> _PlanFromParent:
    """The plan of a refresh or a re-clustering; `limit` is how many images a refresh may learn."""
    indexed = indexed_images(conn, parent.id)
    if not len(indexed.image_keys):
        raise UsageError(
            f"generation {parent.id} holds no image, so there is nothing to start a {run.mode} "
            "with; ingest some first"
        )
    record = run.record
    leaves = indexed.leaves
    seed = run.request.seed
    if run.mode == "recluster" or run.request.recluster:
        reclustered = recluster_generation(conn, parent.id, indexed, codebook, seed, progress)
        codebook = reclustered.codebook
        leaves = reclustered.leaves
        record = replace(record, recluster=reclustered.record)
    if run.mode == "recluster":
        plan = plan_recluster(indexed, leaves, parent.shape)
    else:
        plan = plan_refresh(
            indexed, leaves, parent.shape, replay=run.profile.replay, limit=limit, seed=seed
        )
    return _PlanFromParent(record, codebook, plan)


def _teacher_loader(
    run: TrainingRun, checkpoint: Checkpoint, images: TrainingImages, embeddings: HalfArray
) -> Callable[[], Teacher]:
    encoder = checkpoint.encoder
    if isinstance(encoder, KeptEncoder) and checkpoint.sigma.profile.tiny is not None:
        vectors = embeddings.astype(np.float32)
        seed = run.request.seed
        return lambda: EncoderTeacher.calibrated(encoder, vectors, images.captions, seed)
    return lambda: teacher_of(run.folder / BASE, checkpoint.sigma.profile, encoder)
