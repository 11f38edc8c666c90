"""Retiring: generations that nobody needs give back their tables and their folder; their rows stay as history."""

import shutil
from datetime import timedelta

import structlog

from schemas.errors import RetryLaterError, UsageError
from schemas.events import now
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.runtime.services import Services

KEPT = timedelta(days=7)
"""How long a generation that was live, or that failed, is kept beside the fallback generation."""

_USED = ("building", "shadow", "live", "retired")

log = structlog.get_logger()


def drop(services: Services, conn: Connection, number: int, *, force: bool = False) -> None:
    """Give up a candidate, a retired or a failed generation.

    `UsageError` when it is in use: live, being trained, the start of a training under way, or (without `force`) the fallback generation.
    """
    wanted, found = generations.get(conn, number), generations.generations(conn)
    if wanted.state == "live":
        raise UsageError(
            f"generation {number} is live; make another one live first: sigma generations promote G"
        )
    if wanted.state == "building":
        raise UsageError(
            f"generation {number} is being trained; finish it first: sigma train --resume"
        )
    if needed := _needed_by(wanted, found):
        raise UsageError(
            f"generation {number} is what generation {needed} is trained from; finish that first: sigma train --resume"
        )
    back = generations.find_fallback(found)
    if back is not None and back.id == number and not force:
        raise UsageError(
            f"generation {number} is the fallback generation, which a rollback needs; "
            f"to drop it nevertheless: sigma generations drop {number} --force"
        )
    _drop(services, conn, wanted)


def prune(services: Services, conn: Connection) -> list[int]:
    """Drop what ended longer than `KEPT` ago and is not the fallback generation; returns the numbers. What is locked is left for the next time."""
    found = generations.generations(conn)
    back, gone = generations.find_fallback(found), []
    for one in found:
        over = (
            one.state in ("retired", "failed")
            and one.ended_at is not None
            and one.ended_at < now() - KEPT
        )
        held = not one.dropped or (services.checkpoints / one.folder).exists()
        if over and held and one is not back and not _needed_by(one, found):
            try:
                _drop(services, conn, one)
            except RetryLaterError as error:
                log.warning("a generation is still in use", generation=one.id, reason=str(error))
                continue
            gone.append(one.id)
    return gone


def refused(candidate: Generation, live: Generation | None) -> bool:
    """Whether the gate refused a candidate beside the generation that is live now."""
    verdict = candidate.config.gate
    if live is None or verdict is None:
        return False
    return not verdict.passed and verdict.against == live.id


def _needed_by(one: Generation, found: list[Generation]) -> int | None:
    return next(
        (
            other.id
            for other in found
            if other.state == "building" and other.config.training.parent == one.id
        ),
        None,
    )


def _drop(services: Services, conn: Connection, one: Generation) -> None:
    if not one.dropped:
        generations.drop(conn, one.id)
    others = {
        other.folder
        for other in generations.generations(conn)
        if other.id != one.id and other.state in _USED
    }
    if one.folder not in others:
        shutil.rmtree(services.checkpoints / one.folder, ignore_errors=True)
    log.info("generation is dropped", generation=one.id, state=one.state)
