"""The trainer: from a manifest or the store to a generation that answers. One at a time, in a process of its own."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.identifiers.quality import identifier_quality
from model.progress import Progress
from model.training.stage_gates import StageProbe
from model.training.training_set import TrainingSet
from schemas.errors import RefuseToStartError, RetryLaterError, UsageError, WorkFailedError
from schemas.records import ManifestEntry
from schemas.settings import RetrievalSettings
from schemas.training_record import TrainingRecord
from workers.generations.model_assigner import ModelAssigner
from workers.generations.switching import publish
from workers.repository import generations
from workers.repository.connection import Connection
from workers.runtime.services import Services
from workers.trainer.initial_load import InitialLoader
from workers.trainer.run import Run, TrainRequest, begin, sole_trainer
from workers.trainer.stage_runner import STAGES, Course, clocked, dismiss, run_course
from workers.trainer.start import Start, start

__all__ = ["TrainRequest", "TrainResult", "train"]

_BATCH = 64


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came out: the generation, its state, how many images it was trained on, and figures of each step."""

    generation: int
    state: str
    images: int
    rejected: tuple[dict[str, str], ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


def train(
    services: Services,
    entries: Sequence[ManifestEntry] | None,
    request: TrainRequest,
    progress: Progress,
) -> TrainResult:
    """Run the stages that are still to do and, after the last one, load the trie and put the generation on its way.

    `entries` None trains on what is in the store. The first generation goes live at once; later ones stay in shadow until
    they are promoted. A stage that does not pass its gate makes the generation a failed one: `WorkFailedError`.
    """
    with services.connect("trainer") as conn, sole_trainer(conn):
        run = begin(services, conn, entries, request)
        begun = _started(services, conn, run, progress)
        _tell(conn, run, begun)
        if wrong := _learn(services.settings.retrieval, conn, run, begun, progress):
            _fail(conn, run, wrong)
        state = "building"
        if request.until == STAGES[-1] or run.mode == "recluster":
            with clocked(run.about, "load"):
                state = _publish(services, conn, run, begun, progress)
        _tell(conn, run, begun)
    return TrainResult(
        run.generation, state, run.about["images"], begun.material.rejected, _figures(run, begun)
    )


def _started(services: Services, conn: Connection, run: Run, progress: Progress) -> Start:
    """The start; when images or checkpoints turn out to be of no use, no generation is left unfinished."""
    try:
        return start(services, conn, run, progress)
    except (UsageError, RefuseToStartError) as error:
        if not run.has_codebook:
            _end(conn, run, [str(error)])
        raise


def _learn(
    retrieval: RetrievalSettings, conn: Connection, run: Run, begun: Start, progress: Progress
) -> list[str]:
    """All stages; why the last one did not pass its gate."""
    material, shape = begun.material, begun.checkpoint.sigma.profile.shape
    stages = {"full": run.profile.stages, "refresh": run.profile.refresh, "recluster": ()}[run.mode]
    data = TrainingSet(
        material.pictures, begun.plan.identifiers(material.image_keys, shape), material.captions
    )
    course = Course(
        checkpoint=begun.checkpoint,
        about=run.about,
        folder=run.folder,
        stages=stages if len(material) else (),
        material=material,
        probe=StageProbe(
            data, material.queries, begun.embeddings, begun.checkpoint.encoder, retrieval
        ),
        teacher=begun.teacher,
        parent=_parent_evaluations(conn, run),
        gates=run.request.gates,
        views=run.profile.views,
        seed=run.request.seed,
        resume=run.request.resume,
        done=lambda: _tell(conn, run, begun),
    )
    wrong = run_course(course, run.request.until, progress)
    dismiss()
    return wrong


def _publish(
    services: Services, conn: Connection, run: Run, begun: Start, progress: Progress
) -> str:
    checkpoint = begun.checkpoint
    loader = InitialLoader(services, conn, run.generation, checkpoint.sigma)
    if run.parent is None:
        loader.load(begun.plan, begun.embeddings, progress)
    else:
        loader.load_after(
            begun.plan, run.parent.id, same_model=run.mode == "recluster", progress=progress
        )
    assigner = ModelAssigner(
        checkpoint.sigma, checkpoint.encoder, services.settings.retrieval.postings
    )
    return publish(conn, run.generation, services.store, assigner, progress)


def _tell(conn: Connection, run: Run, begun: Start) -> None:
    version = begun.checkpoint.codebook.version
    generations.update(
        conn,
        run.generation,
        codebook_version=version,
        checkpoint_path=run.folder.name,
        training=TrainingRecord.from_json(run.about),
    )


def _fail(conn: Connection, run: Run, wrong: Sequence[str]) -> None:
    _end(conn, run, wrong)
    raise WorkFailedError(
        f"generation {run.generation} did not pass a gate and is failed: {'; '.join(wrong)}; others are untouched, look at its images, "
        "captions and stage numbers before training again"
    )


def _end(conn: Connection, run: Run, why: Sequence[str]) -> None:
    """The generation is failed and its tables are freed; its row tells why."""
    generations.update(conn, run.generation, failure=why)
    generations.set_state(conn, run.generation, "failed")
    with suppress(RetryLaterError):
        # Somebody reads its tables: they are pruned later.
        generations.drop(conn, run.generation)


def _parent_evaluations(conn: Connection, run: Run) -> dict[str, dict[str, float]]:
    """The evaluations of the nearest generation before this one that has any: re-clustering alone evaluates no stage."""
    known = {found.id: found.config.training for found in generations.generations(conn)}
    at = None if run.parent is None else run.parent.id
    while at is not None and at in known:
        evaluations = known[at].evaluations
        if evaluations:
            return {stage: dict(evaluation.figures) for stage, evaluation in evaluations.items()}
        at = known[at].parent
    return {}


def _figures(run: Run, begun: Start) -> dict[str, Any]:
    figures: dict[str, Any] = {
        name: run.about.get(name)
        for name in ("mode", "parent", "evaluations", "recluster", "seconds", "cpu_seconds")
    }
    material, checkpoint = begun.material, begun.checkpoint
    if len(material):
        codes = begun.plan.identifiers(material.image_keys, checkpoint.sigma.profile.shape)[:, :4]
        quality = identifier_quality(
            codes, begun.embeddings.astype(np.float32), checkpoint.codebook
        )
        figures["identifiers"] = quality.to_dict()
    return figures
