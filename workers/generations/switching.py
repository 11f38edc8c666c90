"""Switching: a generation becomes live in one transaction, after it has caught up with every image.

How nothing is lost: whoever accepts images holds the set of generations shared (`share_set`), a
switch holds it exclusively (`lock_set`). Under the switch's lock no image is being accepted, those
accepted before are all visible, and those that come after it go to the new live generation. Sweeps
run beside ingestion; only the last look, at the newest keys, is taken under the lock.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from model.progress import Progress, quiet
from schemas.errors import SigmaError, UsageError, WorkFailedError
from stream.images.store import ImageStore
from workers.generations.catch_up import BATCH, CatchUp
from workers.generations.image_assigner import ImageAssigner, LoadAssigner
from workers.repository import generations
from workers.repository.connection import Connection, transaction
from workers.repository.generations import Generation
from workers.repository.stored_images import newest_image

# Sweeps before a switch gives up. Each leaves fewer images than the one before, unless images
# arrive faster than the model assigns them.
MAX_SWEEPS = 20

# Makes the wanted generation live, under the lock; returns the one that was live before.
MakeLive = Callable[[], int | None]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SwitchResult:
    """A switch that was made."""

    generation: int
    """The generation that is live now."""
    previous: int | None
    """The one that was live before; None for the first."""
    caught_up: int
    """Images that were assigned on the way."""
    unplaced: int
    """Images that have no place in the live generation."""


def promote(
    conn: Connection,
    generation: int,
    store: ImageStore,
    load: LoadAssigner,
    *,
    assigner: ImageAssigner | None = None,
) -> SwitchResult:
    """Make a shadow or retired generation live, after it has every image.

    The generation that it replaces catches up first, for it becomes the fallback. `UsageError` for
    another state, `WorkFailedError` when images arrive faster than they are assigned.
    """
    candidate = generations.get(conn, generation)
    if candidate.state == "live":
        return SwitchResult(generation, previous=generation, caught_up=0, unplaced=0)
    require_promotable(candidate)
    live = generations.live(conn)
    if live is not None:
        _complete_fallback(conn, CatchUp(conn, live, store, load))
    catch_up = CatchUp(conn, candidate, store, load, assigner=assigner)
    return _switch(conn, catch_up, lambda: generations.promote(conn, generation))


def rollback(conn: Connection, store: ImageStore, load: LoadAssigner) -> SwitchResult:
    """Make the fallback generation live again, after it has every image.

    `UsageError` when there is none, `WorkFailedError` when another process switches meanwhile or
    images arrive faster than they are assigned.
    """
    fallback = generations.require_fallback(conn)

    def make_live() -> int | None:
        # Under the lock: another process may have switched while this one was catching up.
        if generations.require_fallback(conn).id != fallback.id:
            raise WorkFailedError(
                f"generation {fallback.id} is the fallback no more: another process switched at "
                "the same moment; look at sigma generations list and try again"
            )
        return generations.promote(conn, fallback.id)

    return _switch(conn, CatchUp(conn, fallback, store, load), make_live)


def publish(
    conn: Connection,
    generation: int,
    store: ImageStore,
    assigner: ImageAssigner,
    progress: Progress = quiet,
) -> str:
    """Let a trained generation receive arrivals, and make it live if none is. Returns its state."""

    def load(_: Generation) -> ImageAssigner:
        return assigner

    catch_up = CatchUp(conn, generations.get(conn, generation), store, load)
    catch_up.run(progress=progress)
    generations.set_state(conn, generation, "shadow")
    # From here on the index workers assign every arrival in this generation too. Those that came
    # between the first run and the change of state are assigned by the second.
    _complete(conn, catch_up)
    if generations.live(conn) is None:
        promote(conn, generation, store, load)
    return generations.get(conn, generation).state


def require_promotable(candidate: Generation) -> None:
    """`UsageError` unless a generation is in a state from which it can become live."""
    if candidate.state not in ("shadow", "retired"):
        raise UsageError(
            f"generation {candidate.id} must be shadow or retired to become live, it is "
            f"{candidate.state}; list them with: sigma generations list"
        )


def may_assign_under_lock(missing: int, *, last_attempt: bool) -> bool:
    """Whether the missing images are assigned while every arrival waits for the lock.

    Only in the last attempt, and one batch at most: that beats never switching under a steady
    stream.
    """
    return last_attempt and 0 < missing < BATCH


def _switch(conn: Connection, catch_up: CatchUp, make_live: MakeLive) -> SwitchResult:
    ceiling = _newest_settled(conn)
    # The first sweep covers all keys; each further one only those accepted during the one before.
    floor = 0
    for attempt in range(MAX_SWEEPS):
        catch_up.run(after=floor, until=ceiling)
        # Every image up to the ceiling was visible to that run, so only newer ones can be missing.
        floor = ceiling
        with transaction(conn):
            generations.lock_set(conn)
            complete = _is_complete(catch_up, floor, last_attempt=attempt == MAX_SWEEPS - 1)
            if complete:
                generations.set_complete(
                    conn, catch_up.generation.id, newest_image(conn), catch_up.unplaceable
                )
                previous = make_live()
            else:
                ceiling = newest_image(conn)
        if complete:
            return _result(catch_up, previous)
    raise WorkFailedError(
        f"generation {catch_up.generation.id} still lacks images after {MAX_SWEEPS} sweeps: they "
        "arrive faster than they are assigned; start more index workers, or try again when fewer "
        "images arrive"
    )


def _newest_settled(conn: Connection) -> int:
    """The highest key of an image; no image with a lower one is still to be committed."""
    with transaction(conn):
        generations.lock_set(conn)
        return newest_image(conn)


def _complete(conn: Connection, catch_up: CatchUp) -> None:
    """Assign every missing image, and record up to where none is missing any more."""
    ceiling = _newest_settled(conn)
    catch_up.run(until=ceiling)
    generations.set_complete(conn, catch_up.generation.id, ceiling, catch_up.unplaceable)
    catch_up.run(after=ceiling)


def _is_complete(catch_up: CatchUp, floor: int, *, last_attempt: bool) -> bool:
    """Whether the generation has every image. The caller holds the lock: none can be added."""
    missing = catch_up.missing(floor)
    if may_assign_under_lock(len(missing), last_attempt=last_attempt):
        catch_up.assign(missing)
        missing = catch_up.missing(floor)
    return not missing


def _result(catch_up: CatchUp, previous: int | None) -> SwitchResult:
    generation = catch_up.generation.id
    unplaced = len(catch_up.unplaceable)
    if unplaced:
        log.error("images missing in the live generation", generation=generation, images=unplaced)
    return SwitchResult(generation, previous, catch_up.assigned, unplaced)


def _complete_fallback(conn: Connection, catch_up: CatchUp) -> None:
    """Complete the generation that is about to be replaced. A failure does not stop the switch."""
    try:
        _complete(conn, catch_up)
    except SigmaError as error:
        # What fails here may be the very reason for the switch.
        log.error(
            "fallback generation not completed",
            generation=catch_up.generation.id,
            reason=str(error),
        )
