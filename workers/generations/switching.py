"""Switching: a generation catches up with what it lacks and becomes live, in one transaction that finds nothing missing.

How nothing is lost: whoever accepts images holds the set of generations shared (`share_set`), a switch holds it alone. So
under the switch's lock no image is on its way, those accepted before it are all there to be looked for, and those that come
after it go to the new live generation. Sweeps run beside ingestion; only the last look, at the newest keys, has the lock.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from model.progress import Progress, quiet
from schemas.errors import RejectInputError, SigmaError, UsageError, WorkFailedError
from schemas.records import ByteArray
from workers.generations.image_assigner import ImageAssigner
from workers.repository import generations
from workers.repository.connection import Connection, transaction
from workers.repository.generations import Generation
from workers.repository.images import StoredImage, missing_images, newest_image
from workers.repository.postings import AppendStatus, append
from workers.runtime.pictures import read_picture
from workers.runtime.services import Services

TRIES = 20
"""Sweeps before a switch gives up. Each leaves less than the one before unless images come faster than the model works."""

_BATCH = 64

Load = Callable[[Services, Generation], ImageAssigner]

log = structlog.get_logger()


def load_appender(services: Services, generation: Generation) -> ImageAssigner:
    """The model of a generation."""
    # Imported here: a rollback that finds nothing missing needs no model, and does not wait for PyTorch.
    from workers.generations.appender import Appender

    return Appender.load(services, generation)


@dataclass(frozen=True, slots=True)
class Switched:
    """A generation that is live now: `before` was; `caught_up` images were assigned on the way, `refused` have no place in it."""

    generation: int
    before: int | None
    caught_up: int
    refused: int


class Sweep:
    """Assigns the images that one generation lacks. The model is loaded when the first one is found."""

    def __init__(
        self,
        services: Services,
        conn: Connection,
        generation: Generation,
        *,
        appender: ImageAssigner | None = None,
        load: Load = load_appender,
    ) -> None:
        self.generation = generation
        self.done = 0
        self.refused: set[int] = set()
        """Keys that it cannot take: no leaf has room, or the store lost the picture."""
        self._services, self._conn = services, conn
        self._appender, self._load = appender, load

    def run(self, after: int = 0, until: int | None = None, progress: Progress = quiet) -> int:
        """Assign every missing image with a key above `after`, up to `until`; returns how many found a place.

        Without `until` it ends when it has caught up with the arrivals.
        """
        before = self.done
        with progress("catch up", 0) as bar:
            while missing := missing_images(
                self._conn, self.generation.id, after=after, limit=_BATCH
            ):
                after = missing[-1].image_key
                due = [image for image in missing if until is None or image.image_key <= until]
                bar.update(
                    self.take([image for image in due if image.image_key not in self.refused])
                )
                if len(due) < len(missing):
                    break
        return self.done - before

    def missing(self, after: int = 0) -> list[StoredImage]:
        """Some of the images above `after` that are still to be assigned: all of them when fewer than a batch."""
        found = missing_images(
            self._conn, self.generation.id, after=after, limit=_BATCH + len(self.refused)
        )
        return [image for image in found if image.image_key not in self.refused]

    def take(self, images: list[StoredImage]) -> int:
        """Assign these, in one transaction; returns how many found a place."""
        read = [(image.image_key, self._picture(image)) for image in images]
        pictures = [(key, picture) for key, picture in read if picture is not None]
        if not pictures:
            return 0
        inferred = self._model().infer([picture for _, picture in pictures])
        work = [one.assignment(key) for one, (key, _) in zip(inferred, pictures, strict=True)]
        outcomes = append(self._conn, self.generation.id, self._model().shape, work)
        self.refused |= {
            outcome.image_key for outcome in outcomes if outcome.status is AppendStatus.NO_ROOM
        }
        placed = sum(
            outcome.status in (AppendStatus.INDEXED, AppendStatus.SPILLED) for outcome in outcomes
        )
        self.done += placed
        return placed

    def _picture(self, image: StoredImage) -> ByteArray | None:
        try:
            return read_picture(self._services.store, image.normalized_uri)
        except RejectInputError as error:
            log.error(
                "image cannot be assigned",
                image_id=image.image_id,
                generation=self.generation.id,
                reason=str(error),
            )
            self.refused.add(image.image_key)
            return None

    def _model(self) -> ImageAssigner:
        if self._appender is None:
            self._appender = self._load(self._services, self.generation)
        return self._appender


def promote(
    services: Services,
    conn: Connection,
    generation: int,
    *,
    appender: ImageAssigner | None = None,
    load: Load = load_appender,
) -> Switched:
    """Make a shadow or retired generation live, complete. The one it replaces is completed too: it is the fallback generation.

    `UsageError` from another state, `WorkFailedError` when images keep coming faster than they can be caught up.
    """
    wanted, before = generations.get(conn, generation), generations.live(conn)
    if wanted.state == "live":
        return Switched(generation, generation, 0, 0)
    if wanted.state not in ("shadow", "retired"):
        raise UsageError(
            f"generation {generation} is {wanted.state}, only a shadow or retired one can become live; see sigma generations"
        )
    if before is not None:
        _complete_fallback(services, conn, before, load)
    return _switch(
        conn,
        Sweep(services, conn, wanted, appender=appender, load=load),
        lambda: generations.promote(conn, generation),
    )


def rollback(services: Services, conn: Connection, *, load: Load = load_appender) -> Switched:
    """Make the generation live again that was before, complete. `UsageError` when there is none."""
    wanted = generations.require_fallback(conn)

    def switch() -> int | None:
        if generations.require_fallback(conn).id != wanted.id:
            raise WorkFailedError(
                "somebody else switched at the same moment; look at sigma generations list and try again"
            )
        return generations.promote(conn, wanted.id)

    return _switch(conn, Sweep(services, conn, wanted, load=load), switch)


def publish(
    services: Services,
    conn: Connection,
    generation: int,
    appender: ImageAssigner,
    progress: Progress = quiet,
) -> str:
    """Let a trained generation receive arrivals, and make it live if none is. Returns its state."""
    sweep = Sweep(services, conn, generations.get(conn, generation), appender=appender)
    sweep.run(progress=progress)
    generations.set_state(conn, generation, "shadow")
    # From here on the index workers assign every arrival in this generation too; what came in between is caught up.
    sweep.run(progress=progress)
    if generations.live(conn) is None:
        promote(services, conn, generation, appender=appender)
    return generations.get(conn, generation).state


def _switch(conn: Connection, sweep: Sweep, switch: Callable[[], int | None]) -> Switched:
    with transaction(conn):
        generations.lock_set(conn)
        ceiling = newest_image(conn)
    floor = 0
    for attempt in range(TRIES):
        sweep.run(after=floor, until=ceiling)
        # Every image up to here was there to be swept, so only newer ones can be missing.
        floor = ceiling
        with transaction(conn):
            generations.lock_set(conn)
            missing = sweep.missing(floor)
            if attempt == TRIES - 1 and len(missing) < _BATCH:
                # Arrivals wait for this one batch, which beats never switching under a steady stream.
                sweep.take(missing)
                missing = sweep.missing(floor)
            if not missing:
                before = switch()
                break
            ceiling = newest_image(conn)
    else:
        raise WorkFailedError(
            f"generation {sweep.generation.id} still lacks images after {TRIES} sweeps: they arrive faster than they are assigned; "
            "start more index workers, or try again when less arrives"
        )
    if sweep.refused:
        log.error(
            "images have no place in the live generation",
            generation=sweep.generation.id,
            images=len(sweep.refused),
        )
    return Switched(sweep.generation.id, before, sweep.done, len(sweep.refused))


def _complete_fallback(services: Services, conn: Connection, live: Generation, load: Load) -> None:
    try:
        Sweep(services, conn, live, load=load).run()
    except SigmaError as error:
        # It may be the very reason for the switch.
        log.error(
            "the generation to be replaced cannot catch up", generation=live.id, reason=str(error)
        )
