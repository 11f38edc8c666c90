"""Photos: one call from a folder of pictures to search, and again when pictures have come."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from model.progress import Progress
from ops import ingestion
from ops.cli.context import open_database
from ops.embedded import control
from ops.embedded.database import open_services
from ops.ingestion import IngestOutcome, RefusedFile, upload_to
from ops.phase_clock import PhaseClock
from ops.photos.photo_models import PhotoModels
from ops.photos.photo_plan import PhotoPlan, plan_photos
from ops.photos.photo_result import PhotosResult
from ops.photos.photo_sample import SAMPLE
from schemas.errors import UsageError, WorkFailedError
from schemas.settings import PACKAGED_ENCODER, Settings
from stream.manifest import Listing, list_folder
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.counters import totals
from workers.repository.generations import Generation
from workers.runtime.services import Services

# Longest time without a picture that becomes searchable: a large HEIC picture takes seconds, and
# other programs may have the machine.
IDLE_S = 300.0

# Seconds that a picture takes on two cores to be read and seen, and a training besides, whatever
# the number of pictures. For the estimate alone; see docs/experiments/photos.md.
SECONDS_A_PICTURE = 0.1
TRAINING_S = 100.0


@dataclass(frozen=True, slots=True)
class PhotosRequest:
    """What `sigma photos` was asked for."""

    folder: Path
    encoder: str | None = None
    """None: that of the live generation, or `PACKAGED_ENCODER`."""
    captioner: str | None = None
    """What captions the pictures that are learnt from; None learns without captions."""
    retrain: bool = False


def photos(settings: Settings, request: PhotosRequest, progress: Progress) -> PhotosResult:
    """Make the pictures of a folder searchable, and return when they are.

    Trains where no generation is live, starts the services where none run, and sends what is new
    or changed. Everything goes on where an earlier call was cut short.
    """
    listing = _listing(request.folder)
    clock = PhaseClock()
    with open_services(settings) as services, open_database(services, "photos") as conn:
        live = generations.live(conn)
        encoder = chosen_encoder(settings, request, live)
        require_training(request, live)
        if live is None or request.retrain:
            require_known(encoder)
        with clock.phase("look", f"look for new pictures, files: {len(listing.entries):,}"):
            plan = before = _plan(conn, listing, progress)
        trained = 0
        if live is None:
            models = PhotoModels(encoder or PACKAGED_ENCODER, request.captioner)
            trained = _train_first(services, conn, before, models, clock, progress)
            # What was learnt from is searchable; what is left goes the way of all arrivals.
            plan = _plan(conn, listing, progress)
        with clock.phase("start", "start the services"):
            address = _serve(settings)
        sent = _send(services, conn, plan, clock, progress)
        if request.retrain and live is not None:
            models = PhotoModels(encoder or PACKAGED_ENCODER, request.captioner)
            trained = _train_again(services, conn, models, clock, progress)
        current = generations.live(conn)
        if current is None:
            raise WorkFailedError("no generation is live any more; run the same command again")
        searchable = plan.known + sent.indexed
        return PhotosResult(
            folder=str(request.folder.resolve()),
            home=str(services.home),
            url=address,
            generation=current.id,
            encoder=current.config.training.encoder_source,
            trained=trained,
            learnt=current.config.training.images or 0,
            searchable=searchable,
            new=searchable - before.known,
            index=totals(conn, current.id).images,
            deleted=plan.deleted,
            rejected=(*listing_refusals(listing), *plan.refused, *sent.rejected),
            hidden=listing.hidden,
            seconds=clock.seconds,
        )


def chosen_encoder(
    settings: Settings, request: PhotosRequest, live: Generation | None
) -> str | None:
    """The encoder to see pictures with; None is the small one of a live generation.

    `UsageError` when another one is asked for than the live generation has.
    """
    asked = request.encoder
    if asked is not None and Path(asked).expanduser().is_dir():
        asked = str(Path(asked).expanduser().absolute())
    if live is None or request.retrain:
        current = None if live is None else live.config.training.encoder_source
        return asked or settings.encoder or current or PACKAGED_ENCODER
    current = live.config.training.encoder_source
    if asked not in (None, current):
        raise UsageError(
            f"the index sees with the encoder {current or 'of its base'}, got --encoder {asked}; "
            "leave it out, or add --retrain to train the index anew with it"
        )
    return current


def require_training(request: PhotosRequest, live: Generation | None) -> None:
    """`UsageError` when a captioner is named and nothing is to be trained."""
    if request.captioner is not None and live is not None and not request.retrain:
        raise UsageError(
            "--captioner captions the pictures of a training, and the index is trained already, "
            f"got {request.captioner}; leave it out, or add --retrain"
        )


def require_known(encoder: str | None) -> None:
    """`RefuseToStartError` when the packages of the default encoder are not installed.

    Before anything is read, for it is the first thing that a new user meets.
    """
    if encoder == PACKAGED_ENCODER:
        from model.network.encoders.conse import require_packages

        require_packages()


def _listing(folder: Path) -> Listing:
    if not folder.exists():
        raise UsageError(f"{folder} does not exist; give a folder of pictures")
    if not folder.is_dir():
        raise UsageError(f"{folder} must be a folder of pictures, got a file; give its folder")
    return list_folder(folder)


def _plan(conn: Connection, listing: Listing, progress: Progress) -> PhotoPlan:
    with progress("look", len(listing.entries)) as bar:
        return plan_photos(conn, listing.entries, bar.update)


def _train_first(
    services: Services,
    conn: Connection,
    plan: PhotoPlan,
    models: PhotoModels,
    clock: PhaseClock,
    progress: Progress,
) -> int:
    # Imported where something is trained: PyTorch takes seconds to load.
    from ops.photos.photo_training import train_on_photos

    count = min(len(plan.to_send), SAMPLE)
    if not count:
        reasons = "; ".join(file.reason for file in plan.refused[:1])
        raise UsageError(
            f"the folder must hold at least one picture that can be used, got none ({reasons}); "
            "give a folder of pictures"
        )
    how = "without captions" if models.captioner is None else "with generated captions"
    announcement = f"learn {how}, pictures: {count:,}; {_estimate(count, TRAINING_S)}"
    with clock.phase("train", announcement), _resumable():
        trained = train_on_photos(services, conn, plan.to_send, models, progress)
    return trained.images


def _train_again(
    services: Services,
    conn: Connection,
    models: PhotoModels,
    clock: PhaseClock,
    progress: Progress,
) -> int:
    """Train a candidate on pictures of the store, and make it live.

    The gate is not asked: without captions it has no queries to compare two generations by, and
    the person asked for this. The training's own gates are passed, and a rollback brings the
    earlier generation back.
    """
    from ops.jobs.candidate_promotion import CandidatePromoter
    from ops.photos.photo_training import train_again

    live = generations.live(conn)
    count = 0 if live is None else totals(conn, live.id).images
    announcement = f"learn again, pictures: {min(count, SAMPLE):,}; {_estimate(count, TRAINING_S)}"
    with clock.phase("train", announcement), _resumable():
        trained = train_again(services, conn, models, count, progress)
    with clock.phase("promote", "switch; back again with: sigma generations rollback"):
        CandidatePromoter.on_services(services, conn).promote(trained.generation, force=True)
    return trained.images


def _estimate(pictures: int, more_s: float = 0.0) -> str:
    minutes = math.ceil((pictures * SECONDS_A_PICTURE + more_s) / 60)
    return "about a minute" if minutes <= 1 else f"about {minutes} minutes"


@contextmanager
def _resumable() -> Iterator[None]:
    """Tell a person who stops a training that it can go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise WorkFailedError(
            "interrupted while learning; the same command goes on where it stopped"
        ) from None


def _serve(settings: Settings) -> str:
    """Start the services where none run; the address of the query worker, which is ready then."""
    supervisor = control.up(settings)
    # One that ran before may still be loading the generation that just went live.
    control.wait_until_answering(supervisor, settings)
    return supervisor.url


def _send(
    services: Services,
    conn: Connection,
    plan: PhotoPlan,
    clock: PhaseClock,
    progress: Progress,
) -> IngestOutcome:
    """Send what is to be sent, and wait until it is searchable or refused."""
    if not plan.to_send:
        return IngestOutcome(0, ())
    count = len(plan.to_send)
    log = services.open_log()
    with clock.phase("ingest", f"send files: {count:,}; {_estimate(count)}"):
        with progress("publish", count) as bar:
            published = ingestion.publish(
                conn, log, plan.to_send, None, bar.update, upload_to(services)
            )
        log.close()
        with progress("searchable", count) as bar:
            outcome = ingestion.wait(
                conn, published, serving=True, timeout_s=IDLE_S, tick=bar.update
            )
    return replace(outcome, rejected=(*published.unreadable, *outcome.rejected))


def listing_refusals(listing: Listing) -> list[RefusedFile]:
    """Files and folders that were left out before anything was looked at."""
    return [RefusedFile(file.path, file.reason, file.code) for file in listing.left_out]
