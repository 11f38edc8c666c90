"""The fleet: worker processes of a benchmark on services of its own, which live in a temporary folder and end with it."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaAdminClient
from PIL import Image

from ops.bench.stub import stub_generation
from ops.embedded.database import server
from schemas.errors import RetryLaterError, WorkFailedError
from schemas.events import ACCEPTED, ARRIVED, ImageArrived
from schemas.settings import KafkaSettings, S3Settings, Settings
from stream.log.event_log import EventLog, Message, message
from stream.log.kafka_client import client_settings
from stream.log.offsets import lag
from stream.log.outbox import outbox_size
from stream.log.topics import TOPICS
from workers.repository.connection import Connection, migrate
from workers.repository.counters import totals
from workers.runtime.services import Services

ROLES = ("intake", "index")
_TRIES = 60


@dataclass(slots=True)
class Member:
    """One worker process."""

    role: str
    process: "subprocess.Popen[bytes]"


@dataclass(slots=True)
class Fleet:
    """Workers on one set of services, with the stub model or their own."""

    services: Services
    generation: int
    folder: Path
    database: Any
    """The embedded server's handle."""
    stub: bool = True
    members: list[Member] = field(default_factory=list)
    _leaving: list[Member] = field(default_factory=list)

    def start(self, role: str, **extra: str) -> Member:
        """One more worker; `extra` are further settings."""
        settings = self.services.settings
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SIGMA_")}
        environment = kept | {
            "SIGMA_HOME": str(settings.home),
            "SIGMA_DATABASE_URL": self.services.database_url,
            "SIGMA_SOURCE_ROOTS": str(self.folder),
            "SIGMA_LOG_LEVEL": "warning",
            "OMP_NUM_THREADS": "1",
        }
        if settings.kafka is not None:
            environment["SIGMA_KAFKA_BOOTSTRAP"] = ",".join(settings.kafka.bootstrap)
        if settings.s3 is not None:
            environment |= {
                "SIGMA_S3_ENDPOINT": f"{'https' if settings.s3.secure else 'http'}://{settings.s3.endpoint}",
                "SIGMA_S3_ACCESS_KEY": settings.s3.access_key,
                "SIGMA_S3_SECRET_KEY": settings.s3.secret_key,
                "SIGMA_S3_BUCKET": settings.s3.bucket,
            }
        with (self.folder / f"{role}.log").open("ab") as log:
            command = (
                ["ops.bench.stub_worker", role]
                if self.stub and role != "intake"
                else ["ops.cli", "worker", role]
            )
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environment | extra,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.members.append(Member(role, process))
        return self.members[-1]

    def end(self, member: Member, number: int) -> None:
        """Send a signal. A process that was killed is gone afterwards, any other one may take its time."""
        member.process.send_signal(number)
        self.members.remove(member)
        if number == signal.SIGKILL:
            member.process.wait()
        else:
            self._leaving.append(member)

    def revive(self) -> None:
        """Start workers again whose process ended, as `sigma up` and a container's restart policy do."""
        for member in [member for member in self.members if member.process.poll() is not None]:
            self.members.remove(member)
            self.start(member.role)

    def close(self) -> None:
        """Kill all."""
        for member in [*self.members, *self._leaving]:
            member.process.kill()
            member.process.wait()
        self.members, self._leaving = [], []

    def restart_database(self, away_s: float) -> None:
        """Stop PostgreSQL as a crash would, and start it again after some seconds."""
        self.database.stop()
        time.sleep(away_s)
        self.database.start()

    def left(self, log: EventLog, conn: Connection) -> int:
        """Events on their way."""
        return (
            lag(log, conn, "intake", [ARRIVED])
            + outbox_size(conn)
            + lag(log, conn, "index", [ACCEPTED])
        )


@contextmanager
def fleet(kafka: str | None, s3: S3Settings | None = None, *, stub: bool = True) -> Iterator[Fleet]:
    """Services of a benchmark: PostgreSQL in a temporary folder, the event log there or at `kafka`, whose topics are made anew,
    images in the same folder or in S3. With `stub`, a generation of the stub is live."""
    with tempfile.TemporaryDirectory(prefix="sigma-bench-") as name:
        folder = Path(name)
        settings = Settings(
            home=folder / "home",
            source_roots=(folder,),
            kafka=KafkaSettings((kafka,)) if kafka else None,
            s3=s3,
        )
        database = server(replace(settings, kafka=None), keep=False)
        services = Services(settings, database.get_uri())
        if services.s3 is not None:
            services.s3.create_bucket()
        if settings.kafka is not None:
            empty_topics(settings.kafka)
        log = services.open_log()
        with services.connect("bench") as conn:
            migrate(conn)
            log.ensure_topics()
            made = Fleet(services, stub_generation(conn) if stub else 0, folder, database, stub)
        log.close()
        try:
            yield made
        finally:
            made.close()
            made.database.cleanup()


def empty_topics(settings: KafkaSettings) -> None:
    """Delete the project's topics of a broker that is there for tests."""
    admin = KafkaAdminClient(**client_settings(settings))
    names = {topic.name for topic in TOPICS}
    doomed = [
        name for name in admin.list_topics() if name in names or name.startswith("sigma-intake-")
    ]
    if doomed:
        admin.delete_topics(doomed)
    deadline = time.monotonic() + 30
    while set(admin.list_topics()) & names and time.monotonic() < deadline:
        time.sleep(0.05)
    admin.close()


def pictures(folder: Path, count: int, seed: int) -> list[ImageArrived]:
    """Small images of noise, each unlike all others, as arrivals."""
    noise = np.random.default_rng(seed)
    (folder / "images").mkdir(exist_ok=True)
    events = []
    for number in range(count):
        path = folder / "images" / f"{number}.png"
        Image.fromarray(noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(
            path, compress_level=1
        )
        events.append(ImageArrived(f"image-{number:06}", path.as_uri()))
    return events


class Publisher(threading.Thread):
    """Publishes events evenly over some seconds, and again what a log that was away did not take."""

    def __init__(self, log: EventLog, events: Sequence[ImageArrived], seconds: float) -> None:
        super().__init__(daemon=True)
        self._log, self._events, self._seconds = log, events, seconds
        self.failed = 0

    def run(self) -> None:
        """Publish all, in slices of a tenth of a second."""
        slices = max(1, int(self._seconds * 10))
        began = time.monotonic()
        for number in range(slices):
            part = self._events[
                number * len(self._events) // slices : (number + 1) * len(self._events) // slices
            ]
            self._publish([message(event, event.image_id) for event in part])
            time.sleep(
                max(0.0, began + (number + 1) / 10 - time.monotonic()) if self._seconds else 0.0
            )

    def _publish(self, messages: Sequence[Message]) -> None:
        for _ in range(_TRIES):
            try:
                self._log.publish(None, messages)
                return
            except RetryLaterError:
                time.sleep(0.5)
        self.failed += len(messages)


class Gap:
    """The longest time that the number of indexed images stood still while there was work."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._count = -1
        self._moved = time.monotonic()

    def look(self, indexed: int, busy: bool) -> None:
        """Take a reading."""
        if indexed != self._count or not busy:
            self._count, self._moved = indexed, time.monotonic()
        self.longest_s = max(self.longest_s, time.monotonic() - self._moved)


def warm_up(made: Fleet, log: EventLog, conn: Connection, events: Sequence[ImageArrived]) -> None:
    """Let some events through, so that everybody has started before anything is measured."""
    log.publish(None, [message(event, event.image_id) for event in events])
    if not settle(made, log, conn, len(events), 120):
        raise WorkFailedError(
            f"the workers did not start; their logs: {[f.read_text()[-500:] for f in made.folder.glob('*.log')]}"
        )


def settle(
    made: Fleet,
    log: EventLog,
    conn: Connection,
    count: int,
    timeout_s: float,
    gap: Gap | None = None,
) -> bool:
    """Wait until that many images are indexed and nothing is on its way; `gap` watches how steadily."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        indexed, left = totals(conn, made.generation).images, made.left(log, conn)
        if indexed >= count and left == 0:
            return True
        made.revive()
        if gap is not None:
            gap.look(indexed, left > 0)
        time.sleep(0.05)
    return False


def chooser(seed: int) -> random.Random:
    """Seeded chance."""
    return random.Random(seed)
