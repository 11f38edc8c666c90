"""The supervisor: starts all processes of one home, restarts those that die, stops them together.

It is the body of `sigma up --foreground`; `ops.embedded.control` starts it in the background.
"""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import structlog

from ops.embedded.control import (
    STOP_TIMEOUT_S,
    RunningSupervisor,
    log_folder,
    process_environment,
    running,
    supervisor_file,
)
from ops.embedded.database import server
from ops.embedded.isolation import python_module
from ops.embedded.readiness import ReadinessListener, listen_for_readiness
from schemas.errors import RefuseToStartError, UsageError
from schemas.settings import Settings
from workers.repository.connection import connect, migrate
from workers.runtime.process import announce_ready, bind, stop_on_signals
from workers.runtime.services import Services

ROLES = ("intake", "index", "query", "scheduler")

# Workers that announce when they take work; the query worker is asked at its own address.
ANNOUNCING_ROLES = ("intake", "index")

# Shortest time between two starts of one worker: a crash loop must not fill the machine.
RESTART_PAUSE_S = 1.0

WATCH_INTERVAL_S = 0.2

log = structlog.get_logger()


def supervise(settings: Settings) -> None:
    """Run all processes of the home until a signal stops them."""
    if running(settings) is not None:
        raise UsageError(
            f"the processes of {settings.home} run already; stop them with: sigma down"
        )
    stop = stop_on_signals()
    database_url = settings.database_url or server(settings, keep=False).get_uri()
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
    with ExitStack() as stack:
        readiness = {role: stack.enter_context(listen_for_readiness()) for role in ANNOUNCING_ROLES}
        workers = _start_workers(settings, environment, readiness, listener)
        try:
            RunningSupervisor(os.getpid(), settings.http_host, port).write(settings)
            _watch(workers, list(readiness.values()), stop)
        finally:
            _stop_workers(workers)
            listener.close()
            supervisor_file(settings).unlink(missing_ok=True)


def _prepare(settings: Settings, database_url: str) -> None:
    """Bring the schema and the topics up to date before any worker asks for them."""
    with connect(database_url, name="sigma supervisor") as conn:
        migrate(conn)
    Services(settings, database_url).open_log().ensure_topics()


def _listen(settings: Settings) -> socket.socket:
    """Listen on the configured port, or in the embedded mode on any free one if it is taken."""
    try:
        return bind(settings.http_host, settings.http_port)
    except RefuseToStartError:
        if not settings.embedded:
            raise
        return bind(settings.http_host, 0)


def _start_workers(
    settings: Settings,
    environment: Mapping[str, str],
    readiness: Mapping[str, ReadinessListener],
    listener: socket.socket,
) -> list["_WorkerProcess"]:
    logs = log_folder(settings)
    workers = []
    for role in ROLES:
        own_environment = dict(environment) | _metrics_port(settings, role)
        if role in readiness:
            own_environment |= readiness[role].environment
        worker = _WorkerProcess(
            role, own_environment, logs / f"{role}.log", listener if role == "query" else None
        )
        worker.start()
        workers.append(worker)
    return workers


def _metrics_port(settings: Settings, role: str) -> dict[str, str]:
    """Give each worker a metrics port of its own: the configured one for the first role, and so on.

    All workers of a home share one machine.
    """
    if settings.metrics_port is None:
        return {}
    return {"SIGMA_METRICS_PORT": str(settings.metrics_port + ROLES.index(role))}


class _WorkerProcess:
    """One worker: how to start it, and its current process."""

    process: "subprocess.Popen[bytes]"

    def __init__(
        self,
        role: str,
        environment: Mapping[str, str],
        log_file: Path,
        listener: socket.socket | None,
    ) -> None:
        self.role = role
        self._environment = environment
        self._log_file = log_file
        self._inherited = () if listener is None else (listener.fileno(),)
        """File descriptors that the worker finds open under the same numbers."""
        self._started_at = 0.0

    def start(self) -> None:
        """Start the process."""
        self._started_at = time.monotonic()
        options = [f"--listener={number}" for number in self._inherited]
        with self._log_file.open("ab") as file:
            self.process = subprocess.Popen(
                python_module("ops.cli", "worker", self.role, *options),
                pass_fds=self._inherited,
                env=self._environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )

    def restart_if_dead(self) -> None:
        """Start the process again if it has ended, at most once in `RESTART_PAUSE_S`."""
        exit_code = self.process.poll()
        if exit_code is None or time.monotonic() - self._started_at <= RESTART_PAUSE_S:
            return
        log.error(
            "worker died, restarting it",
            worker=self.role,
            exit_code=exit_code,
            log=str(self._log_file),
        )
        self.start()


def _watch(
    workers: Sequence[_WorkerProcess],
    readiness: Sequence[ReadinessListener],
    stop: threading.Event,
) -> None:
    """Restart what dies, and announce once that all workers are ready; until stopped."""
    announced = False
    while not stop.wait(WATCH_INTERVAL_S):
        for worker in workers:
            worker.restart_if_dead()
        if not announced and all(listener.is_ready() for listener in readiness):
            announced = True
            announce_ready()


def _stop_workers(workers: Sequence[_WorkerProcess]) -> None:
    """Ask all workers to end; kill those that do not within half of what `sigma down` waits."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S / 2
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.1, deadline - time.monotonic()))
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()
