"""Starting and stopping the processes of one home: `sigma up` and `sigma down`."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sigma_stream_client import Client, ClientError, RetryPolicy

from ops.embedded.database import EmbeddedDatabase
from ops.embedded.file_lock import holder, is_held
from ops.embedded.home import run_folder
from ops.embedded.isolation import ISOLATED_ENVIRONMENT, python_module
from ops.embedded.log_tail import last_error
from ops.embedded.process_identity import ProcessIdentity
from ops.embedded.readiness import ReadinessListener, listen_for_readiness
from ops.embedded.supervisor_record import SupervisorRecord, record_file, supervisor_lock
from schemas.access_settings import AccessSettings
from schemas.errors import RefuseToStartError, WorkFailedError
from schemas.settings import Settings

# Deaths of one worker during a start after which it is given up: something lasting is wrong.
DEATHS_AT_START = 3

# Longest wait for workers to finish their batch and end; then they are killed.
WORKERS_STOP_S = 10.0

# Longest wait for the supervisor's end: first its workers, then PostgreSQL.
STOP_TIMEOUT_S = 45.0

START_POLL_S = 0.1

# Longest wait for one answer of `/readyz`.
READINESS_TIMEOUT_S = 2.0


class Patience:
    """How long to wait for a start: for as long as there is news of it, and `limit_s` beyond."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._heard_s = clock()
        self._told: set[str] = set()

    def hear(self, news: str) -> None:
        """Take note of what was said; only what was not said before is news."""
        if news and news not in self._told:
            self._told.add(news)
            self._heard_s = self._clock()

    @property
    def lasts(self) -> bool:
        """Whether to wait on."""
        return self._clock() - self._heard_s < self._limit_s


@dataclass(frozen=True, slots=True)
class Readiness:
    """What the query worker says of itself."""

    is_answering: bool
    """Whether it said anything."""
    problem: str
    """Why it cannot answer queries; empty when it can."""

    @property
    def is_starting(self) -> bool:
        """Whether it only needs more time."""
        return "starting" in self.problem


def log_folder(settings: Settings) -> Path:
    """The folder of the processes' logs; it exists afterwards."""
    folder = settings.home.absolute() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def process_environment(settings: Settings) -> dict[str, str]:
    """The environment of every process of a home."""
    environment = os.environ | {"SIGMA_HOME": str(settings.home.absolute())} | ISOLATED_ENVIRONMENT
    # For the command line: a worker has only the hashes of keys.
    environment.pop("SIGMA_API_KEY", None)
    return environment


def running(settings: Settings) -> SupervisorRecord | None:
    """Return the supervisor of this home if it is alive and has started its workers."""
    home = settings.home.absolute()
    if not is_held(supervisor_lock(home)):
        return None
    record = SupervisorRecord.of_home(home)
    # Until a new supervisor has written its own record there may be that of one that was killed.
    return record if record is not None and record.process.alive else None


def dead_supervisor(settings: Settings) -> SupervisorRecord | None:
    """Return what a supervisor that was killed has left: one that ends takes its record away."""
    home = settings.home.absolute()
    record = SupervisorRecord.of_home(home)
    return None if record is None or record.process.alive else record


def up(settings: Settings) -> SupervisorRecord:
    """Start the supervisor in the background; return when arrivals are taken and queries answered.

    Without a live generation queries are refused with the reason, which counts as answered.
    """
    from ops.jobs.timetable import job_schedules

    supervisor = running(settings)
    if supervisor is not None:
        return supervisor
    run_folder(settings.home.absolute())
    # A schedule that cannot be followed is refused here, where a person reads it. In the scheduler
    # it would end up in the log of a process that is restarted again and again.
    job_schedules(settings)
    log_file = log_folder(settings) / "supervisor.log"
    begin = log_file.stat().st_size if log_file.exists() else 0
    with listen_for_readiness() as announcement:
        process = _start_in_background(settings, log_file, announcement.environment)
        supervisor = _wait_until_ready(settings, process, announcement)
    if supervisor is not None:
        return supervisor
    late = f"they show no progress for {settings.start_s} seconds (SIGMA_START_SECONDS)"
    reason = _dying(settings) or last_error(log_file, begin) or late
    reason = reason.removeprefix("sigma: ")
    if process.poll() is None:
        process.terminate()
    elif process.returncode == RefuseToStartError.exit_code:
        raise RefuseToStartError(reason)
    raise WorkFailedError(f"the processes did not start: {reason}; logs are in {log_file.parent}")


def _dying(settings: Settings) -> str | None:
    """Which worker dies again and again, and of what."""
    supervisor = running(settings)
    if supervisor is not None:
        for worker in supervisor.workers:
            if len(worker.deaths) >= DEATHS_AT_START:
                return f"the {worker.role} worker dies, {worker.last_error}"
    return None


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
    settings: Settings, process: "subprocess.Popen[bytes]", announcement: ReadinessListener
) -> SupervisorRecord | None:
    """Return the supervisor when all is ready, None when it died or shows no progress any more."""
    patience = Patience(settings.start_s)
    while patience.lasts:
        patience.hear(announcement.take_news())
        supervisor = running(settings)
        ended = process.poll() is not None
        # It ends at once when somebody else's start was faster: then that one is waited for.
        announced = announcement.is_ready() or ended
        if announced and supervisor is not None:
            found = readiness(supervisor, settings.access)
            if found.is_answering and not found.is_starting:
                return supervisor
            patience.hear(found.problem if found.is_answering else "")
        alone = ended and not is_held(supervisor_lock(settings.home.absolute()))
        if alone or _dying(settings) is not None:
            return None
        time.sleep(START_POLL_S)
    return None


def readiness(supervisor: SupervisorRecord, access: AccessSettings) -> Readiness:
    """Ask the query worker whether it answers queries, and why not; the latter may need a key."""
    once = RetryPolicy(total_s=0)
    try:
        with Client(
            supervisor.url, access.api_key, retry=once, timeout_s=READINESS_TIMEOUT_S
        ) as client:
            return Readiness(is_answering=True, problem=client.problem() or "")
    except ClientError as error:
        problem = f"the query worker at {supervisor.url} does not answer ({error}); see its log"
        return Readiness(is_answering=False, problem=problem)


def wait_until_answering(supervisor: SupervisorRecord, settings: Settings) -> None:
    """Wait until the query worker answers from a generation.

    `WorkFailedError` when it shows no progress for `SIGMA_START_SECONDS`.
    """
    patience = Patience(settings.start_s)
    found = readiness(supervisor, settings.access)
    while found.problem:
        # What it says changes as it gets on with loading; what others say of it does not count.
        patience.hear(found.problem if found.is_starting else "")
        if not patience.lasts:
            raise WorkFailedError(
                f"the query worker shows no progress for {settings.start_s} seconds "
                f"(SIGMA_START_SECONDS): {found.problem}"
            )
        time.sleep(START_POLL_S)
        found = readiness(supervisor, settings.access)


def down(settings: Settings) -> bool:
    """Stop all processes of the home and its database; return whether anything ran.

    Also what a supervisor that was killed has left.
    """
    home = settings.home.absolute()
    if not (home / "run").is_dir():
        return False
    # By its lock, which it holds before it has written anything: one that starts is stopped too.
    supervisor = holder(supervisor_lock(home))
    record = running(settings)
    if supervisor is None and record is not None:
        # The lock is held, and what its holder wrote into it was damaged.
        supervisor = record.process
    if supervisor is not None:
        _stop_supervisor(settings, supervisor)
    left = end_leftovers(settings)
    # Its keeper stops it by itself when the last process that uses it has gone.
    database = EmbeddedDatabase(settings)
    kept = database.is_kept()
    database.wait_until_unused()
    return supervisor is not None or left or (kept and not database.is_kept())


def _stop_supervisor(settings: Settings, supervisor: ProcessIdentity) -> None:
    supervisor.send(signal.SIGTERM)
    if not supervisor.wait(STOP_TIMEOUT_S):
        raise WorkFailedError(
            f"process {supervisor.pid} must stop within {STOP_TIMEOUT_S:g} seconds and still runs;"
            f" see {log_folder(settings)}, or kill it: sigma down then stops what it leaves"
        )


def end_leftovers(settings: Settings) -> bool:
    """End the workers of a supervisor that was killed; return whether any was left.

    They end by themselves when they notice; one that was stopped cannot notice.
    """
    dead = dead_supervisor(settings)
    if dead is None:
        return False
    left = [worker.process for worker in dead.workers if worker.process and worker.process.alive]
    for process in left:
        process.end(WORKERS_STOP_S)
    record_file(settings.home.absolute()).unlink(missing_ok=True)
    return bool(left)
