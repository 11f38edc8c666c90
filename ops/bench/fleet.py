"""The fleet: worker processes on services of their own.

The services live in a temporary folder and end with the benchmark.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kafka import KafkaAdminClient

from ops.bench.stub import stub_generation
from ops.embedded.database import EmbeddedDatabase, start_database
from ops.embedded.isolation import ISOLATED_ENVIRONMENT, python_module
from schemas.service_settings import KafkaSettings, S3Settings
from schemas.settings import Settings
from stream.log.kafka_client import client_settings
from stream.log.topics import TOPICS
from workers.repository.connection import migrate
from workers.runtime.services import Services

# The workers that every benchmark of the stream needs.
ROLES = ("intake", "index")

# Longest wait for a broker to delete topics, which it does in the background.
_DELETE_TIMEOUT_S = 30.0

# Seconds between two looks at the topics that are left.
_DELETE_POLL_S = 0.05

# Characters of a worker's log that an error message quotes.
_LOG_TAIL = 500


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """One worker."""

    role: str
    process: "subprocess.Popen[bytes]"


@dataclass(slots=True)
class Fleet:
    """Workers on one set of services, with the stub model or with a trained one."""

    services: Services
    folder: Path
    """Of everything that the benchmark writes, logs of the workers included."""
    database: EmbeddedDatabase
    """The use of the embedded PostgreSQL."""
    generation: int = 0
    """The live generation; 0 until one was trained."""
    stub: bool = True
    workers: list[WorkerProcess] = field(default_factory=list)
    _leaving: list[WorkerProcess] = field(default_factory=list)
    """Workers that were asked to stop and may still run."""

    def start(self, role: str, **settings: str) -> None:
        """Start one more worker; `settings` are environment variables for it alone."""
        arguments: tuple[str, ...] = ("ops.cli", "worker", role)
        # The intake worker needs no model.
        if self.stub and role != "intake":
            arguments = ("ops.bench.stub_worker", role)
        # Appended: the workers of a role share a log, and so do those that are started again.
        with (self.folder / f"{role}.log").open("ab") as log:
            process = subprocess.Popen(
                python_module(*arguments),
                env=self._environment() | settings,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.workers.append(WorkerProcess(role, process))

    def kill(self, worker: WorkerProcess) -> None:
        """Kill a worker; it has ended afterwards."""
        # It cannot catch SIGKILL, so it neither finishes its batch nor leaves its consumer group.
        worker.process.kill()
        worker.process.wait()
        self.workers.remove(worker)

    def stop(self, worker: WorkerProcess) -> None:
        """Ask a worker to stop; it may take its time."""
        worker.process.send_signal(signal.SIGTERM)
        self.workers.remove(worker)
        self._leaving.append(worker)

    def ended(self) -> list[WorkerProcess]:
        """Workers that ended by themselves."""
        return [worker for worker in self.workers if worker.process.poll() is not None]

    def restart_ended(self) -> None:
        """Start workers that ended again, as `sigma up` and a container's restart policy do."""
        for worker in self.ended():
            self.workers.remove(worker)
            self.start(worker.role)

    def restart_database(self, outage_s: float) -> None:
        """Stop PostgreSQL as a crash would, and start it again after some seconds."""
        self.database.stop()
        time.sleep(outage_s)
        self.database.start()

    def log_tails(self) -> dict[str, str]:
        """The end of each role's log, for an error message."""
        tails = {}
        for file in sorted(self.folder.glob("*.log")):
            tails[file.stem] = file.read_text(errors="replace")[-_LOG_TAIL:]
        return tails

    def close(self) -> None:
        """Kill all workers and stop the database."""
        # Before the database: workers without one would only fill their logs.
        for worker in [*self.workers, *self._leaving]:
            worker.process.kill()
            worker.process.wait()
        self.workers.clear()
        self._leaving.clear()
        self.database.close()

    def _environment(self) -> dict[str, str]:
        """The environment of all workers: only these settings, whatever the user's own are."""
        settings = self.services.settings
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SIGMA_")
        }
        environment |= ISOLATED_ENVIRONMENT
        environment["SIGMA_HOME"] = str(settings.home)
        environment["SIGMA_DATABASE_URL"] = self.services.database_url
        environment["SIGMA_SOURCE_ROOTS"] = str(self.folder)
        environment["SIGMA_LOG_LEVEL"] = "warning"
        # Threads of several workers would wait for each other's cores.
        environment["OMP_NUM_THREADS"] = "1"
        if settings.kafka is not None:
            environment["SIGMA_KAFKA_BOOTSTRAP"] = ",".join(settings.kafka.bootstrap)
        if settings.s3 is not None:
            environment |= _s3_environment(settings.s3)
        return environment


@contextmanager
def open_fleet(
    kafka: str | None, s3: S3Settings | None = None, *, stub: bool = True
) -> Iterator[Fleet]:
    """Open services without workers; everything ends with the block.

    PostgreSQL is in a temporary folder, the event log in it or at the broker `kafka` (HOST:PORT),
    whose topics of this project are deleted first, images in the folder or in S3. With `stub`, a
    generation of the stub is live.
    """
    with tempfile.TemporaryDirectory(prefix="sigma-bench-") as name:
        folder = Path(name)
        settings = Settings(
            home=folder / "home",
            source_roots=(folder,),
            kafka=KafkaSettings((kafka,)) if kafka else None,
            s3=s3,
        )
        # Used until the end: the server stops with its last user.
        database = start_database(settings)
        services = Services(settings, database.url)
        generation = _prepare(services, stub=stub)
        fleet = Fleet(services, folder, database, generation, stub)
        try:
            yield fleet
        finally:
            fleet.close()


def _prepare(services: Services, *, stub: bool) -> int:
    """Create bucket, topics and tables; return the stub's generation, 0 without the stub."""
    if services.s3 is not None:
        services.s3.create_bucket()
    # What an earlier run left in the broker would count as this one's.
    if services.settings.kafka is not None:
        delete_topics(services.settings.kafka)
    log = services.open_log()
    with services.connect("bench") as conn:
        migrate(conn)
        log.ensure_topics()
        generation = stub_generation(conn) if stub else 0
    log.close()
    return generation


def delete_topics(settings: KafkaSettings) -> None:
    """Delete the project's topics of a broker that is there for tests; wait until they are gone."""
    admin = KafkaAdminClient(**client_settings(settings))
    names = {topic.name for topic in TOPICS}
    existing = []
    for name in admin.list_topics():
        # faust adds topics of its own, named after the intake worker's application.
        if name in names or name.startswith("sigma-intake-"):
            existing.append(name)
    if existing:
        admin.delete_topics(existing)
    deadline = time.monotonic() + _DELETE_TIMEOUT_S
    while set(admin.list_topics()) & names and time.monotonic() < deadline:
        time.sleep(_DELETE_POLL_S)
    admin.close()


def _s3_environment(settings: S3Settings) -> dict[str, str]:
    scheme = "https" if settings.secure else "http"
    return {
        "SIGMA_S3_ENDPOINT": f"{scheme}://{settings.endpoint}",
        "SIGMA_S3_ACCESS_KEY": settings.access_key,
        "SIGMA_S3_SECRET_KEY": settings.secret_key,
        "SIGMA_S3_BUCKET": settings.bucket,
    }
