"""The index worker: accepted → the model generates an identifier → postings in the trie.

Postings and the group's offsets commit in one transaction: a batch is indexed once or not at all.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from schemas.errors import RejectInputError, WorkFailedError, brief
from schemas.events import ACCEPTED, now
from stream.images.store import ImageStore
from stream.log.dead_letters import rejection_of_failure, rejection_of_image
from stream.log.event_log import Batch, EventLog, Message
from stream.log.offsets import lag, store_offsets
from workers.generations.image_assigner import ImageAssigner, LoadAssigner, is_working
from workers.generations.inferred import Inferred
from workers.index_batch import (
    SLICE,
    STAGE,
    AcceptedEvent,
    BatchInference,
    IndexItem,
    RefusedEvent,
    age_s,
    append_targets,
    conflict,
    outcome_messages,
    published,
    read_events,
    refusal_messages,
    slices,
    unfinished,
    unloaded_live,
    without_repeats,
)
from workers.repository.connection import Connection, transaction
from workers.repository.generations import Generation, receiving, share_set
from workers.repository.image_acceptance import StoredKey, accept_images
from workers.repository.postings import AppendStatus, append, present_images
from workers.repository.refused_versions import RefusedVersion, note_refused
from workers.repository.rejections import reject_image
from workers.repository.stored_images import images_by_id
from workers.runtime.membership import work_as_member
from workers.runtime.metrics import IndexMetrics
from workers.runtime.model_loader import ModelLoader
from workers.runtime.pictures import read_picture
from workers.runtime.poison import handle_split, pass_over
from workers.runtime.process import announce_ready, keep_running

# The consumer group.
GROUP = "index"

# What it reads.
TOPICS = (ACCEPTED,)

# Longest wait for events, and so for noticing that the worker is to stop.
_POLL_S = 1.0

# Seconds between measurements of the group's lag, which ask the whole log.
_LAG_EVERY_S = 5.0

# Threads that read pictures: an object store answers several at once.
_READERS = 4

log = structlog.get_logger()


class _LiveNotLoadedError(Exception):
    """A generation went live after the batch was begun, and its model is not loaded yet."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(f"generation {generation.id} is live and not loaded")
        self.generation = generation


class IndexWorker:
    """One member of the group `index`. A batch is as large as the backlog allows, up to `batch`."""

    def __init__(
        self, store: ImageStore, load: LoadAssigner, metrics: IndexMetrics, *, batch: int = 32
    ) -> None:
        self._store = store
        self._metrics = metrics
        self.models: ModelLoader[ImageAssigner] = ModelLoader(load, metrics.load_failures.inc)
        self._batch = batch
        self._readers = ThreadPoolExecutor(_READERS, "pictures")
        self._measured_at_s = 0.0

    def run(
        self,
        connect: Callable[[str], Connection],
        open_log: Callable[[], EventLog],
        stop: threading.Event,
    ) -> None:
        """Consume until stopped. `connect` opens a database connection of a given name."""

        def session(stop: threading.Event) -> None:
            events = open_log()
            events.ensure_topics()
            with connect(GROUP) as conn:
                self._consume(conn, events, stop)
            events.close()

        try:
            keep_running(session, stop, GROUP)
        finally:
            self.models.close()

    def load_receiving(self, conn: Connection) -> None:
        """Begin to load every receiving generation, and wait for the live one."""
        generations = receiving(conn)
        self.models.want(generations)
        for generation in generations:
            if generation.state == "live":
                self.models.wait(generation)

    def handle(self, conn: Connection, events: EventLog, batch: Batch) -> None:
        """Assign and append one batch, and move the group's offsets, all in one transaction.

        An event that makes this fail, or a model, is a dead letter of its own.
        """
        handle_split(
            batch,
            partial(self._handle, conn, events),
            partial(self._set_aside, conn, events),
            partial(self._pass_over, conn, events),
        )

    def _handle(self, conn: Connection, events: EventLog, batch: Batch) -> None:
        started_s = time.perf_counter()
        models = self.models.loaded()
        inferences = {number: BatchInference(model) for number, model in models.items()}
        accepted, refused = read_events(batch.events)
        pending = self._pending(conn, accepted, models.keys())
        items, unreadable = self._infer(pending, inferences)
        self._commit(conn, events, batch, items, inferences, [*refused, *unreadable])

        model_s = sum(inference.seconds for inference in inferences.values())
        total_s = time.perf_counter() - started_s
        self._metrics.count_batch(len(batch), model_s=model_s, other_s=total_s - model_s)
        for item in items:
            self._metrics.age.observe(age_s(item.image, now()))

    def _set_aside(
        self, conn: Connection, events: EventLog, batch: Batch, error: Exception
    ) -> None:
        # A model that fails on every picture says nothing about this one: the process ends with
        # the first error, and the next one has a model of its own.
        if not all(is_working(model) for model in self.models.loaded().values()):
            raise WorkFailedError(
                f"a model fails on every picture ({brief(error)}); the worker starts anew"
            ) from error
        refused = []
        for event in batch.events:
            rejection = rejection_of_failure(event, error, stage=STAGE)
            accepted, _ = read_events([event])
            moments = [published(one).published_at for one in accepted]
            refused.append(RefusedEvent(event, rejection, *moments))
        self._commit(conn, events, batch, [], {}, refused)

    def _pass_over(self, conn: Connection, events: EventLog, batch: Batch) -> None:
        pass_over(conn, events, GROUP, batch)
        self._metrics.count_passed_over()

    def _consume(self, conn: Connection, events: EventLog, stop: threading.Event) -> None:
        # Join the group only once the live model is loaded: a member that cannot work yet would
        # keep its partitions waiting.
        self.load_receiving(conn)
        with (
            ThreadPoolExecutor(1, "model") as executor,
            events.open_consumer(GROUP, TOPICS) as consumer,
        ):
            announce_ready()
            while not stop.is_set():
                batch = consumer.poll(max_events=self._batch, timeout_s=_POLL_S)
                self.models.want(receiving(conn))
                if batch:
                    work_as_member(executor, consumer, partial(self.handle, conn, events, batch))
                self._measure(conn, events)

    def _measure(self, conn: Connection, events: EventLog) -> None:
        if time.monotonic() - self._measured_at_s > _LAG_EVERY_S:
            self._measured_at_s = time.monotonic()
            self._metrics.lag.set(lag(events, conn, GROUP, TOPICS))
            self._metrics.generations.set(len(self.models.loaded()))

    def _pending(
        self, conn: Connection, accepted: Sequence[AcceptedEvent], numbers: Collection[int]
    ) -> list[AcceptedEvent]:
        """Return the events that need a model, each once. `numbers` are the loaded generations."""
        stored = images_by_id(conn, [candidate.image.image_id for candidate in accepted])
        posted = _posted_in_all(conn, [image.image_key for image in stored.values()], numbers)
        return unfinished(without_repeats(accepted), stored, posted)

    def _infer(
        self, pending: Sequence[AcceptedEvent], inferences: Mapping[int, BatchInference]
    ) -> tuple[list[IndexItem], list[RefusedEvent]]:
        """Read the pictures and let every loaded model look at them; returns unreadable ones too.

        The items are in the order of `pending`, as are the inferences.
        """
        items: list[IndexItem] = []
        refused: list[RefusedEvent] = []
        # `map` requests all pictures at once: those of the next slice are read while the models
        # look at this one.
        for part in slices(self._readers.map(self._read, pending), SLICE):
            readable = []
            for result in part:
                if isinstance(result, IndexItem):
                    readable.append(result)
                else:
                    refused.append(result)
            for inference in inferences.values():
                inference.add(readable)
            items += readable
        return items, refused

    def _read(self, accepted: AcceptedEvent) -> IndexItem | RefusedEvent:
        image = accepted.image
        try:
            picture = read_picture(self._store, image.normalized_uri)
        except RejectInputError as error:
            rejection = rejection_of_image(image, error, stage=STAGE)
            return RefusedEvent(accepted.event, rejection, published(accepted).published_at)
        return IndexItem(accepted.event, image, picture)

    def _commit(
        self,
        conn: Connection,
        events: EventLog,
        batch: Batch,
        items: Sequence[IndexItem],
        inferences: dict[int, BatchInference],
        refused: Sequence[RefusedEvent],
    ) -> None:
        """Write the batch. Adds to `inferences` a generation that went live meanwhile."""
        while True:
            try:
                with transaction(conn):
                    conflicts = _write(conn, events, items, inferences, refused)
                    # Last, so that the row locks of the offsets are held briefly.
                    store_offsets(events, conn, GROUP, batch)
                # Counted after the commit: a batch that is rolled back comes again.
                for refusal in [*refused, *conflicts]:
                    self._metrics.rejected.labels(refusal.rejection.code).inc()
                return
            except _LiveNotLoadedError as error:
                # The transaction was rolled back, so no lock is held while the model loads.
                inference = BatchInference(self.models.wait(error.generation))
                inference.add(items)
                inferences[error.generation.id] = inference


def _posted_in_all(conn: Connection, keys: Sequence[int], numbers: Collection[int]) -> set[int]:
    """Return the image keys that every one of the generations holds; none without generations."""
    if not numbers:
        return set()
    posted = set(keys)
    for number in numbers:
        posted &= present_images(conn, number, sorted(posted))
    return posted


def _write(
    conn: Connection,
    events: EventLog,
    items: Sequence[IndexItem],
    inferences: Mapping[int, BatchInference],
    refused: Sequence[RefusedEvent],
) -> list[RefusedEvent]:
    """Append the items and publish what that led to, in the caller's transaction.

    Returns the items whose version is stored with other bytes: they were refused, too.
    """
    messages: list[Message] = []
    conflicts: list[RefusedEvent] = []
    # Before images are locked. Conflicts are of versions that are stored: those are known.
    _note_refused(conn, refused)
    if items:
        messages, conflicts = _append_everywhere(conn, items, inferences)
    for refusal in [*refused, *conflicts]:
        reject_image(conn, refusal.rejection)
    messages += refusal_messages([*refused, *conflicts])
    if messages:
        events.publish(conn, messages)
    return conflicts


def _note_refused(conn: Connection, refused: Sequence[RefusedEvent]) -> None:
    versions = []
    for refusal in refused:
        if refusal.published_at is not None:
            rejection = refusal.rejection
            versions.append(
                RefusedVersion(rejection.image_id, rejection.version, refusal.published_at)
            )
    if versions:
        # First in the lock order.
        share_set(conn)
        note_refused(conn, versions)


def _append_everywhere(
    conn: Connection, items: Sequence[IndexItem], inferences: Mapping[int, BatchInference]
) -> tuple[list[Message], list[RefusedEvent]]:
    """Append to every generation that receives arrivals at this moment and has an inference.

    Returns what to publish, and the items whose version is stored with other bytes.
    """
    # From here to the commit no generation begins to receive, and none becomes live.
    share_set(conn)
    generations = receiving(conn)
    missing = unloaded_live(generations, inferences.keys())
    if missing is not None:
        raise _LiveNotLoadedError(missing)
    targets = append_targets(generations, inferences.keys())
    stored = accept_images(conn, [published(item) for item in items], indexed=bool(targets))
    conflicts = []
    for item, key in zip(items, stored, strict=True):
        if key.conflict is not None:
            conflicts.append(conflict(item, key.conflict))
    messages: list[Message] = []
    for generation in targets:
        messages += _append(conn, generation.id, items, stored, inferences[generation.id])
    return messages, conflicts


def _append(
    conn: Connection,
    number: int,
    all_items: Sequence[IndexItem],
    keys: Sequence[StoredKey],
    inference: BatchInference,
) -> list[Message]:
    """Append the items whose version is stored; `keys` and the inference are in their order.

    Several versions of an image may be in one batch: all have the key of the newest one.
    """
    shape = inference.assigner.shape
    items: list[IndexItem] = []
    inferences: list[Inferred] = []
    assignments = []
    for item, inferred, key in zip(all_items, inference.inferred, keys, strict=True):
        if key.conflict is None and not key.outdated:
            items.append(item)
            inferences.append(inferred)
            assignments.append(inferred.assignment(key.image_key))
    outcomes = append(conn, number, shape, assignments)
    for item, outcome in zip(items, outcomes, strict=True):
        if outcome.status is AppendStatus.BEYOND:
            log.warning(
                "image indexed beyond the shape: all candidate leaves are full",
                image_id=item.image.image_id,
                generation=number,
            )
    return outcome_messages(items, inferences, outcomes, number, shape)
