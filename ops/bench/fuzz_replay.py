"""Shuffled replays: intake and index worker in one thread, reading topics and partitions by lot."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

from ops.bench.stub import StubAssigner
from schemas.errors import RejectInputError
from stream.images.decode_pool import DecodePool
from stream.images.decode_protocol import LONGEST_SIDE, NormalizedImage
from stream.log.event_log import Batch, Event, EventLog, Partition
from stream.log.offsets import committed, rewind
from workers import index, intake
from workers.index import IndexWorker
from workers.intake import Intake
from workers.repository.connection import Connection
from workers.repository.generations import receiving
from workers.runtime.metrics import IndexMetrics, IntakeMetrics
from workers.runtime.services import Services

# Most events of one transaction, as the workers have it.
_BATCH_EVENTS = 32

# Partitions that one batch reads at most: deletions and arrivals meet in one transaction.
_BATCH_PARTITIONS = 3

# How much faster than another a partition is read at most.
_SPEEDS = (1, 4, 40)


class RememberingPool(DecodePool):
    """A decode pool that answers for bytes which it has seen from memory.

    A replay is about order, and no picture decodes otherwise the second time. For one thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[bytes, NormalizedImage | RejectInputError] = {}

    def decode(self, data: bytes, longest_side: int = LONGEST_SIDE) -> NormalizedImage:
        """See `DecodePool.decode`. A replay has one size."""
        digest = hashlib.sha256(data).digest()
        known = self._known.get(digest)
        if known is None:
            try:
                known = super().decode(data, longest_side)
            except RejectInputError as refusal:
                known = refusal
            self._known[digest] = known
        if isinstance(known, RejectInputError):
            raise RejectInputError(known.code, str(known))
        return known


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Events that a group has not read of one partition."""

    group: str
    partition: Partition
    first: int


def replay(services: Services, conn: Connection, decoder: DecodePool, number: int) -> int:
    """Read all that waits, in an order drawn from seed `number`; return how many batches."""
    dice = Random(number)
    log = services.open_log()
    worker = IndexWorker(services.store, StubAssigner.of, IndexMetrics())
    for generation in receiving(conn):
        worker.models.wait(generation)
    speeds: dict[Partition, int] = {}
    batches = 0
    with ThreadPoolExecutor(1) as threads:
        reader = Intake(services.store, services.sources.read, decoder, threads, IntakeMetrics())
        while waiting := _waiting(log, conn):
            for place in waiting:
                speeds.setdefault(place.partition, dice.choice(_SPEEDS))
            weights = [speeds[place.partition] for place in waiting]
            first = dice.choices(waiting, weights)[0]
            same_group = [place for place in waiting if place.group == first.group]
            others = dice.sample(
                same_group, min(len(same_group), dice.randrange(_BATCH_PARTITIONS))
            )
            batch = _batch(log, dice, [first, *(place for place in others if place != first)])
            work = reader.process if first.group == intake.GROUP else worker.handle
            work(conn, log, batch)
            batches += 1
    worker.models.close()
    log.close()
    return batches


def rewind_all(services: Services, conn: Connection) -> None:
    """Send both groups back to the begin of their topics."""
    log = services.open_log()
    for group, topics in ((intake.GROUP, intake.TOPICS), (index.GROUP, index.TOPICS)):
        for topic in topics:
            rewind(log, conn, group, topic)
    log.close()


def _waiting(log: EventLog, conn: Connection) -> list[_Waiting]:
    waiting = []
    for group, topics in ((intake.GROUP, intake.TOPICS), (index.GROUP, index.TOPICS)):
        done = committed(log, conn, group, topics)
        for partition, end in sorted(log.end_offsets(topics).items()):
            first = done.get(partition, 0)
            if first < end:
                waiting.append(_Waiting(group, partition, first))
    return waiting


def _batch(log: EventLog, dice: Random, places: Sequence[_Waiting]) -> Batch:
    events: list[Event] = []
    positions = {}
    for place in places:
        limit = dice.randint(1, _BATCH_EVENTS)
        read = log.read(*place.partition, first=place.first, limit=limit)
        events += read
        positions[place.partition] = (place.first, read[-1].offset + 1)
    return Batch(tuple(events), positions)
