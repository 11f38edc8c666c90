"""`sigma bench steady`: arrivals at half of the model's speed for minutes, with all real processes: how soon is each searchable?"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.network.profiles import profile
from ops.bench.fleet import Publisher, empty_topics
from ops.bench.rows import Row
from ops.cli.progress_bar import bar
from ops.embedded.control import down, up
from ops.embedded.database import open_services
from ops.scenes.corpus import CorpusConfig, generate
from schemas.events import ImageArrived
from schemas.settings import KafkaSettings, Settings
from stream.manifest import read_manifest
from workers.repository.connection import Connection, migrate
from workers.trainer.request import TrainRequest
from workers.trainer.seeding import arrival
from workers.trainer.trainer import train

_TRAINED, _BURST, _PATIENCE_S = 240, 600, 120.0
_ALLOWED_S = {50: 0.5, 95: 1.0, 99: 2.0}


def steady(seconds: float, kafka: str | None) -> list[Row]:
    """Percentiles of seconds from arrival to searchable. The model is the tiny one, trained on a few scenes."""
    with tempfile.TemporaryDirectory(prefix="sigma-bench-") as name:
        folder = Path(name)
        broker = KafkaSettings((kafka,)) if kafka else None
        settings = Settings(home=folder / "home", source_roots=(folder,), kafka=broker)
        # What the processes started below read.
        os.environ["SIGMA_SOURCE_ROOTS"] = str(folder)
        if broker is not None:
            os.environ["SIGMA_KAFKA_BOOTSTRAP"] = ",".join(broker.bootstrap)
            empty_topics(broker)
        with open_services(settings) as found, found.connect("steady") as conn:
            migrate(conn)
            found.open_log().ensure_topics()
            seen = read_manifest(
                generate(CorpusConfig(_TRAINED, seed=3), folder / "seen", "train", lambda _: None)
            )
            train(found, seen, TrainRequest(profile("tiny"), adapt="never"), bar)
            up(settings)
            log = found.open_log()
            burst = _scenes(folder / "burst", _BURST, _TRAINED)
            Publisher(log, burst, 0).run()
            speed = len(burst) / max(_seconds(conn, burst, spread=True))
            rate = speed / 2
            flow = _scenes(folder / "flow", int(rate * seconds), _TRAINED + _BURST)
            Publisher(log, flow, seconds).run()
            waits = _seconds(conn, flow, spread=False)
            down(settings)
            log.close()
    label = f"arrival to searchable at {rate:.0f} images/s, {'Kafka' if kafka else 'embedded'}"
    return [
        Row("the model's speed in a burst", speed, rate, "steady rate", "images/s", len(burst)),
        *(
            Row(
                f"{label}, p{q}",
                float(np.percentile(waits, q)),
                allowed,
                "allowed",
                "s",
                len(waits),
            )
            for q, allowed in _ALLOWED_S.items()
        ),
    ]


def _scenes(folder: Path, count: int, start: int) -> list[ImageArrived]:
    manifest = generate(CorpusConfig(count, seed=3, start=start), folder, "stream", lambda _: None)
    return [replace(arrival(entry)) for entry in read_manifest(manifest)]


def _seconds(conn: Connection, events: Sequence[ImageArrived], *, spread: bool) -> list[float]:
    """Seconds from arrival to searchable of each event, waited for; with `spread`, from the first arrival of all."""
    ids = [event.image_id for event in events]
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        found = conn.execute(
            """SELECT extract(epoch FROM min(v.searchable_at) - min(v.published_at))::float8,
                      extract(epoch FROM min(v.searchable_at) - (SELECT min(published_at) FROM image WHERE image_id = ANY(%(ids)s)))::float8
               FROM visibility v JOIN image i USING (image_key) WHERE i.image_id = ANY(%(ids)s) GROUP BY v.image_key""",
            {"ids": ids},
        ).fetchall()
        if len(found) == len(ids) or time.monotonic() > deadline:
            return [row[1] if spread else row[0] for row in found]
        time.sleep(0.5)
