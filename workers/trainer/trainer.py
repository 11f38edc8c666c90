"""The trainer: from a request to a generation that answers, or waits for its gate. One at a time.

docs/training-walkthrough.md follows `train` function by function.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import numpy as np
import structlog

from model.identifiers.quality import IdentifierQuality, identifier_quality
from model.network.profiles import Stage
from model.progress import Progress
from model.training.stage_gates import StageProbe
from model.training.training_set import TrainingSet
from schemas.errors import RefuseToStartError, RetryLaterError, UsageError, WorkFailedError
from schemas.records import ManifestEntry
from schemas.retrieval_settings import RetrievalSettings
from schemas.training_record import StageEvaluation, TrainingRecord
from stream.images.store import ImageStore
from stream.lease import Lease, require_renewal
from workers.generations.model_assigner import ModelAssigner
from workers.generations.switching import publish
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.runtime.services import Services
from workers.trainer.captioning import forget_captions
from workers.trainer.initial_load import InitialLoader
from workers.trainer.kept_vectors import forget_vectors
from workers.trainer.preparation import PreparedTraining, prepare
from workers.trainer.request import TrainRequest
from workers.trainer.seeding import RejectedEntry
from workers.trainer.stage_runner import announce_end
from workers.trainer.step_clock import StepClock
from workers.trainer.training_images import TrainingImages
from workers.trainer.training_plan import StagesResult, TrainingPlan, run_stages
from workers.trainer.training_run import TrainingRun, begin_run, sole_trainer
from workers.trainer.vector_learning import vectors_to_read

log = structlog.get_logger()

# Keys of the training record among the figures of `sigma train`; null where not recorded.
_REPORTED = (
    "mode",
    "parent",
    "evaluations",
    "relevance",
    "recluster",
    "seconds",
    "cpu_seconds",
)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A training that ended: its generation, in which state it is, and what was recorded."""

    generation: int
    state: str
    """`building` when further stages are to run, else `shadow` or `live`."""
    record: TrainingRecord
    rejected: tuple[RejectedEntry, ...] = ()
    """Entries of the manifest that were left out."""
    identifiers: IdentifierQuality | None = None
    """How well the identifiers divide the training images; None when no image was trained on."""

    @property
    def images(self) -> int:
        """How many images were trained on, or all images where only the codebook changed."""
        return self.record.images or 0

    def figures(self) -> dict[str, object]:
        """What was recorded, as printed by `sigma train --json` and `sigma demo --json`."""
        record = self.record.to_json()
        figures: dict[str, object] = {name: record.get(name) for name in _REPORTED}
        if self.identifiers is not None:
            figures["identifiers"] = self.identifiers.to_dict()
        return figures

    def to_json(self) -> dict[str, object]:
        """The document of `sigma train --json`."""
        return {
            "generation": self.generation,
            "state": self.state,
            "images": self.images,
            "rejected": [asdict(entry) for entry in self.rejected],
            "figures": self.figures(),
        }


def train(
    services: Services,
    entries: Sequence[ManifestEntry] | None,
    request: TrainRequest,
    progress: Progress,
) -> TrainResult:
    """Run the stages that are to do; after the last one, load the trie and publish the generation.

    `entries` None trains on the images in the store. The first generation goes live at once, later
    ones stay in shadow until they are promoted. `WorkFailedError` when a stage does not pass its
    gate: the generation is failed then.
    """
    retrieval = services.settings.retrieval
    with (
        services.connect("trainer") as conn,
        sole_trainer(conn, lambda: services.connect("lease")) as right,
    ):
        run = begin_run(conn, services.checkpoints, entries, request)
        prepared = _prepare_or_fail(services, conn, run, progress)
        _describe(conn, run, prepared, prepared.record)
        trained = _train_stages(conn, right, run, prepared, retrieval, progress)
        if trained.failures:
            raise _gate_failure(conn, run, trained)
        record = trained.record
        state = "building"
        if request.publishes or run.mode == "recluster":
            clock = StepClock.start()
            state = _load_and_publish(conn, services.store, run, prepared, retrieval, progress)
            record = clock.add_to(record, "load")
        _describe(conn, run, prepared, record)
    return TrainResult(
        run.generation, state, record, prepared.images.rejected, _identifier_quality(prepared)
    )


def _prepare_or_fail(
    services: Services, conn: Connection, run: TrainingRun, progress: Progress
) -> PreparedTraining:
    """Prepare the run; a new generation whose images or base cannot be used is failed."""
    try:
        return prepare(services, conn, run, progress)
    except (UsageError, RefuseToStartError) as error:
        # One that has its codebook can still be resumed, say with the images restored.
        if not run.has_codebook:
            _fail_generation(conn, run, [str(error)])
        raise


def _train_stages(
    conn: Connection,
    right: Lease,
    run: TrainingRun,
    prepared: PreparedTraining,
    retrieval: RetrievalSettings,
    progress: Progress,
) -> StagesResult:
    plan = _training_plan(conn, right, run, prepared, retrieval)
    result = run_stages(plan, prepared.record, run.request.until, progress)
    # Before the load, which the other ranks take no part in.
    announce_end()
    return result


def _training_plan(
    conn: Connection,
    right: Lease,
    run: TrainingRun,
    prepared: PreparedTraining,
    retrieval: RetrievalSettings,
) -> TrainingPlan:
    images = prepared.images
    gates = run.request.gates
    checkpoint = prepared.checkpoint
    identifiers = prepared.plan.identifiers(images.image_keys, checkpoint.sigma.profile.shape)
    data = TrainingSet(images.pictures, identifiers, images.captions)
    probe = StageProbe(data, images.queries, prepared.embeddings, checkpoint.encoder, retrieval)

    def report(record: TrainingRecord) -> None:
        _describe(conn, run, prepared, record)

    return TrainingPlan(
        checkpoint=checkpoint,
        folder=run.folder,
        stages=stages_of(run, images),
        images=images,
        probe=probe,
        teacher=prepared.teacher,
        parent_evaluations=inherited_evaluations(run.parent, generations.generations(conn)),
        gates=replace(gates, wins=min(gates.wins, run.profile.wins)),
        views=run.profile.views,
        vectors=vectors_to_read(checkpoint, prepared.embeddings, images),
        seed=run.request.seed,
        resume=run.request.resume,
        before_save=lambda: require_renewal(conn, [right]),
        report=report,
    )


def stages_of(run: TrainingRun, images: TrainingImages) -> tuple[Stage, ...]:
    """The stages of a run's mode; a re-clustering trains nothing.

    Without a caption there is nothing to comprehend.
    """
    # Every image of a plan may have been deleted meanwhile.
    if run.mode == "recluster" or not len(images):
        return ()
    stages = run.profile.stages if run.mode == "full" else run.profile.refresh
    if images.captioned.any():
        return stages
    log.info("stage skipped", stage="comprehend", reason="no image has a caption")
    return tuple(stage for stage in stages if stage.name != "comprehend")


def inherited_evaluations(
    parent: Generation | None, every: Sequence[Generation]
) -> Mapping[str, StageEvaluation]:
    """What the parent's stages were measured at, or those of its nearest ancestor that has any.

    A re-clustering evaluates no stage. `every` are all generations.
    """
    records = {generation.id: generation.config.training for generation in every}
    ancestor = None if parent is None else parent.id
    while ancestor is not None and ancestor in records:
        record = records[ancestor]
        if record.evaluations:
            return record.evaluations
        ancestor = record.parent
    return {}


def _load_and_publish(
    conn: Connection,
    store: ImageStore,
    run: TrainingRun,
    prepared: PreparedTraining,
    retrieval: RetrievalSettings,
    progress: Progress,
) -> str:
    """Load the generation's postings and let it receive arrivals.

    Returns its state.
    """
    checkpoint = prepared.checkpoint
    loader = InitialLoader(conn, run.generation, checkpoint.sigma, store, retrieval.postings)
    if run.parent is None:
        loader.load(prepared.plan, prepared.embeddings, progress)
    else:
        # A refresh changed the weights, so every posting is generated anew.
        same_model = run.mode == "recluster"
        loader.load_from_parent(
            prepared.plan, run.parent.id, same_model=same_model, progress=progress
        )
    assigner = ModelAssigner(checkpoint.sigma, checkpoint.encoder, retrieval, checkpoint.codebook)
    state = publish(conn, run.generation, store, assigner, progress)
    forget_vectors(run.folder)
    forget_captions(run.folder)
    return state


def _describe(
    conn: Connection, run: TrainingRun, prepared: PreparedTraining, record: TrainingRecord
) -> None:
    """Copy to the generation's row what is recorded so far."""
    generations.update(
        conn,
        run.generation,
        codebook_version=prepared.checkpoint.codebook.version,
        checkpoint_path=run.folder.name,
        training=record,
    )


def _gate_failure(conn: Connection, run: TrainingRun, trained: StagesResult) -> WorkFailedError:
    """Fail the generation; the error to raise."""
    _fail_generation(conn, run, trained.failures)
    return WorkFailedError(
        f"generation {run.generation} did not pass a gate and is failed: "
        f"{'; '.join(trained.failures)}; other generations are untouched, look at its images, "
        "captions and stage numbers before training again"
    )


def _fail_generation(conn: Connection, run: TrainingRun, reasons: Sequence[str]) -> None:
    """Record why a generation failed, and delete its tables."""
    generations.update(conn, run.generation, failure=reasons)
    generations.set_state(conn, run.generation, "failed")
    # While another process reads its tables they stay; `prune` deletes them later.
    with suppress(RetryLaterError):
        generations.drop(conn, run.generation)


def _identifier_quality(prepared: PreparedTraining) -> IdentifierQuality | None:
    images = prepared.images
    if not len(images):
        return None
    checkpoint = prepared.checkpoint
    shape = checkpoint.sigma.profile.shape
    codes = prepared.plan.identifiers(images.image_keys, shape)[:, :4]
    embeddings = prepared.embeddings.astype(np.float32)
    return identifier_quality(codes, embeddings, checkpoint.codebook)
