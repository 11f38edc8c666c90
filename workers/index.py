"""The index worker: accepted → the model generates an identifier → postings in the trie, in one transaction with the offset."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice

import structlog

from schemas.errors import RejectInputError
from schemas.events import (
    ACCEPTED,
    ImageAccepted,
    ImageIndexed,
    ImageRejected,
    OperationsEvent,
    decode,
    now,
)
from schemas.records import ByteArray
from stream.log.dead_letters import dead_letter, rejection_of_event, rejection_of_image
from stream.log.event_log import Batch, Consumer, Event, EventLog, Message, message
from stream.log.offsets import lag, store_offsets
from workers.generations.image_assigner import ImageAssigner
from workers.generations.inferred import Inferred
from workers.repository.connection import Connection, rows, transaction
from workers.repository.generations import Generation, receiving, share_set
from workers.repository.images import accept_images, images_by_id, reject_image
from workers.repository.postings import AppendOutcome, AppendStatus, append
from workers.runtime.metrics import IndexMetrics
from workers.runtime.model_loader import ModelLoader
from workers.runtime.pictures import read_picture
from workers.runtime.process import announce_ready, keep_running
from workers.runtime.services import Services

GROUP = "index"
STAGE = "index"
TOPICS = (ACCEPTED,)
_POLL_S, _HOLD_S, _WATCH_S, _READERS, _SLICE = 1.0, 1.0, 5.0, 4, 16


Loader = Callable[[Services, Generation], ImageAssigner]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Work:
    """One accepted image with its pixels."""

    event: Event
    image: ImageAccepted
    picture: ByteArray


class _BatchInference:
    """What one generation's model says about a batch, and how long it took. Mutable, lives as long as the batch."""

    def __init__(self, model: ImageAssigner) -> None:
        self.model = model
        self.inferred: list[Inferred] = []
        self.seconds = 0.0

    def look(self, work: Sequence[_Work]) -> None:
        """Look at more pictures, a slice at a time."""
        began = time.perf_counter()
        for start in range(0, len(work), _SLICE):
            self.inferred += self.model.infer([one.picture for one in work[start : start + _SLICE]])
        self.seconds += time.perf_counter() - began


class _NotLoadedError(Exception):
    """The live generation was switched to after the batch was begun, and its model is still to be loaded."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(f"generation {generation.id} is not loaded")
        self.generation = generation


class IndexWorker:
    """One member of the group `index`. Batches are as large as the backlog allows, up to `batch`."""

    def __init__(
        self,
        services: Services,
        metrics: IndexMetrics,
        *,
        batch: int = 32,
        load: Loader | None = None,
    ) -> None:
        self._services = services
        self._metrics = metrics
        read = load or _load
        self._models: ModelLoader[ImageAssigner] = ModelLoader(
            lambda generation: read(services, generation), metrics.load_failures.inc
        )
        self._store = services.store
        self._batch = batch
        self._readers = ThreadPoolExecutor(_READERS, "pictures")
        self._watched = 0.0

    def run(self, stop: threading.Event) -> None:
        """Consume until stopped."""
        try:
            keep_running(self._session, stop, GROUP)
        finally:
            self._models.close()

    def _session(self, stop: threading.Event) -> None:
        events = self._services.open_log()
        events.ensure_topics()
        with (
            ThreadPoolExecutor(1, "model") as hands,
            self._services.connect(GROUP) as conn,
            # Joined only once the live model is there: a member that cannot work yet would keep partitions waiting.
            self._ready(conn, events) as consumer,
        ):
            announce_ready()
            while not stop.is_set():
                batch = consumer.poll(max_events=self._batch, timeout_s=_POLL_S)
                self._models.want(receiving(conn))
                if batch:
                    work = hands.submit(self.handle, conn, events, batch)
                    while not wait([work], _HOLD_S).done:
                        consumer.heartbeat()
                    work.result()
                self._watch(conn, events)
        events.close()

    def _ready(self, conn: Connection, events: EventLog) -> Consumer:
        wanted = receiving(conn)
        self._models.want(wanted)
        for generation in wanted:
            if generation.state == "live":
                self._models.wait(generation)
        return events.open_consumer(GROUP, TOPICS)

    def _watch(self, conn: Connection, events: EventLog) -> None:
        """Measure the group's lag every few seconds."""
        if time.monotonic() - self._watched > _WATCH_S:
            self._watched = time.monotonic()
            self._metrics.lag.set(lag(events, conn, GROUP, TOPICS))
            self._metrics.generations.set(len(self._models.loaded()))

    def handle(self, conn: Connection, events: EventLog, batch: Batch) -> None:
        """Assign and append one batch, and move the group's offsets, all in one transaction."""
        began, models = time.perf_counter(), self._models.loaded()
        fresh, refused = self._fresh(conn, batch.events, models)
        work: list[_Work] = []
        seen: dict[int, _BatchInference] = {
            number: _BatchInference(model) for number, model in models.items()
        }
        # All pictures are asked for at once; those of the next slice are read while the model looks at this one.
        pictures = (
            self._readers.map(self._picture, *zip(*fresh, strict=True)) if fresh else iter(())
        )
        while part := list(islice(pictures, _SLICE)):
            good = [one for one in part if isinstance(one, _Work)]
            refused += [one for one in part if not isinstance(one, _Work)]
            work += good
            for looking in seen.values():
                looking.look(good)
        while True:
            try:
                with transaction(conn):
                    self._write(conn, events, work, seen, refused)
                    store_offsets(events, conn, GROUP, batch)
                break
            except _NotLoadedError as missing:
                seen[missing.generation.id] = _BatchInference(self._models.wait(missing.generation))
                seen[missing.generation.id].look(work)
        model_s = sum(looking.seconds for looking in seen.values())
        self._metrics.count_batch(
            len(batch), model_s=model_s, other_s=time.perf_counter() - began - model_s
        )
        for one in work:
            self._metrics.age.observe(
                max(0.0, (now() - (one.image.published_at or one.image.arrived_at)).total_seconds())
            )

    def _write(
        self,
        conn: Connection,
        events: EventLog,
        work: Sequence[_Work],
        seen: Mapping[int, _BatchInference],
        refused: Sequence[tuple[Event, ImageRejected]],
    ) -> None:
        """Append to every generation that receives arrivals at this moment and that a model looked for."""
        messages: list[Message] = []
        if work:
            # From here to the commit no generation begins to receive, and none becomes live.
            share_set(conn)
            wanted = receiving(conn)
            for generation in wanted:
                if generation.state == "live" and generation.id not in seen:
                    raise _NotLoadedError(generation)
            keys = [stored.image_key for stored in accept_images(conn, [one.image for one in work])]
            # One that is not loaded yet, and not live, catches up before it can be (`workers.switching`).
            for generation in wanted:
                if generation.id in seen:
                    messages += self._append(conn, generation.id, work, keys, seen[generation.id])
        for event, reason in refused:
            reject_image(conn, reason)
            messages.append(dead_letter(event, reason))
        if messages:
            events.publish(conn, messages)

    def _fresh(
        self, conn: Connection, events: Sequence[Event], models: Collection[int]
    ) -> tuple[list[tuple[Event, ImageAccepted]], list[tuple[Event, ImageRejected]]]:
        """Events that need work, and unreadable ones. Replays of what stands in every generation are dropped before the model."""
        accepted: list[tuple[Event, ImageAccepted]] = []
        refused: list[tuple[Event, ImageRejected]] = []
        for event in events:
            try:
                record = decode(event.topic, event.value)
            except RejectInputError as error:
                refused.append((event, rejection_of_event(event, error, stage=STAGE)))
                continue
            if isinstance(record, ImageAccepted):
                accepted.append((event, record))
        done = self._indexed(conn, [image for _, image in accepted], models)
        # A relay that died sends an event again, often into the same batch.
        unlike = {(image.image_id, image.version): (event, image) for event, image in accepted}
        return [pair for name, pair in unlike.items() if name not in done], refused

    def _picture(self, event: Event, image: ImageAccepted) -> "_Work | tuple[Event, ImageRejected]":
        try:
            return _Work(event, image, read_picture(self._store, image.normalized_uri))
        except RejectInputError as error:
            return event, rejection_of_image(image, error, stage=STAGE)

    def _indexed(
        self, conn: Connection, images: Sequence[ImageAccepted], models: Collection[int]
    ) -> set[tuple[str, int]]:
        """(id, version) of images that need nothing: newer or deleted there, or posted in every generation that is loaded."""
        stored = images_by_id(conn, [image.image_id for image in images])
        keys = {one.image_key for one in stored.values()}
        for number in models:
            keys &= {
                key
                for (key,) in rows(
                    conn, "present_images", generation=number, image_keys=sorted(keys)
                )
            }
        done = set()
        for image in images:
            known = stored.get(image.image_id)
            if known is None or known.version < image.version:
                continue
            if (
                known.version > image.version
                or known.state == "deleted"
                or (models and known.image_key in keys)
            ):
                done.add((image.image_id, image.version))
        return done

    def _append(
        self,
        conn: Connection,
        number: int,
        work: Sequence[_Work],
        keys: Sequence[int],
        seen: _BatchInference,
    ) -> list[Message]:
        shape = seen.model.shape
        outcomes = append(
            conn,
            number,
            shape,
            [one.assignment(key) for one, key in zip(seen.inferred, keys, strict=True)],
        )
        messages = []
        for one, found, outcome in zip(work, seen.inferred, outcomes, strict=True):
            if outcome.status is AppendStatus.NO_ROOM:
                log.error("no leaf has room", image_id=one.image.image_id, generation=number)
                note = OperationsEvent(
                    "no-room",
                    f"image {one.image.image_id} found no leaf with room in generation {number}",
                )
                messages.append(message(note, one.image.image_id, cause=one.event))
            if outcome.leaf is not None and outcome.suffix is not None:
                messages.append(
                    _indexed_event(
                        one, number, shape.identifier(outcome.leaf, outcome.suffix), outcome, found
                    )
                )
        return messages


def _load(services: Services, generation: Generation) -> ImageAssigner:
    # Imported here, for torch and transformers take seconds that a worker with another model need not spend.
    from workers.generations.model_assigner import ModelAssigner

    postings = services.settings.retrieval.postings
    return ModelAssigner.load(services.checkpoints, generation, postings)


def _indexed_event(
    one: _Work, number: int, identifier: list[int], outcome: AppendOutcome, found: Inferred
) -> Message:
    event = ImageIndexed(
        image_id=one.image.image_id,
        version=one.image.version,
        generation=number,
        identifier=tuple(identifier),
        leaves=tuple(posting.leaf for posting in outcome.postings),
        confidence=found.leaves.confidence,
        arrived_at=one.image.arrived_at,
    )
    return message(event, one.image.image_id, cause=one.event)
