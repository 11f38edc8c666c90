"""`sigma bench ingest`: events a second from arrival to index, beside the log alone.

And the share of an index worker's time that does not go to the model.
"""

import threading
import time
from collections.abc import Sequence

from model.network.base import SHIPPED, Base
from model.network.parts import parts_from_base
from model.network.profiles import profile
from ops.bench.comparison import Comparison
from ops.bench.fleet import ROLES, Fleet, open_fleet
from ops.bench.publisher import arrival_messages, noise_arrivals
from ops.bench.settling import events_under_way, settle, warm_up
from ops.scenes.corpus import CorpusConfig, generate
from schemas.errors import WorkFailedError
from schemas.events import ARRIVED, ImageArrived
from stream.log.event_log import EventLog
from stream.log.offsets import lag, store_offsets
from stream.log.outbox import outbox_size
from stream.manifest import read_manifest
from workers.generations.image_assigner import LoadAssigner
from workers.generations.model_assigner import ModelAssigner
from workers.index import IndexWorker
from workers.repository.connection import Connection, transaction
from workers.runtime.metrics import IndexMetrics
from workers.trainer.seeding import arrival

# Share of an index worker's time that may pass outside the model's forward.
GOAL = 0.10

# Events before the timed ones, until both workers have started.
_WARM_UP_EVENTS = 64

# Longest wait for a measurement.
_TIMEOUT_S = 300.0

# Longest wait for a new consumer's partitions.
_JOIN_TIMEOUT_S = 5.0

# Events that are polled at a time, as by the index worker.
_BATCH_EVENTS = 32

# Images of the tiny model's measurement: some fifteen full batches.
_SCENES = 480

# Seconds between two looks at what is under way, small beside a measurement.
_POLL_S = 0.1

# Longest wait for an index worker to finish its batch.
_STOP_TIMEOUT_S = 30.0


def ingest(events: int, kafka: str | None) -> list[Comparison]:
    """Compare on the log in PostgreSQL and, with a broker HOST:PORT, on Kafka."""
    comparisons = _compare("embedded log", None, events)
    if kafka:
        comparisons += _compare("Kafka", kafka, events)
    return comparisons


def _compare(log_name: str, kafka: str | None, events: int) -> list[Comparison]:
    with open_fleet(kafka) as fleet:
        arrivals = noise_arrivals(fleet.folder, events + _WARM_UP_EVENTS, 0)
        log = fleet.services.open_log()
        with fleet.services.connect("bench") as conn:
            log_rate = _log_events_per_second(log, conn, arrivals)
            rate = _events_per_second(fleet, log, conn, arrivals)
            share = _share_outside_model(fleet, log, conn)
        log.close()
    return [
        Comparison(
            name=f"arrival to appended, {log_name}, stub model",
            ours=rate,
            peer=log_rate,
            peer_name="the log alone",
            unit="events/s",
            n=events,
        ),
        Comparison(
            name=f"time outside the model, {log_name}, tiny",
            ours=share,
            peer=GOAL,
            peer_name="goal",
            unit="share of the worker's time",
            n=_SCENES,
        ),
    ]


def _log_events_per_second(
    log: EventLog, conn: Connection, arrivals: Sequence[ImageArrived]
) -> float:
    """Publish, poll and commit events without doing anything about them."""
    messages = arrival_messages(arrivals)
    with log.open_consumer("alone", [ARRIVED]) as consumer:
        # To join a group takes seconds with Kafka; they are not part of the log's speed.
        consumer.poll(timeout_s=_JOIN_TIMEOUT_S)
        began = time.monotonic()
        polled = 0
        log.publish(None, messages)
        while polled < len(messages) and time.monotonic() - began < _TIMEOUT_S:
            batch = consumer.poll(max_events=_BATCH_EVENTS, timeout_s=1)
            # As workers do it: the commit is part of what the log costs.
            with transaction(conn):
                store_offsets(log, conn, "alone", batch)
            polled += len(batch)
    return polled / (time.monotonic() - began)


def _events_per_second(
    fleet: Fleet, log: EventLog, conn: Connection, arrivals: Sequence[ImageArrived]
) -> float:
    """Pass events through one intake and one index worker."""
    for role in ROLES:
        fleet.start(role)
    warm_up(fleet, log, conn, arrivals[:_WARM_UP_EVENTS])
    rest = arrivals[_WARM_UP_EVENTS:]
    began = time.monotonic()
    log.publish(None, arrival_messages(rest))
    if not settle(fleet, log, conn, len(arrivals), _TIMEOUT_S):
        raise WorkFailedError(
            f"{len(rest)} events must be indexed within {_TIMEOUT_S:g} seconds and are not;"
            f" the workers' logs: {fleet.log_tails()}"
        )
    return len(rest) / (time.monotonic() - began)


def _share_outside_model(fleet: Fleet, log: EventLog, conn: Connection) -> float:
    """Share of an index worker's time outside the tiny model's forward passes, over scenes.

    The worker runs in this process, where its metrics can be read.
    """
    parts = parts_from_base(Base.load(SHIPPED), profile("tiny"))
    assigner = ModelAssigner(parts.sigma, parts.encoder, fleet.services.settings.retrieval)
    # Before the scenes arrive: none must go to the stub.
    _stop_index_workers(fleet)
    log.publish(None, arrival_messages(_scene_arrivals(fleet)))
    deadline = time.monotonic() + _TIMEOUT_S
    _wait_for_intake(log, conn, deadline)
    metrics = IndexMetrics()
    _index_everything(fleet, log, conn, lambda _: assigner, metrics, deadline)
    inside = _sample(metrics, "sigma_index_model_seconds_total")
    outside = _sample(metrics, "sigma_index_other_seconds_total")
    return outside / (inside + outside)


def _scene_arrivals(fleet: Fleet) -> list[ImageArrived]:
    corpus = CorpusConfig(_SCENES, seed=7)
    manifest = generate(corpus, fleet.folder / "scenes", "stream", lambda _: None)
    return [arrival(entry) for entry in read_manifest(manifest)]


def _stop_index_workers(fleet: Fleet) -> None:
    for worker in list(fleet.workers):
        if worker.role == "index":
            fleet.kill(worker)


def _wait_for_intake(log: EventLog, conn: Connection, deadline: float) -> None:
    """Wait until all arrivals are accepted, so that the index worker never waits for work."""
    while lag(log, conn, "intake", [ARRIVED]) or outbox_size(conn):
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


def _index_everything(
    fleet: Fleet,
    log: EventLog,
    conn: Connection,
    load: LoadAssigner,
    metrics: IndexMetrics,
    deadline: float,
) -> None:
    """Run an index worker in a thread until no event is under way."""
    stop = threading.Event()
    worker = IndexWorker(fleet.services.store, load, metrics)
    thread = threading.Thread(
        target=worker.run, args=(fleet.services.connect, fleet.services.open_log, stop)
    )
    thread.start()
    while events_under_way(log, conn) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    stop.set()
    thread.join(_STOP_TIMEOUT_S)


def _sample(metrics: IndexMetrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0
