"""The supervisor: starts all processes of one home, restarts those that die, stops them together.

It is the body of `sigma up --foreground`; `ops.embedded.control` starts it in the background.
"""

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import structlog

from ops.embedded.control import (
    WORKERS_STOP_S,
    end_leftovers,
    log_folder,
    process_environment,
)
from ops.embedded.database import EmbeddedDatabase, start_database
from ops.embedded.file_lock import HeldLock, hold
from ops.embedded.home import home_mark, run_folder
from ops.embedded.log_rotation import LogRotation
from ops.embedded.process_identity import ProcessIdentity
from ops.embedded.readiness import ReadinessListener, listen_for_readiness
from ops.embedded.supervised_worker import SupervisedWorker
from ops.embedded.supervisor_record import SupervisorRecord, record_file, supervisor_lock
from schemas.errors import RefuseToStartError, SigmaError, UsageError
from schemas.settings import Settings
from workers.query.key_ring import KeyRing
from workers.repository.connection import connect, migrate
from workers.runtime.host_check import require_keys
from workers.runtime.process import announce_progress, announce_ready, bind, stop_on_signals
from workers.runtime.services import Services

ROLES = ("intake", "index", "query", "scheduler")

# Workers that announce when they take work; the query worker is asked at its own address.
ANNOUNCING_ROLES = ("intake", "index")

WATCH_INTERVAL_S = 0.2

# Seconds between looks whether the record is still as it was written.
_RECORD_CHECK_S = 2.0

# Those who only look whether the lock is held take it for an instant.
_LOCK_WAIT_S = 2.0

log = structlog.get_logger()


def supervise(settings: Settings) -> None:
    """Run all processes of the home until a signal stops them."""
    with _only_one(settings):
        # The workers of one that was killed still have the port, for an instant.
        end_leftovers(settings)
        stop = stop_on_signals()
        database = None if settings.database_url is not None else start_database(settings)
        try:
            _supervise(settings, database, stop)
        finally:
            if database is not None:
                database.close()


def _only_one(settings: Settings) -> HeldLock:
    """Take the lock that tells everybody that this supervisor is alive, as long as it is."""
    home = settings.home.absolute()
    run_folder(home)
    lock = hold(supervisor_lock(home), wait_s=_LOCK_WAIT_S)
    if lock is None:
        raise UsageError(
            f"the processes of {settings.home} run already; stop them with: sigma down"
        )
    lock.sign()
    return lock


def _supervise(
    settings: Settings, database: EmbeddedDatabase | None, stop: threading.Event
) -> None:
    home = settings.home.absolute()
    database_url = settings.database_url if database is None else database.url
    assert database_url is not None
    _prepare(settings, database_url)
    # One listening socket for all query workers to come: no other home can take the port meanwhile,
    # and while a query worker is restarted queries wait in the socket's backlog.
    listener = _listen(settings)
    port = int(listener.getsockname()[1])
    environment = process_environment(settings) | {
        "SIGMA_DATABASE_URL": database_url,
        "SIGMA_HTTP_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        # Workers must not announce themselves to whoever waits for the supervisor.
        "NOTIFY_SOCKET": "",
    }
    record = SupervisorRecord(ProcessIdentity.current(), settings.http_host, port, home_mark(home))
    with ExitStack() as stack:
        stack.callback(listener.close)
        readiness = {role: stack.enter_context(listen_for_readiness()) for role in ANNOUNCING_ROLES}
        workers = _workers(settings, environment, readiness, listener)
        rotation = LogRotation(log_folder(settings))
        watch = _Watch(home, record, workers, list(readiness.values()), database, rotation)
        try:
            watch.run(stop)
        finally:
            _stop_workers(workers)
            with suppress(OSError):
                record_file(home).unlink(missing_ok=True)


def _prepare(settings: Settings, database_url: str) -> None:
    """Bring the schema and the topics up to date before any worker asks for them."""
    with connect(database_url, name="sigma supervisor") as conn:
        migrate(conn)
    Services(settings, database_url).open_log().ensure_topics()


def _listen(settings: Settings) -> socket.socket:
    """Listen on the configured port, or in the embedded mode on any free one if it is taken."""
    try:
        listener = bind(settings.http_host, settings.http_port)
    except RefuseToStartError:
        if not settings.embedded:
            raise
        listener = bind(settings.http_host, 0)
    try:
        # Here, where a person reads it: the worker would die of it again and again.
        require_keys(settings, listener)
        KeyRing.open(settings.access)
    except SigmaError:
        listener.close()
        raise
    return listener


def _workers(
    settings: Settings,
    environment: Mapping[str, str],
    readiness: Mapping[str, ReadinessListener],
    listener: socket.socket,
) -> list[SupervisedWorker]:
    logs = log_folder(settings)
    workers = []
    for place, role in enumerate(_roles(settings)):
        own_environment = dict(environment) | _metrics_port(settings, place)
        if role in readiness:
            own_environment |= readiness[role].environment
        # Further query workers are the last ones.
        name = role if place < len(ROLES) else f"{role}-{place - len(ROLES) + 2}"
        workers.append(
            SupervisedWorker(
                role, own_environment, logs / f"{name}.log", listener if role == "query" else None
            )
        )
    return workers


def _roles(settings: Settings) -> list[str]:
    """The role of each worker. All query workers take connections from one socket."""
    return [*ROLES, *["query"] * (settings.query_workers - 1)]


def _metrics_port(settings: Settings, place: int) -> dict[str, str]:
    """Give each worker a metrics port of its own: the configured one for the first, and so on.

    All workers of a home share one machine.
    """
    if settings.metrics_port is None:
        return {}
    return {"SIGMA_METRICS_PORT": str(settings.metrics_port + place)}


class _Watch:
    """Looks after the workers and the database. Whatever fails is tried again at the next look."""

    def __init__(
        self,
        home: Path,
        record: SupervisorRecord,
        workers: Sequence[SupervisedWorker],
        readiness: Sequence[ReadinessListener],
        database: EmbeddedDatabase | None,
        rotation: LogRotation,
    ) -> None:
        self._home = home
        self._record = record
        self._workers = workers
        self._readiness = readiness
        self._database = database
        self._rotation = rotation
        self._is_written = False
        self._looked_at_record_s = 0.0
        self._is_announced = False

    def run(self, stop: threading.Event) -> None:
        """Restart what dies, and announce once that all workers are ready; until stopped."""
        while not stop.is_set():
            self._look()
            stop.wait(WATCH_INTERVAL_S)

    def _look(self) -> None:
        for worker in self._workers:
            if worker.watch():
                self._is_written = False
        self._write()
        self._watch_database()
        self._rotation.step()
        if not self._is_announced:
            self._announce()

    def _announce(self) -> None:
        """Pass on how far the workers are, and once that all are ready."""
        for one in self._readiness:
            news = one.take_news()
            if news:
                announce_progress(news)
        if all(one.is_ready() for one in self._readiness):
            self._is_announced = True
            announce_ready()

    def _write(self) -> None:
        """Write the record, and again until there is room for it, and when it was damaged."""
        now_s = time.monotonic()
        if self._is_written and now_s - self._looked_at_record_s > _RECORD_CHECK_S:
            self._looked_at_record_s = now_s
            self._is_written = SupervisorRecord.of_home(self._home) is not None
        if self._is_written:
            return
        record = self._record.with_workers(tuple(worker.record() for worker in self._workers))
        try:
            record.write(self._home)
        except OSError as error:
            log.warning("record not written, trying again", reason=str(error))
            return
        self._is_written = True

    def _watch_database(self) -> None:
        """PostgreSQL is looked after by its keeper, and the keeper by us."""
        if self._database is None or self._database.is_kept():
            return
        log.error("the embedded PostgreSQL has lost its keeper, starting both again")
        try:
            self._database.start()
        except SigmaError as error:
            log.error("the embedded PostgreSQL does not start", reason=str(error))


def _stop_workers(workers: Sequence[SupervisedWorker]) -> None:
    """Ask all workers to end; kill those that do not in time."""
    for worker in workers:
        worker.ask_to_stop()
    deadline = time.monotonic() + WORKERS_STOP_S
    for worker in workers:
        worker.stop(max(0.1, deadline - time.monotonic()))
