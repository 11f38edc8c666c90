"""`sigma bench steady`: how soon each arrival is searchable, at half of the model's speed.

All real processes run, for minutes, with the tiny model trained on a few scenes.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ops.bench.comparison import Comparison
from ops.bench.fleet import delete_topics
from ops.bench.publisher import Publisher
from ops.bench.scene_training import CORPUS_SEED, TRAINING_IMAGES, train_on_scenes
from ops.embedded.control import down, up
from ops.embedded.database import open_services
from ops.scenes.corpus import CorpusConfig, generate
from schemas.events import ImageArrived
from schemas.service_settings import KafkaSettings
from schemas.settings import Settings
from stream.log.event_log import EventLog
from stream.manifest import read_manifest
from workers.repository.connection import Connection, migrate
from workers.runtime.services import Services
from workers.trainer.seeding import arrival

# Percentile → seconds from arrival to searchable that are the goal.
ALLOWED_S = {50: 0.5, 95: 1.0, 99: 2.0}

# Arrivals at once that show the model's speed: several seconds of work.
_BURST_IMAGES = 600

# Longest wait for the last image; those that are not searchable then are left out.
_TIMEOUT_S = 120.0

# Seconds between two looks; the times come from the database, not from the looks.
_POLL_S = 0.5

# For each searchable image, the fields of `ImageFreshness`.
_FRESHNESS = """
    SELECT
        extract(epoch FROM min(v.searchable_at) - min(v.published_at))::float8,
        extract(epoch FROM min(v.searchable_at) - (
            SELECT min(published_at) FROM image WHERE image_id = ANY(%(ids)s)
        ))::float8
    FROM visibility v JOIN image i USING (image_key)
    WHERE i.image_id = ANY(%(ids)s)
    GROUP BY v.image_key
"""


@dataclass(frozen=True, slots=True)
class ImageFreshness:
    """How soon one image was searchable."""

    seconds: float
    """From its own arrival."""
    since_first_s: float
    """From the first arrival of all images asked for."""


@dataclass(frozen=True, slots=True)
class SteadyRun:
    """What was measured."""

    burst_rate: float
    """Images a second that became searchable when all arrived at once."""
    steady_rate: float
    """Arrivals a second in the steady flow."""
    freshness_s: list[float]
    """Seconds from arrival to searchable of each image of the flow."""


def steady(seconds: float, kafka: str | None) -> list[Comparison]:
    """Measure a flow of `seconds`; the log is in PostgreSQL or at the broker `kafka`."""
    with tempfile.TemporaryDirectory(prefix="sigma-bench-") as name:
        folder = Path(name)
        broker = KafkaSettings((kafka,)) if kafka else None
        settings = Settings(home=folder / "home", source_roots=(folder,), kafka=broker)
        # The processes of `up` read their settings from the environment.
        os.environ["SIGMA_SOURCE_ROOTS"] = str(folder)
        if broker is not None:
            os.environ["SIGMA_KAFKA_BOOTSTRAP"] = ",".join(broker.bootstrap)
            delete_topics(broker)
        with open_services(settings) as services, services.connect("steady") as conn:
            run = _run(services, conn, folder, seconds)
    return _comparisons(run, "Kafka" if kafka else "embedded")


def _run(services: Services, conn: Connection, folder: Path, seconds: float) -> SteadyRun:
    migrate(conn)
    log = services.open_log()
    log.ensure_topics()
    train_on_scenes(services, folder)
    up(services.settings)
    run = _measure(log, conn, folder, seconds)
    down(services.settings)
    log.close()
    return run


def _measure(log: EventLog, conn: Connection, folder: Path, seconds: float) -> SteadyRun:
    burst = _scene_arrivals(folder / "burst", _BURST_IMAGES, start=TRAINING_IMAGES)
    Publisher(log, burst, 0).run()
    burst_s = max(image.since_first_s for image in _wait_until_searchable(conn, burst))
    burst_rate = len(burst) / burst_s
    # Half of the speed: queues stay short, so the wait is the system's own and not a backlog.
    steady_rate = burst_rate / 2
    flow = _scene_arrivals(
        folder / "flow", int(steady_rate * seconds), start=TRAINING_IMAGES + _BURST_IMAGES
    )
    Publisher(log, flow, seconds).run()
    freshness_s = [image.seconds for image in _wait_until_searchable(conn, flow)]
    return SteadyRun(burst_rate, steady_rate, freshness_s)


def _scene_arrivals(folder: Path, count: int, *, start: int) -> list[ImageArrived]:
    corpus = CorpusConfig(count, seed=CORPUS_SEED, start=start)
    manifest = generate(corpus, folder, "stream", lambda _: None)
    return [arrival(entry) for entry in read_manifest(manifest)]


def _wait_until_searchable(
    conn: Connection, events: Sequence[ImageArrived]
) -> list[ImageFreshness]:
    """Wait for all images; return the freshness of those that are searchable."""
    ids = [event.image_id for event in events]
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        rows = conn.execute(_FRESHNESS, {"ids": ids}).fetchall()
        if len(rows) == len(ids) or time.monotonic() > deadline:
            return [ImageFreshness(*row) for row in rows]
        time.sleep(_POLL_S)


def _comparisons(run: SteadyRun, log_name: str) -> list[Comparison]:
    comparisons = [
        Comparison(
            name="the model's speed in a burst",
            ours=run.burst_rate,
            peer=run.steady_rate,
            peer_name="steady rate",
            unit="images/s",
            n=_BURST_IMAGES,
        )
    ]
    label = f"arrival to searchable at {run.steady_rate:.0f} images/s, {log_name}"
    for percentile, allowed_s in ALLOWED_S.items():
        comparison = Comparison(
            name=f"{label}, p{percentile}",
            ours=float(np.percentile(run.freshness_s, percentile)),
            peer=allowed_s,
            peer_name="allowed",
            unit="s",
            n=len(run.freshness_s),
        )
        comparisons.append(comparison)
    return comparisons
