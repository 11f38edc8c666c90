"""The whole line in one thread: intake and index worker on PostgreSQL's log, with a stub model.

Its steps are taken one at a time, so that a test decides what is read before what.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ops.bench.stub import StubAssigner, stub_generation
from schemas.events import ACCEPTED, ARRIVED, DELETED
from stream.images.decode_pool import DecodePool
from stream.log.dead_letters import DeadLetter, dead_letters
from stream.log.event_log import Batch, Message
from stream.log.offsets import lag
from tests.stubs import services_at
from workers import index, intake
from workers.generations.image_assigner import LoadAssigner
from workers.index import IndexWorker
from workers.intake import Intake
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.counters import recount, totals
from workers.runtime.metrics import IndexMetrics, IntakeMetrics
from workers.runtime.services import Services

# Pixels of a picture's side.
SIDE = 8


class Line:
    """Events in, postings out. Built by `open_line`."""

    def __init__(
        self, services: Services, conn: Connection, pool: DecodePool, load: LoadAssigner
    ) -> None:
        self.services = services
        self.conn = conn
        live = generations.live_number(conn)
        self.generation = stub_generation(conn) if live is None else live
        self._pool = pool
        self._load = load
        self._start()

    def _start(self) -> None:
        services = self.services
        self.log = services.open_log()
        self.log.ensure_topics()
        self.intake = Intake(
            services.store,
            services.sources.read,
            self._pool,
            ThreadPoolExecutor(1),
            IntakeMetrics(),
        )
        self.index_metrics = IndexMetrics()
        self.worker = IndexWorker(services.store, self._load, self.index_metrics)
        for generation in generations.receiving(self.conn):
            if generation.state == "live":
                self.worker.models.wait(generation)

    def restart(self) -> None:
        """End both workers and start new ones, which know what the database has."""
        self.close()
        self._start()

    def picture(self, name: str, shade: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> str:
        """Write a picture file and return its address."""
        path = self.services.home / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng([shade, *name.encode()])
        pixels = noise.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        path.write_bytes(data.getvalue())
        return path.as_uri()

    def send(self, topic: str, document: Mapping[str, Any] | bytes, key: str | None = None) -> None:
        """Publish an event as a foreign producer would: any bytes under any key."""
        value = document if isinstance(document, bytes) else json.dumps(document).encode()
        if key is None:
            key = str(document["image_id"]) if isinstance(document, Mapping) else "key"
        self.log.publish(None, [Message(topic, key, value)])

    def arrive(self, name: str, version: int = 1, shade: int = 0, **more: Any) -> None:
        """Publish an arrival with a picture of its own."""
        uri = more.pop("uri", None) or self.picture(name, shade)
        self.send(ARRIVED, {"image_id": name, "uri": uri, "version": version, **more})

    def delete(self, name: str, version: int | None = None) -> None:
        """Publish a deletion."""
        self.send(DELETED, {"image_id": name} | ({"version": version} if version else {}))

    def take_in(self, topics: Sequence[str] = intake.TOPICS) -> None:
        """Let intake work on everything that waits in the topics."""
        for batch in self._batches(intake.GROUP, topics):
            self.intake.process(self.conn, self.log, batch)

    def index(self) -> None:
        """Let the index worker work on everything that waits."""
        for batch in self._batches(index.GROUP, [ACCEPTED]):
            self.worker.handle(self.conn, self.log, batch)

    def run(self) -> None:
        """Work on everything."""
        self.take_in()
        self.index()

    def searchable(self) -> dict[str, int]:
        """Images in the trie, with their versions."""
        rows = self.conn.execute(
            "SELECT image_id, version FROM posting JOIN image USING (image_key)"
            " WHERE generation = %s AND suffix IS NOT NULL",
            (self.generation,),
        ).fetchall()
        assert recount(self.conn, self.generation).checksum == self.checksum
        return dict(rows)

    @property
    def checksum(self) -> str:
        """The trie's checksum."""
        return totals(self.conn, self.generation).checksum

    def letters(self) -> dict[str, DeadLetter]:
        """Dead letters by image id."""
        return {letter.image_id: letter for letter in dead_letters(self.log)}

    def close(self) -> None:
        """Close the log and the threads."""
        self.worker.models.close()
        self.intake.threads.shutdown()
        self.log.close()

    def _batches(self, group: str, topics: Sequence[str]) -> Iterator[Batch]:
        with self.log.open_consumer(group, topics) as consumer:
            while lag(self.log, self.conn, group, topics):
                # Joining a group of Kafka takes a while.
                yield consumer.poll(max_events=32, timeout_s=1)


@contextmanager
def open_line(
    database: str, home: Path, conn: Connection, load: LoadAssigner = StubAssigner.of
) -> Iterator[Line]:
    """A line on a test's database, with pictures and store below `home`."""
    with line_of(services_at(database, home), conn, load) as line:
        yield line


@contextmanager
def line_of(
    services: Services, conn: Connection, load: LoadAssigner = StubAssigner.of
) -> Iterator[Line]:
    """A line on the services of an installation, whatever they are."""
    with DecodePool(services.limits, processes=1) as pool:
        line = Line(services, conn, pool, load)
        try:
            yield line
        finally:
            line.close()
