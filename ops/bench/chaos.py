"""`sigma bench chaos`: workers are killed, or join and leave, while events flow.

The database afterwards must equal that of an undisturbed run.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from random import Random

from ops.bench.fleet import ROLES, Fleet, open_fleet
from ops.bench.publisher import Publisher, noise_arrivals
from ops.bench.settling import StallClock, events_under_way, settle, warm_up
from ops.cli.progress_bar import bar
from schemas.errors import WorkFailedError
from schemas.events import INDEXED, ImageArrived
from schemas.records import JsonObject
from stream.log.event_log import EventLog
from workers.repository.connection import Connection
from workers.repository.counters import recount, totals

# Seconds between two chances of a disturbance.
_TICK_S = 1.0

# Seconds between two readings of the stall clock.
_POLL_S = 0.1

# At the start, so that there is a survivor to take over from a worker that is killed.
_WORKERS_PER_ROLE = 2

# Enough for both workers of each role to get some.
_WARM_UP_EVENTS = 64

# Longest wait for the publisher beyond the time that it was given.
_PUBLISHER_TIMEOUT_S = 60.0

# Whole tables: the database of a fleet has one generation.
_PRIMARIES_OF_IMAGES = """
    SELECT image_key, count(*) FROM posting WHERE suffix IS NOT NULL GROUP BY image_key
"""

_OCCUPIED_PLACES = """
    SELECT count(DISTINCT (leaf, suffix)) FROM posting WHERE suffix IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class ChaosConfig:
    """How often what is disturbed."""

    events: int = 5000
    disturbances: int = 100
    probability: float = 0.3
    """Of a disturbance in each tick of a second."""
    churn: bool = False
    """A worker leaves in peace or a new one joins; otherwise one is killed and started again."""
    seed: int = 0
    kafka: str | None = None
    """HOST:PORT of a broker for tests; None for the log in PostgreSQL."""
    settle_s: float = 300.0
    """Longest wait for the last events after the last disturbance."""

    @property
    def seconds(self) -> float:
        """How long the disturbances are expected to take; events are published over that time."""
        return self.disturbances / self.probability * _TICK_S


@dataclass(frozen=True, slots=True)
class DisturbedRun:
    """What happened while events flowed."""

    disturbances: Mapping[str, int]
    """How often each happened, such as "index killed"."""
    seconds: float
    longest_stall_s: float
    """Longest time in which no image was indexed although there was work."""
    settled: bool


@dataclass(frozen=True, slots=True)
class IndexAudit:
    """What is in the database afterwards. The field names are keys of the JSON document."""

    indexed: int
    """Images with a primary posting."""
    lost: int
    doubled: int
    """Images with two primaries, and primaries that share leaf and suffix."""
    counters_agree: bool
    """Whether the counters equal what a scan of the rows counts."""
    indexed_events: int
    """Different events of the topic that reports indexed images."""
    indexed_events_sent_again: int
    """Repetitions of them, which consumers tolerate."""
    checksum: str
    """Of the trie, from the rows."""


@dataclass(frozen=True, slots=True)
class ChaosResult:
    """A disturbed run beside an undisturbed one."""

    events: int
    run: DisturbedRun
    audit: IndexAudit
    undisturbed_checksum: str

    @property
    def passed(self) -> bool:
        """Whether the disturbances cannot be seen in the database."""
        if self.audit.lost or self.audit.doubled:
            return False
        return self.audit.checksum == self.undisturbed_checksum

    def to_json(self) -> JsonObject:
        """The JSON document of `sigma bench chaos`."""
        return {
            "events": self.events,
            "strikes": dict(self.run.disturbances),
            "seconds": round(self.run.seconds, 1),
            "longest_gap_s": round(self.run.longest_stall_s, 2),
            "settled": self.run.settled,
            **asdict(self.audit),
            "undisturbed_checksum": self.undisturbed_checksum,
        }


def chaos(config: ChaosConfig) -> ChaosResult:
    """Run the events disturbed and undisturbed; `WorkFailedError` when the outcomes differ."""
    with open_fleet(config.kafka) as fleet:
        events = noise_arrivals(fleet.folder, config.events, config.seed)
        log = fleet.services.open_log()
        with fleet.services.connect("chaos") as conn:
            run = _run_disturbed(fleet, log, conn, events, config)
            audit = audit_index(log, conn, fleet.generation, config.events)
        log.close()
    result = ChaosResult(
        config.events,
        run,
        audit,
        _undisturbed_checksum(config.events, config.seed, config.settle_s),
    )
    if not result.passed:
        raise WorkFailedError(
            f"the disturbed run differs from the undisturbed one: {result.to_json()}"
        )
    return result


def _run_disturbed(
    fleet: Fleet,
    log: EventLog,
    conn: Connection,
    events: list[ImageArrived],
    config: ChaosConfig,
) -> DisturbedRun:
    for role in ROLES * _WORKERS_PER_ROLE:
        fleet.start(role)
    warm_up(fleet, log, conn, events[:_WARM_UP_EVENTS])
    publisher = Publisher(log, events[_WARM_UP_EVENTS:], config.seconds)
    publisher.start()
    began = time.monotonic()
    stall = StallClock()
    disturbances = _disturb(fleet, log, conn, config, stall)
    publisher.join(config.seconds + _PUBLISHER_TIMEOUT_S)
    settled = settle(fleet, log, conn, config.events, config.settle_s)
    return DisturbedRun(disturbances, time.monotonic() - began, stall.longest_s, settled)


def _disturb(
    fleet: Fleet, log: EventLog, conn: Connection, config: ChaosConfig, stall: StallClock
) -> Mapping[str, int]:
    """Disturb workers until it is enough; return how often what was done."""
    rng = Random(config.seed)
    done: Counter[str] = Counter()
    with bar("disturbances", config.disturbances) as progress:
        while done.total() < config.disturbances:
            _watch(fleet, log, conn, stall)
            if rng.random() < config.probability:
                done[_disturb_worker(fleet, rng.random(), churn=config.churn)] += 1
                progress.update(1)
    return done


def _watch(fleet: Fleet, log: EventLog, conn: Connection, stall: StallClock) -> None:
    """Read the stall clock for a tick."""
    end = time.monotonic() + _TICK_S
    while time.monotonic() < end:
        indexed = totals(conn, fleet.generation).images
        stall.observe(indexed, busy=events_under_way(log, conn) > 0)
        time.sleep(_POLL_S)


def _disturb_worker(fleet: Fleet, chance: float, *, churn: bool) -> str:
    """Disturb the worker that `chance`, in [0, 1), picks; return what was done to it."""
    # Sorted, because a restarted worker is the last in the list of the fleet.
    workers = sorted(fleet.workers, key=lambda worker: (worker.role, worker.process.pid))
    worker = workers[int(chance * len(workers))]
    if not churn:
        fleet.kill(worker)
        fleet.start(worker.role)
        return f"{worker.role} killed"
    same_role = [other for other in workers if other.role == worker.role]
    # The last worker of a role does not leave: then nothing would flow.
    if len(same_role) > 1:
        fleet.stop(worker)
        return f"{worker.role} left"
    fleet.start(worker.role)
    return f"{worker.role} joined"


# Whatever is disturbed, and however often, it is compared with the same run.
@cache
def _undisturbed_checksum(count: int, seed: int, settle_s: float) -> str:
    """The trie's checksum after the same events without disturbances, in the embedded mode."""
    # Always there: the outcome must not depend on the log either.
    with open_fleet(None) as fleet:
        events = noise_arrivals(fleet.folder, count, seed)
        log = fleet.services.open_log()
        with fleet.services.connect("chaos") as conn:
            for role in ROLES:
                fleet.start(role)
            Publisher(log, events, 0).run()
            settle(fleet, log, conn, count, settle_s)
            checksum = totals(conn, fleet.generation).checksum
        log.close()
    return checksum


def audit_index(log: EventLog, conn: Connection, generation: int, events: int) -> IndexAudit:
    """Count the rows; the counters are only compared with them."""
    counters = totals(conn, generation)
    scanned = recount(conn, generation)
    primaries = conn.execute(_PRIMARIES_OF_IMAGES).fetchall()
    places = conn.execute(_OCCUPIED_PLACES).fetchone()
    occupied = int(places[0]) if places else 0
    # Both break what the schema promises: one primary an image, one image a place.
    twice_posted = 0
    for _, count in primaries:
        twice_posted += count > 1
    deliveries = _indexed_deliveries(log)
    return IndexAudit(
        indexed=len(primaries),
        lost=events - len(primaries),
        doubled=twice_posted + len(primaries) - occupied,
        counters_agree=(counters.images, counters.checksum) == (scanned.images, scanned.checksum),
        indexed_events=len(deliveries),
        indexed_events_sent_again=deliveries.total() - len(deliveries),
        checksum=scanned.checksum,
    )


def _indexed_deliveries(log: EventLog) -> Counter[str]:
    """How often each event is in the topic that reports indexed images, by CloudEvents id."""
    # The relay may forward an event twice, with the same id.
    deliveries: Counter[str] = Counter()
    for (topic, partition), end in log.end_offsets([INDEXED]).items():
        for event in log.read(topic, partition, limit=end):
            deliveries[event.headers["ce_id"]] += 1
    return deliveries
