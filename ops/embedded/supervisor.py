"""The processes of one home: started together in the background, restarted when they die, stopped together."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import structlog

from ops.embedded.database import server
from schemas.errors import RefuseToStartError, UsageError, WorkFailedError
from schemas.settings import Settings
from workers.repository.connection import connect, migrate
from workers.runtime.process import announce_ready, bind, stop_on_signals
from workers.runtime.services import Services

ROLES = ("intake", "index", "query", "scheduler")
AWAITED = ("intake", "index")
"""Workers that tell when they can take work; the query worker is asked at its own address."""

_START_S = 90.0
_STOP_S = 20.0
_PAUSE_S = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Running:
    """What `sigma up` wrote about itself: the supervisor's process and where the query worker listens."""

    pid: int
    host: str
    port: int

    @property
    def url(self) -> str:
        """Address of the query worker."""
        return f"http://{self.host}:{self.port}"


def running(settings: Settings) -> Running | None:
    """The supervisor of this home, if it is alive."""
    try:
        found = Running(**json.loads(_note(settings).read_text(encoding="utf-8")))
        os.kill(found.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return found


def up(settings: Settings) -> Running:
    """Start the supervisor in the background and return when arrivals are taken and queries answered (or refused for want of a model)."""
    from ops.jobs.timetable import plans

    before = running(settings)
    if before is not None:
        return before
    # A schedule that cannot be followed is told to the person here, not to the log of a process that starts again and again.
    plans(settings)
    logs = settings.home.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with notice() as told:
        with (logs / "supervisor.log").open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "up", "--foreground"],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | _environment(settings) | told.environment,
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            found = running(settings)
            if told.heard() and found is not None and _answers(found):
                return found
            if process.poll() is not None:
                break
            time.sleep(0.1)
    if process.poll() is None:
        process.terminate()
    lines = (
        (logs / "supervisor.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    )
    raise WorkFailedError(
        f"the processes did not start; logs are in {logs}; the last line: {lines[-1] if lines else 'none'}"
    )


def down(settings: Settings) -> bool:
    """Stop the processes and the embedded database; returns whether anything ran."""
    found = running(settings)
    if found is not None:
        os.kill(found.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while running(settings) is not None:
            if time.monotonic() > deadline:
                raise WorkFailedError(
                    f"process {found.pid} does not stop within {_STOP_S:g} seconds; see its log, or kill it"
                )
            time.sleep(0.05)
    return found is not None


def supervise(settings: Settings) -> None:
    """Run all processes until a signal: the body of `sigma up --foreground`."""
    if running(settings) is not None:
        raise UsageError(
            f"the processes of {settings.home} run already; stop them with: sigma down"
        )
    stop = stop_on_signals()
    url = settings.database_url or server(settings, keep=False).get_uri()
    with connect(url, name="sigma supervisor") as conn:
        migrate(conn)
    Services(settings, url).open_log().ensure_topics()
    # Taken once and for all query workers to come: no other home can get in between, and while one is started again queries wait.
    listener = _listener(settings)
    port = int(listener.getsockname()[1])
    environment = os.environ | _environment(settings)
    environment |= {
        "SIGMA_DATABASE_URL": url,
        "SIGMA_HTTP_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "NOTIFY_SOCKET": "",
    }
    logs = settings.home.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    note = _note(settings)
    note.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        told = {role: stack.enter_context(notice()) for role in AWAITED}
        children = [
            _Child(
                role,
                environment
                | _metrics_port(settings, role)
                | (told[role].environment if role in told else {}),
                logs,
                listener if role == "query" else None,
            )
            for role in ROLES
        ]
        try:
            note.write_text(
                json.dumps(asdict(Running(os.getpid(), settings.http_host, port))), encoding="utf-8"
            )
            _watch(children, told, stop)
        finally:
            _end(children)
            listener.close()
            note.unlink(missing_ok=True)


class _Child:
    """One worker process."""

    def __init__(
        self, role: str, environment: dict[str, str], logs: Path, listener: socket.socket | None
    ) -> None:
        self.role = role
        self._inherited = () if listener is None else (listener.fileno(),)
        self._environment = environment
        self._log = logs / f"{role}.log"
        self._started = 0.0
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        self._started = time.monotonic()
        with self._log.open("ab") as file:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "ops.cli",
                    "worker",
                    self.role,
                    *(f"--listener={number}" for number in self._inherited),
                ],
                pass_fds=self._inherited,
                env=self._environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )

    def revive(self) -> None:
        """Start it again if it died, not more often than once a second."""
        code = self.process.poll()
        if code is not None and time.monotonic() - self._started > _PAUSE_S:
            log.error(
                "worker died, starting it again",
                worker=self.role,
                exit_code=code,
                log=str(self._log),
            )
            self.process = self._start()


class Notice:
    """Where a process that is being started tells that it is ready, as systemd's `sd_notify` does."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._heard = False

    @property
    def environment(self) -> dict[str, str]:
        """What the process has to find in its environment."""
        return {"NOTIFY_SOCKET": str(self._listener.getsockname())}

    def heard(self) -> bool:
        """Whether it has told so. Does not wait."""
        with suppress(BlockingIOError):
            while not self._heard:
                self._heard = b"READY=1" in self._listener.recv(4096).split(b"\n")
        return self._heard


@contextmanager
def notice() -> Iterator[Notice]:
    """A new address for a process to tell that it is ready."""
    with (
        tempfile.TemporaryDirectory(prefix="sigma-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(str(Path(folder) / "ready"))
        listener.setblocking(False)
        yield Notice(listener)


def _watch(children: Sequence[_Child], told: Mapping[str, Notice], stop: threading.Event) -> None:
    waiting = True
    while not stop.wait(0.2):
        for child in children:
            child.revive()
        if waiting and all(one.heard() for one in told.values()):
            waiting = False
            announce_ready()


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        child.process.terminate()
    deadline = time.monotonic() + _STOP_S / 2
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.1, deadline - time.monotonic()))
        if child.process.poll() is None:
            child.process.kill()
            child.process.wait()


def _note(settings: Settings) -> Path:
    return settings.home.absolute() / "run" / "supervisor.json"


def _environment(settings: Settings) -> dict[str, str]:
    return {"SIGMA_HOME": str(settings.home.absolute())}


def _metrics_port(settings: Settings, role: str) -> dict[str, str]:
    """Workers of one home share a machine, so each has its own port: the configured one for the first, the next for the second."""
    return (
        {}
        if settings.metrics_port is None
        else {"SIGMA_METRICS_PORT": str(settings.metrics_port + ROLES.index(role))}
    )


def _listener(settings: Settings) -> socket.socket:
    """Listens on the configured port if it is free; on any free one in the embedded mode, so that two homes do not meet."""
    try:
        return bind(settings.http_host, settings.http_port)
    except RefuseToStartError:
        if not settings.embedded:
            raise
        return bind(settings.http_host, 0)


def _answers(found: Running) -> bool:
    """Whether the query worker is alive and either ready or telling why it cannot be."""
    try:
        ready = httpx.get(f"{found.url}/readyz", timeout=2)
        return ready.status_code == 200 or "starting" not in ready.json()["problem"]
    except (httpx.HTTPError, ValueError, KeyError):
        return False
