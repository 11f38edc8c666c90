"""The training run: what was asked for, which generation it makes, and where an interrupted one goes on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from model.network.base import SHIPPED
from model.network.checkpoint import ABOUT, load_record, recover_checkpoint
from model.network.profiles import Profile, profile
from model.training.stage_gates import Gates
from schemas.errors import RefuseToStartError, RetryLaterError, UsageError
from schemas.generation_config import GenerationConfig
from schemas.records import ManifestEntry
from schemas.training_record import CODEBOOK, TrainingMode, TrainingRecord
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.training_data import claim_trainer, release_trainer, untrained_images
from workers.runtime.services import Services
from workers.trainer.material import digest, trainable


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train. `until` is the last stage to run; `resume` goes on with the newest unfinished generation, in its mode and
    with its seed. `recluster` gives a refresh a new codebook too. Without a profile, that of the parent or of the resumed one."""

    profile: Profile | None = None
    until: str = "align"
    resume: bool = False
    seed: int = 0
    base: Path = SHIPPED
    adapt: str = "auto"
    mode: TrainingMode | None = None
    recluster: bool = False
    gates: Gates = Gates()


@dataclass(frozen=True, slots=True)
class Run:
    """A training under way: its generation, the folder of its checkpoint and what that says so far (`about`, which grows).

    `entries` are those of the manifest to train on, None when the store is what to train on.
    """

    generation: int
    folder: Path
    about: dict[str, Any]
    mode: TrainingMode
    profile: Profile
    parent: Generation | None
    request: TrainRequest
    entries: list[ManifestEntry] | None

    @property
    def has_codebook(self) -> bool:
        """Whether codebook and plan are there already."""
        return CODEBOOK in self.about["stages"]


@contextmanager
def sole_trainer(conn: Connection) -> Iterator[None]:
    """Hold the right to train, for as long as the block runs; refused while another process holds it."""
    if not claim_trainer(conn):
        raise RetryLaterError(
            "another training runs on this database, and there can be one at a time; wait for its end or stop it"
        )
    try:
        yield
    finally:
        with suppress(psycopg.Error):
            release_trainer(conn)


def begin(
    services: Services,
    conn: Connection,
    entries: Sequence[ManifestEntry] | None,
    request: TrainRequest,
) -> Run:
    """The run that was asked for: a new generation, or the newest unfinished one. `UsageError` when it cannot be."""
    chosen = None if entries is None else trainable(entries)
    return (
        _resumed(services, conn, chosen, request)
        if request.resume
        else _new(services, conn, chosen, request)
    )


def _new(
    services: Services, conn: Connection, entries: list[ManifestEntry] | None, request: TrainRequest
) -> Run:
    mode = request.mode or "full"
    parent = None if mode == "full" else _parent(conn, mode)
    chosen = _profile(request, parent)
    if (
        parent is not None
        and mode == "refresh"
        and not request.recluster
        and not untrained_images(conn, parent.id)
    ):
        raise UsageError(
            f"generation {parent.id} was trained on every image with captions, so there is nothing to refresh it with"
        )
    record = TrainingRecord(
        mode=mode,
        parent=None if parent is None else parent.id,
        profile=chosen.name,
        seed=request.seed,
        corpus="store" if entries is None else "manifest",
        reclustered=mode == "recluster" or request.recluster,
        manifest=None if entries is None else digest(entries),
    )
    config = GenerationConfig(training=record)
    generation = generations.create_generation(conn, chosen.shape, config=config)
    folder = services.checkpoints / f"g{generation}"
    folder.mkdir(parents=True, exist_ok=True)
    return Run(generation, folder, record.to_json(), mode, chosen, parent, request, entries)


def _resumed(
    services: Services, conn: Connection, entries: list[ManifestEntry] | None, request: TrainRequest
) -> Run:
    found = generations.unfinished(conn)
    if found is None:
        raise UsageError(
            "no generation is unfinished, so there is nothing to resume; run without --resume"
        )
    begun = found.config.training
    mode = begun.mode_or_full
    if request.mode not in (None, mode):
        raise UsageError(
            f"generation {found.id} is unfinished in mode {mode}, not {request.mode}; resume it with --resume alone, or start anew"
        )
    if (entries is None) != (begun.corpus == "store"):
        cure = "resume with its --manifest" if entries is None else "resume without --manifest"
        raise UsageError(
            f"generation {found.id} is trained from {'a manifest' if entries is None else 'the store'}; {cure}"
        )
    if entries is not None and begun.manifest not in (None, digest(entries)):
        raise UsageError(
            f"generation {found.id} was begun with other images or captions; resume with the same manifest or start anew"
        )
    parent = None if begun.parent is None else generations.get(conn, begun.parent)
    if parent is not None and parent.state == "failed":
        raise UsageError(
            f"generation {found.id} was begun from generation {parent.id}, which is failed by now; start anew without --resume"
        )
    folder = services.checkpoints / f"g{found.id}"
    folder.mkdir(parents=True, exist_ok=True)
    recover_checkpoint(folder)
    record = load_record(folder) if (folder / ABOUT).is_file() else replace(begun, stages=())
    settled = replace(
        request,
        seed=request.seed if begun.seed is None else begun.seed,
        recluster=bool(begun.reclustered),
    )
    settled = (
        settled if request.profile else replace(settled, profile=profile(begun.profile or "tiny"))
    )
    return Run(
        found.id,
        folder,
        record.to_json(),
        mode,
        _profile(settled, parent),
        parent,
        settled,
        entries,
    )


def _parent(conn: Connection, mode: TrainingMode) -> Generation:
    live = generations.live(conn)
    if live is None:
        raise RefuseToStartError(
            f"no generation is live, and a {mode} starts from one; train it first with: sigma train --from-store"
        )
    return live


def _profile(request: TrainRequest, parent: Generation | None) -> Profile:
    if parent is None:
        return request.profile or profile("tiny")
    recorded = parent.config.training.profile
    chosen = request.profile or profile(recorded or "tiny")
    known = recorded or chosen.name
    if request.profile is not None and (known != chosen.name or parent.shape != chosen.shape):
        raise UsageError(
            f"generation {parent.id} has profile {known} and {parent.shape.codes}+{parent.shape.suffixes} codes, {chosen.name} has others; "
            "leave --profile out"
        )
    return replace(chosen, shape=parent.shape)
