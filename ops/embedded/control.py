"""Starting and stopping the processes of one home: `sigma up` and `sigma down`."""

import json
import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from ops.embedded.isolation import ISOLATED_ENVIRONMENT, python_module
from ops.embedded.readiness import ReadinessListener, listen_for_readiness
from schemas.errors import WorkFailedError
from schemas.settings import Settings

# Longest wait for the first readiness: a model has to be loaded, on two busy cores.
START_TIMEOUT_S = 90.0

# Longest wait for the supervisor's end; it gives its own workers half of that.
STOP_TIMEOUT_S = 20.0

START_POLL_S = 0.1
STOP_POLL_S = 0.05

# Longest wait for one answer of `/readyz`.
READINESS_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class RunningSupervisor:
    """What a supervisor writes about itself: its process and where the query worker listens."""

    pid: int
    host: str
    port: int

    @property
    def url(self) -> str:
        """Address of the query worker."""
        return f"http://{self.host}:{self.port}"

    def write(self, settings: Settings) -> None:
        """Write the home's file about its supervisor."""
        file = supervisor_file(settings)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")


def supervisor_file(settings: Settings) -> Path:
    """Where a home's supervisor writes about itself."""
    return settings.home.absolute() / "run" / "supervisor.json"


def log_folder(settings: Settings) -> Path:
    """The folder of the processes' logs; it exists afterwards."""
    folder = settings.home.absolute() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def process_environment(settings: Settings) -> dict[str, str]:
    """The environment of every process of a home."""
    home = {"SIGMA_HOME": str(settings.home.absolute())}
    return os.environ | home | ISOLATED_ENVIRONMENT


def running(settings: Settings) -> RunningSupervisor | None:
    """Return the supervisor of this home if it is alive."""
    try:
        document = json.loads(supervisor_file(settings).read_text(encoding="utf-8"))
        supervisor = RunningSupervisor(**document)
        # Signal 0 only asks whether the process exists.
        os.kill(supervisor.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return supervisor


def up(settings: Settings) -> RunningSupervisor:
    """Start the supervisor in the background; return when arrivals are taken and queries answered.

    Without a live generation queries are refused with the reason, which counts as answered.
    """
    from ops.jobs.timetable import job_schedules

    supervisor = running(settings)
    if supervisor is not None:
        return supervisor
    # A schedule that cannot be followed is refused here, where a person reads it. In the scheduler
    # it would end up in the log of a process that is restarted again and again.
    job_schedules(settings)
    log_file = log_folder(settings) / "supervisor.log"
    with listen_for_readiness() as readiness:
        process = _start_in_background(settings, log_file, readiness.environment)
        supervisor = _wait_until_ready(settings, process, readiness)
    if supervisor is not None:
        return supervisor
    if process.poll() is None:
        process.terminate()
    raise WorkFailedError(
        f"the processes did not start within {START_TIMEOUT_S:g} seconds; logs are in"
        f" {log_file.parent}; the last line: {_last_line(log_file)}"
    )


def _start_in_background(
    settings: Settings, log_file: Path, environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    with log_file.open("ab") as file:
        return subprocess.Popen(
            python_module("ops.cli", "up", "--foreground"),
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            # A session of its own: Ctrl-C in the terminal must not stop it.
            start_new_session=True,
            env=process_environment(settings) | environment,
        )


def _wait_until_ready(
    settings: Settings, process: "subprocess.Popen[bytes]", readiness: ReadinessListener
) -> RunningSupervisor | None:
    """Return the supervisor when all is ready, None when it died or took too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        supervisor = running(settings)
        if readiness.is_ready() and supervisor is not None and _answers(supervisor):
            return supervisor
        if process.poll() is not None:
            return None
        time.sleep(START_POLL_S)
    return None


def _answers(supervisor: RunningSupervisor) -> bool:
    """Whether the query worker is ready, or says why it cannot be."""
    try:
        response = httpx.get(f"{supervisor.url}/readyz", timeout=READINESS_TIMEOUT_S)
        return response.status_code == 200 or "starting" not in response.json()["problem"]
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "none"


def down(settings: Settings) -> bool:
    """Stop the processes and the embedded database; return whether anything ran."""
    supervisor = running(settings)
    if supervisor is None:
        return False
    os.kill(supervisor.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while running(settings) is not None:
        if time.monotonic() > deadline:
            raise WorkFailedError(
                f"process {supervisor.pid} must stop within {STOP_TIMEOUT_S:g} seconds and still"
                " runs; see its log, or kill it"
            )
        time.sleep(STOP_POLL_S)
    return True
