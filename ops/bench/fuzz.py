"""`sigma bench fuzz`: thousands of hostile events and images against intake and index together.

Real worker processes read them all; afterwards each event is accounted for, and replays in shuffled
order, each into an empty index, must come to the same.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psycopg
from PIL import Image

from ops.bench.fleet import ROLES, Fleet, open_fleet
from ops.bench.fuzz_audit import EventAccount, Fingerprint, account, fingerprint, published_events
from ops.bench.fuzz_events import StoredPicture, fuzzed_messages, trace_of_number
from ops.bench.fuzz_images import fuzzed_images
from ops.bench.fuzz_replay import RememberingPool, replay, rewind_all
from ops.cli.progress_bar import bar
from schemas.errors import WorkFailedError
from schemas.events import ARRIVED, ImageArrived, encode
from schemas.records import JsonObject
from stream.log.event_log import Event, EventLog, Message
from stream.log.offsets import lag
from workers import index, intake
from workers.repository.connection import Connection
from workers.repository.rejections import rejections
from workers.repository.stored_images import images_by_id
from workers.runtime.services import Services

# Side of a good picture: decoding takes no time.
_SIDE_PX = 12

# Arrivals that share a picture: few enough that no leaf of the stub's shape gets full.
_ARRIVALS_PER_PICTURE = 40

# Messages published together.
_CHUNK = 500

# Seconds between two looks.
_POLL_S = 0.2

# Longest wait for the last good image.
_LAST_S = 60.0

# The name of the embedded server's database, and that from which others are copied.
_DATABASE = "postgres"


@dataclass(frozen=True, slots=True)
class FuzzConfig:
    """What is sent."""

    events: int = 20_000
    images: int = 2000
    replays: int = 3
    seed: int = 0
    files: Path | None = None
    """Further image files to mutate."""
    settle_s: float = 3600.0
    """Longest wait for the workers."""


@dataclass(frozen=True, slots=True)
class _Flow:
    """What the worker processes made of everything."""

    account: EventAccount
    images: Mapping[str, int]
    """Mutated images by what became of them."""
    fingerprint: Fingerprint
    workers_ended: tuple[str, ...]
    last_indexed: bool
    """Whether a good image at the end was indexed."""


@dataclass(frozen=True, slots=True)
class FuzzResult:
    """The outcome of a run."""

    events: int
    seed: int
    flow: _Flow
    replays: tuple[Fingerprint, ...]
    """Of replays in shuffled order, each into an empty index."""
    delivered_again: bool
    """Whether everything, read once more in shuffled order, changed nothing."""
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, nothing stopped and no order mattered."""
        flow = self.flow
        return (
            not flow.account.unaccounted
            and sum(flow.account.outcomes.values()) == self.events
            and not flow.account.doubled
            # What nobody foresaw is set aside too, but ought to be refused with its reason.
            and "failed" not in flow.account.refusals
            and flow.account.counters_agree
            and not flow.workers_ended
            and flow.last_indexed
            and self.delivered_again
            and all(other == flow.fingerprint for other in self.replays)
        )

    def to_json(self) -> JsonObject:
        """The JSON document of `sigma bench fuzz`."""
        return {
            "events": self.events,
            "seed": self.seed,
            **asdict(self.flow.account),
            "images": dict(self.flow.images),
            "workers_ended": list(self.flow.workers_ended),
            "last_indexed": self.flow.last_indexed,
            **asdict(self.flow.fingerprint),
            "replays": [asdict(outcome) for outcome in self.replays],
            "delivered_again": self.delivered_again,
            "seconds": round(self.seconds, 1),
        }


def fuzz(config: FuzzConfig) -> FuzzResult:
    """Run everything; `WorkFailedError` when an event is lost, a worker ended or orders differ."""
    began = time.monotonic()
    with open_fleet(None) as fleet:
        published = _publish(fleet, config)
        copies = _copies(fleet, config.replays)
        flow, delivered_again = _flow(fleet, config, published)
        replays = _replays(copies, fleet.generation, config.seed)
    result = FuzzResult(
        len(published),
        config.seed,
        flow,
        replays,
        delivered_again,
        time.monotonic() - began,
    )
    if not result.passed:
        raise WorkFailedError(f"the fuzz run found a fault: {result.to_json()}")
    return result


def _publish(fleet: Fleet, config: FuzzConfig) -> list[Event]:
    """Publish all events while no worker runs; return them as the log has them."""
    pictures = _pictures(fleet, max(64, config.events // _ARRIVALS_PER_PICTURE))
    messages = fuzzed_messages(config.events, config.seed, pictures)
    images = fuzzed_images(config.images, config.seed, config.files)
    messages += _image_messages(fleet.folder / "mutated", images, first=len(messages))
    log = fleet.services.open_log()
    with bar("publish", len(messages)) as progress:
        for first in range(0, len(messages), _CHUNK):
            chunk = messages[first : first + _CHUNK]
            log.publish(None, chunk)
            progress.update(len(chunk))
    published = published_events(log)
    log.close()
    return published


def _pictures(fleet: Fleet, count: int) -> list[StoredPicture]:
    """Write pictures of noise, as files and into the store."""
    folder = fleet.folder / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        pixels = noise.integers(0, 256, (_SIDE_PX, _SIDE_PX, 3), dtype=np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path, compress_level=1)
        stored = fleet.services.store.put(path.read_bytes(), ".png")
        pictures.append(StoredPicture(path.as_uri(), stored))
    return pictures


def _image_messages(folder: Path, images: Sequence[bytes], first: int) -> list[Message]:
    """Write the images; return an arrival for each, traced from number `first` on."""
    folder.mkdir()
    messages = []
    for number, data in enumerate(images):
        path = folder / f"{number}.bin"
        path.write_bytes(data)
        event = ImageArrived(_image_id(number), path.as_uri())
        headers = {"traceparent": trace_of_number(first + number)}
        messages.append(Message(ARRIVED, event.image_id, encode(event), headers))
    return messages


def _image_id(number: int) -> str:
    return f"mutated-{number}"


def _copies(fleet: Fleet, count: int) -> list[Services]:
    """Copy the database, with the events and an empty index; the copies share the image store."""
    url = fleet.services.database_url
    copies = []
    # Not from the database itself: it can only be copied while nobody is connected.
    with psycopg.connect(_other(url, "template1"), autocommit=True) as conn:
        for number in range(count):
            name = f"replay_{number}"
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {_DATABASE}".encode())
            copies.append(Services(fleet.services.settings, _other(url, name)))
    return copies


def _other(url: str, name: str) -> str:
    return url.replace(f"/{_DATABASE}?", f"/{name}?")


def _flow(fleet: Fleet, config: FuzzConfig, published: Sequence[Event]) -> tuple[_Flow, bool]:
    """Let worker processes read everything; then deliver it again."""
    log = fleet.services.open_log()
    with fleet.services.connect("fuzz") as conn:
        for role in ROLES:
            fleet.start(role)
        ended = _settle(fleet, log, conn, config.settle_s)
        flow = _Flow(
            account=account(log, conn, fleet.generation, published),
            images=_image_outcomes(conn, config.images),
            fingerprint=fingerprint(conn, fleet.generation),
            workers_ended=ended,
            last_indexed=_send_last(fleet, log, conn),
        )
        for worker in list(fleet.workers):
            fleet.kill(worker)
        before = fingerprint(conn, fleet.generation)
        rewind_all(fleet.services, conn)
        with RememberingPool() as decoder:
            replay(fleet.services, conn, decoder, config.seed)
        delivered_again = fingerprint(conn, fleet.generation) == before
    log.close()
    return flow, delivered_again


def _settle(fleet: Fleet, log: EventLog, conn: Connection, timeout_s: float) -> tuple[str, ...]:
    """Wait until nothing waits; return the roles of workers that ended, with their last words.

    A worker that ends is not started again: the first one is a fault.
    """
    deadline = time.monotonic() + timeout_s
    seen = _waiting(log, conn)
    with bar("work", seen) as progress:
        while time.monotonic() < deadline:
            if fleet.ended():
                return tuple(f"{one.role}: {fleet.log_tails()[one.role]}" for one in fleet.ended())
            waiting = _waiting(log, conn)
            progress.update(seen - waiting)
            seen = waiting
            if not waiting:
                return ()
            time.sleep(_POLL_S)
    return (f"{seen} events still wait: {fleet.log_tails()}",)


def _waiting(log: EventLog, conn: Connection) -> int:
    # The index worker's after intake's: what intake has read is there by then.
    arrived = lag(log, conn, intake.GROUP, intake.TOPICS)
    return arrived + lag(log, conn, index.GROUP, index.TOPICS)


def _send_last(fleet: Fleet, log: EventLog, conn: Connection) -> bool:
    """Send a good image behind all others; return whether it is indexed."""
    path = fleet.folder / "last.png"
    Image.new("RGB", (_SIDE_PX, _SIDE_PX), "teal").save(path)
    event = ImageArrived("the last one", path.as_uri())
    log.publish(None, [Message(ARRIVED, event.image_id, encode(event))])
    deadline = time.monotonic() + _LAST_S
    while time.monotonic() < deadline:
        image = images_by_id(conn, [event.image_id]).get(event.image_id)
        if image is not None and image.state == "indexed":
            return True
        time.sleep(_POLL_S)
    return False


def _image_outcomes(conn: Connection, count: int) -> dict[str, int]:
    """What became of the mutated images: indexed, or the code of the refusal."""
    ids = [_image_id(number) for number in range(count)]
    outcomes: Counter[str] = Counter()
    outcomes["indexed"] = len(images_by_id(conn, ids))
    outcomes.update(rejection.code for rejection in rejections(conn, ids, limit=count))
    return dict(sorted(outcomes.items()))


def _replays(copies: Sequence[Services], generation: int, seed: int) -> tuple[Fingerprint, ...]:
    """Read everything into each empty index, each time in another order."""
    outcomes = []
    with RememberingPool() as decoder, bar("replay", len(copies)) as progress:
        for number, services in enumerate(copies, start=1):
            with services.connect("replay") as conn:
                replay(services, conn, decoder, seed + number)
                outcomes.append(fingerprint(conn, generation))
            progress.update(1)
    return tuple(outcomes)
