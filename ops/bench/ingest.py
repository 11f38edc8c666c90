"""`sigma bench ingest`: events a second from arrival to appended, and how much of a worker's time is not the model's."""

import threading
import time
from collections.abc import Sequence

from model.network.base import SHIPPED, Base
from model.network.parts import parts_from_base
from model.network.profiles import profile
from ops.bench.fleet import ROLES, Fleet, fleet, pictures, settle, warm_up
from ops.bench.rows import Row
from ops.scenes.corpus import CorpusConfig, generate
from schemas.errors import WorkFailedError
from schemas.events import ARRIVED, ImageArrived
from stream.log.event_log import EventLog, message
from stream.log.offsets import lag, store_offsets
from stream.log.outbox import outbox_size
from stream.manifest import read_manifest
from workers.generations.model_assigner import ModelAssigner
from workers.index import IndexWorker
from workers.repository.connection import Connection, transaction
from workers.runtime.metrics import IndexMetrics
from workers.trainer.seeding import arrival

GOAL = 0.10
"""Share of an index worker's time that may pass outside the model's forward."""

_WARM, _PATIENCE_S = 64, 300.0


def ingest(events: int, kafka: str | None) -> list[Row]:
    """Rows for the log in Postgres and, with a broker, for Kafka."""
    rows = []
    for name, address in [("embedded log", None), *([("Kafka", kafka)] if kafka else [])]:
        with fleet(address) as made:
            arrivals = pictures(made.folder, events + _WARM, 0)
            log = made.services.open_log()
            with made.services.connect("bench") as conn:
                alone = _log_alone(log, conn, arrivals)
                rate = _through(made, log, conn, arrivals)
                rows.append(
                    Row(
                        f"arrival to appended, {name}, stub model",
                        rate,
                        alone,
                        "the log alone",
                        "events/s",
                        events,
                    )
                )
                share, count = _share(made, log, conn)
                rows.append(
                    Row(
                        f"time outside the model, {name}, tiny",
                        share,
                        GOAL,
                        "goal",
                        "share of the worker's time",
                        count,
                    )
                )
            log.close()
    return rows


def _through(
    made: Fleet, log: EventLog, conn: Connection, arrivals: Sequence[ImageArrived]
) -> float:
    """Events a second through one intake and one index worker."""
    for role in ROLES:
        made.start(role)
    warm_up(made, log, conn, arrivals[:_WARM])
    rest = arrivals[_WARM:]
    began = time.monotonic()
    log.publish(None, [message(event, event.image_id) for event in rest])
    if not settle(made, log, conn, len(arrivals), _PATIENCE_S):
        raise WorkFailedError(
            f"{len(rest)} events did not get through within {_PATIENCE_S:g} seconds"
        )
    return len(rest) / (time.monotonic() - began)


def _log_alone(log: EventLog, conn: Connection, arrivals: Sequence[ImageArrived]) -> float:
    """Events a second published, polled and committed, with nothing done about them."""
    made = [message(event, event.image_id) for event in arrivals]
    with log.open_consumer("alone", [ARRIVED]) as consumer:
        consumer.poll(timeout_s=5)
        began, count = time.monotonic(), 0
        log.publish(None, made)
        while count < len(made) and time.monotonic() - began < _PATIENCE_S:
            batch = consumer.poll(max_events=32, timeout_s=1)
            with transaction(conn):
                store_offsets(log, conn, "alone", batch)
            count += len(batch)
    return count / (time.monotonic() - began)


def _share(made: Fleet, log: EventLog, conn: Connection) -> tuple[float, int]:
    """Share of an index worker's time outside the forward passes of the tiny model, over rendered scenes, and how many."""
    count = 480
    parts = parts_from_base(Base.load(SHIPPED), profile("tiny"))
    manifest = generate(
        CorpusConfig(count, seed=7), made.folder / "scenes", "stream", lambda _: None
    )
    for member in [member for member in made.members if member.role == "index"]:
        made.end(member, 9)
    log.publish(
        None, [message(event, event.image_id) for event in map(arrival, read_manifest(manifest))]
    )
    deadline = time.monotonic() + _PATIENCE_S
    while (
        lag(log, conn, "intake", [ARRIVED]) or outbox_size(conn)
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    metrics, stop = IndexMetrics(), threading.Event()
    worker = IndexWorker(
        made.services.store, lambda _: ModelAssigner(parts.sigma, parts.encoder, 3), metrics
    )
    thread = threading.Thread(
        target=worker.run, args=(made.services.connect, made.services.open_log, stop)
    )
    thread.start()
    while made.left(log, conn) and time.monotonic() < deadline:
        time.sleep(0.1)
    stop.set()
    thread.join(30)
    inside, outside = (
        counter._value.get() for counter in (metrics.model_seconds, metrics.other_seconds)
    )
    return outside / (inside + outside), count
