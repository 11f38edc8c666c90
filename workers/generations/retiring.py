"""Retiring: generations that are not needed any more lose tables and folder; their rows stay."""

import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from schemas.errors import RetryLaterError, UsageError
from schemas.events import now
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation

# How long a generation that was live, or that failed, is kept in addition to the fallback.
KEPT = timedelta(days=7)

_STATES_WITH_FOLDER = ("building", "shadow", "live", "retired")

log = structlog.get_logger()


def drop(conn: Connection, checkpoints: Path, generation: int, *, force: bool = False) -> None:
    """Delete tables and folder of a candidate, a retired or a failed generation.

    `checkpoints` is the folder of all generations' checkpoints. `UsageError` when the generation is
    needed (see `reason_to_keep`), `RetryLaterError` while another process reads its tables.
    """
    wanted = generations.get(conn, generation)
    reason = reason_to_keep(wanted, generations.generations(conn), force=force)
    if reason is not None:
        raise UsageError(reason)
    _delete(conn, checkpoints, wanted)


def prune(conn: Connection, checkpoints: Path) -> list[int]:
    """Delete what `prunable` names, unless another process reads it; returns the numbers."""
    every = generations.generations(conn)
    deleted = []
    for generation in prunable(every, now()):
        if generation.dropped and not (checkpoints / generation.folder).exists():
            continue
        try:
            _delete(conn, checkpoints, generation)
        except RetryLaterError as error:
            log.warning(
                "generation not dropped: its tables are being read",
                generation=generation.id,
                reason=str(error),
            )
            continue
        deleted.append(generation.id)
    return deleted


def reason_to_keep(wanted: Generation, every: Sequence[Generation], *, force: bool) -> str | None:
    """Why a generation cannot be dropped, and what to do; None when it can.

    It is needed while it is live, being trained, or the parent of a training under way, and,
    without `force`, while it is the fallback. `every` are all generations.
    """
    if wanted.state == "live":
        return (
            f"generation {wanted.id} is live; make another one live first: "
            "sigma generations promote G"
        )
    if wanted.state == "building":
        return f"generation {wanted.id} is being trained; finish it first: sigma train --resume"
    child = training_from(wanted, every)
    if child is not None:
        return (
            f"generation {wanted.id} is the parent that generation {child} is trained from; "
            "finish that first: sigma train --resume"
        )
    fallback = generations.find_fallback(every)
    if fallback is not None and fallback.id == wanted.id and not force:
        return (
            f"generation {wanted.id} is the fallback generation, which a rollback needs; "
            f"to drop it nevertheless: sigma generations drop {wanted.id} --force"
        )
    return None


def prunable(every: Sequence[Generation], moment: datetime) -> list[Generation]:
    """Of all generations, those that ended longer than `KEPT` before `moment` and are not needed.

    The fallback and the parent of a training under way are needed, however old they are.
    """
    fallback = generations.find_fallback(every)
    return [
        generation
        for generation in every
        if has_expired(generation, moment)
        and generation is not fallback
        and training_from(generation, every) is None
    ]


def has_expired(generation: Generation, moment: datetime) -> bool:
    """Whether a generation was retired or failed longer than `KEPT` before `moment`."""
    if generation.state not in ("retired", "failed") or generation.ended_at is None:
        return False
    return generation.ended_at < moment - KEPT


def training_from(parent: Generation, every: Sequence[Generation]) -> int | None:
    """The generation that is being trained from the weights of `parent`, if there is one."""
    for generation in every:
        if generation.state == "building" and generation.config.training.parent == parent.id:
            return generation.id
    return None


def folder_is_shared(generation: Generation, every: Sequence[Generation]) -> bool:
    """Whether another generation that is not given up has its checkpoint in the same folder."""
    return any(
        other.folder == generation.folder
        for other in every
        if other.id != generation.id and other.state in _STATES_WITH_FOLDER
    )


def refused_by_gate(candidate: Generation, live: Generation | None) -> bool:
    """Whether the gate refused a candidate when it compared it with what is live now."""
    verdict = candidate.config.gate
    if live is None or verdict is None:
        return False
    return not verdict.passed and verdict.against == live.id


def _delete(conn: Connection, checkpoints: Path, generation: Generation) -> None:
    # Tables first: a folder without tables is removed by the next `prune`.
    if not generation.dropped:
        generations.drop(conn, generation.id)
    if not folder_is_shared(generation, generations.generations(conn)):
        shutil.rmtree(checkpoints / generation.folder, ignore_errors=True)
    log.info("generation dropped", generation=generation.id, state=generation.state)
