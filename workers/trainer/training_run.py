"""The training run: which generation a request makes, and where an interrupted one goes on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg

from model.identifiers.codebook import CodebookConfig
from model.network.checkpoint import load_record, recover_checkpoint
from model.network.checkpoint_description import ABOUT
from model.network.profile_document import profile_document, recorded_profile
from model.network.profiles import Profile, profile
from schemas.errors import RefuseToStartError, RetryLaterError, UsageError
from schemas.generation_config import GenerationConfig
from schemas.records import ManifestEntry
from schemas.training_record import CODEBOOK, TrainingMode, TrainingRecord
from stream.lease import Lease, give_up, kept, take
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.training_data import TRAINER, untrained_images
from workers.trainer.request import TrainRequest
from workers.trainer.training_images import manifest_fingerprint, trainable

# The profile of a request without one; also that of generations of versions that recorded none.
DEFAULT_PROFILE = "tiny"


# Fields of a profile that a model which is trained further keeps, whatever profile is named for it.
_KEPT_FIELDS = (
    "tiny",
    "model",
    "min_pixels",
    "max_pixels",
    "max_text_tokens",
    "joint_tokens",
    "query_head",
    "embedding_width",
)


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A training under way, as it was when this process took it up."""

    generation: int
    folder: Path
    """Where its checkpoint is written."""
    record: TrainingRecord
    """What it was asked for and what is finished: empty of stages for a new run."""
    mode: TrainingMode
    profile: Profile
    parent: Generation | None
    """The generation whose weights it begins with; None for a full training."""
    request: TrainRequest
    """The request, with the seed of the run that is resumed."""
    entries: Sequence[ManifestEntry] | None
    """The entries of the manifest to train on; None for the images in the store."""

    @property
    def has_codebook(self) -> bool:
        """Whether codebook and identifier plan are in its folder already."""
        return CODEBOOK in self.record.stages


@contextmanager
def sole_trainer(conn: Connection, connect: Callable[[], Connection]) -> Iterator[Lease]:
    """Hold the right to train while the block runs; `RetryLaterError` if another process has it.

    `conn` must be the connection that the training writes by: it is ended when another process has
    taken the right, because this one hung. `connect` opens another one, to renew the right.
    """
    lease = take(conn, TRAINER)
    if lease is None:
        raise RetryLaterError(
            "another training runs on this database, and only one can run at a time; wait for its "
            "end or stop it"
        )
    try:
        with kept(connect, lease):
            yield lease
    finally:
        # A broken connection has released it already.
        with suppress(psycopg.Error):
            give_up(conn, [lease])


def begin_run(
    conn: Connection,
    checkpoints: Path,
    entries: Sequence[ManifestEntry] | None,
    request: TrainRequest,
) -> TrainingRun:
    """The run of a new generation, or of the newest unfinished one when the request resumes.

    `checkpoints` is the folder of all generations' checkpoints. `UsageError` or
    `RefuseToStartError` when the request cannot be met.
    """
    chosen = None if entries is None else trainable(entries)
    if request.resume:
        return _resume_run(conn, checkpoints, chosen, request)
    return _new_run(conn, checkpoints, chosen, request)


def _new_run(
    conn: Connection,
    checkpoints: Path,
    entries: Sequence[ManifestEntry] | None,
    request: TrainRequest,
) -> TrainingRun:
    mode = request.mode or "full"
    parent = None if mode == "full" else _live_parent(conn, mode)
    chosen = choose_profile(request.profile, parent)
    if request.expect is not None:
        chosen = replace(chosen, shape=chosen.shape.grown_for(request.expect))
    if parent is None:
        # `UsageError` where id4's codes do not fit its subspaces, before any image is read.
        _ = CodebookConfig(chosen.shape, chosen.subspaces).codewords
    if parent is not None and mode == "refresh" and not request.recluster:
        _require_new_images(conn, parent)
    record = first_record(request, parent, chosen, entries)
    config = GenerationConfig(training=record)
    generation = generations.create_generation(conn, chosen.shape, config=config)
    # The row comes first: it gives the number that names the folder.
    folder = _open_folder(checkpoints, generation)
    return TrainingRun(generation, folder, record, mode, chosen, parent, request, entries)


def _resume_run(
    conn: Connection,
    checkpoints: Path,
    entries: Sequence[ManifestEntry] | None,
    request: TrainRequest,
) -> TrainingRun:
    unfinished = generations.unfinished(conn)
    if unfinished is None:
        raise UsageError(
            "no generation is unfinished, so there is nothing to resume; run without --resume"
        )
    begun = unfinished.config.training
    require_same_training(unfinished, request.mode, entries)
    parent = None if begun.parent is None else generations.get(conn, begun.parent)
    if parent is not None and parent.state == "failed":
        raise UsageError(
            f"generation {unfinished.id} was begun from generation {parent.id}, which has failed "
            "since; start anew without --resume"
        )
    folder = _open_folder(checkpoints, unfinished.id)
    # A save that was cut short is finished before its record is read.
    recover_checkpoint(folder)
    has_checkpoint = (folder / ABOUT).is_file()
    resumed = resumed_request(request, begun)
    chosen = replace(choose_profile(resumed.profile, parent), shape=unfinished.shape)
    return TrainingRun(
        generation=unfinished.id,
        folder=folder,
        record=load_record(folder) if has_checkpoint else replace(begun, stages=()),
        mode=begun.mode_or_full,
        profile=chosen,
        parent=parent,
        request=resumed,
        entries=entries,
    )


def first_record(
    request: TrainRequest,
    parent: Generation | None,
    chosen: Profile,
    entries: Sequence[ManifestEntry] | None,
) -> TrainingRecord:
    """The record of a run that has done nothing yet."""
    return TrainingRecord(
        mode=request.mode or "full",
        parent=None if parent is None else parent.id,
        profile=chosen.name,
        profile_numbers=profile_document(chosen),
        seed=request.seed,
        # The others go on with the encoder of their parent.
        encoder_source=request.encoder if parent is None else parent.config.training.encoder_source,
        captioner=request.captioner or (parent.config.training.captioner if parent else None),
        reads=None if parent is None else parent.config.training.reads,
        # Encoder and queries of a re-clustering are the same; a refresh calibrates anew.
        relevance=None if parent is None else parent.config.training.relevance,
        encoder_px=None if parent is None else parent.config.training.encoder_px,
        corpus="store" if entries is None else "manifest",
        reclustered=request.mode == "recluster" or request.recluster,
        manifest=None if entries is None else manifest_fingerprint(entries),
    )


def require_same_training(
    unfinished: Generation, mode: TrainingMode | None, entries: Sequence[ManifestEntry] | None
) -> None:
    """`UsageError` when a request to resume names another mode or other images than were begun."""
    begun = unfinished.config.training
    if mode not in (None, begun.mode_or_full):
        raise UsageError(
            f"generation {unfinished.id} is unfinished in mode {begun.mode_or_full}, not {mode}; "
            "resume it with --resume alone, or start anew"
        )
    # Versions that recorded no corpus trained from manifests only.
    from_store = begun.corpus == "store"
    if from_store and entries is not None:
        raise UsageError(
            f"generation {unfinished.id} is trained from the store; resume without --manifest"
        )
    if not from_store and entries is None:
        raise UsageError(
            f"generation {unfinished.id} is trained from a manifest; resume with its --manifest"
        )
    if entries is None or begun.manifest is None:
        return
    if begun.manifest != manifest_fingerprint(entries):
        raise UsageError(
            f"generation {unfinished.id} was begun with other images or captions; resume with the "
            "same manifest or start anew"
        )


def resumed_request(request: TrainRequest, begun: TrainingRecord) -> TrainRequest:
    """The request to resume, with the run's seed and encoder, and its profile if it names none."""
    return replace(
        request,
        seed=request.seed if begun.seed is None else begun.seed,
        encoder=begun.encoder_source,
        captioner=begun.captioner,
        recluster=bool(begun.reclustered),
        profile=request.profile or profile_of_record(begun),
    )


def choose_profile(requested: Profile | None, parent: Generation | None) -> Profile:
    """The profile to train with: the requested one, or the parent's; with the parent's shape.

    `UsageError` when the requested one does not fit the parent's identifiers.
    """
    if parent is None:
        return requested or profile(DEFAULT_PROFILE)
    recorded = parent.config.training.profile
    if requested is None:
        return replace(profile_of_record(parent.config.training), shape=parent.shape)
    if requested.name != (recorded or requested.name):
        raise UsageError(
            f"the profile must be that of generation {parent.id}, {recorded}, got "
            f"{requested.name}; leave --profile out"
        )
    # The parent's shape may have been grown for the images that it is to hold; and weights that are
    # there stay of their own sizes.
    own = profile_of_record(parent.config.training)
    kept = {name: getattr(own, name) for name in _KEPT_FIELDS}
    return replace(requested, **(kept | {"shape": parent.shape}))


def profile_of_record(record: TrainingRecord) -> Profile:
    """The profile that a generation was trained with, its own numbers included."""
    return recorded_profile(record.profile or DEFAULT_PROFILE, record.profile_numbers)


def _live_parent(conn: Connection, mode: TrainingMode) -> Generation:
    live = generations.live(conn)
    if live is None:
        raise RefuseToStartError(
            f"no generation is live, and a {mode} starts from the live one; train it first with: "
            "sigma train --from-store"
        )
    return live


def _require_new_images(conn: Connection, parent: Generation) -> None:
    if not untrained_images(conn, parent.id):
        raise UsageError(
            f"generation {parent.id} was trained on every image, so there is nothing to refresh "
            "it with; ingest images first"
        )


def _open_folder(checkpoints: Path, generation: int) -> Path:
    folder = checkpoints / f"g{generation}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
