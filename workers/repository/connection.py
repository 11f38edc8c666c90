"""The connection: how processes reach Postgres, bring its schema up to date, and run a transaction."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from schemas.errors import RefuseToStartError, RetryLaterError
from schemas.named_sql import migrations, queries

Connection = psycopg.Connection[tuple[Any, ...]]


def connect(url: str, *, name: str = "sigma") -> Connection:
    """An autocommit connection, so that only `transaction` decides what commits together. `RetryLaterError` when away."""
    try:
        return psycopg.connect(url, autocommit=True, application_name=name)
    except psycopg.OperationalError as error:
        raise RetryLaterError(
            f"the database does not answer ({str(error).strip()[:300]}); check that it runs, then try again"
        ) from error


@contextmanager
def transaction(conn: Connection) -> Iterator[None]:
    """One transaction. What another worker or a lost connection undid is a `RetryLaterError`."""
    try:
        with conn.transaction():
            yield
    except (
        errors.DeadlockDetected,
        errors.SerializationFailure,
        errors.LockNotAvailable,
        psycopg.OperationalError,
    ) as error:
        raise RetryLaterError(
            f"the transaction was undone ({str(error).strip()[:300]}); nothing was written, try it again"
        ) from error


@contextmanager
def joining(conn: Connection) -> Iterator[None]:
    """The caller's transaction if there is one, else one of its own. For work that the caller undoes as a whole when it fails: the
    savepoint of a nested `transaction` costs two round trips."""
    if conn.info.transaction_status == TransactionStatus.INTRANS:
        yield
        return
    with transaction(conn):
        yield


def rows(conn: Connection, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """All rows of a named query."""
    return conn.execute(queries()[query], parameters).fetchall()


def row(conn: Connection, query: str, **parameters: Any) -> tuple[Any, ...] | None:
    """The first row of a named query, or None."""
    return conn.execute(queries()[query], parameters).fetchone()


def run(conn: Connection, query: str, **parameters: Any) -> int:
    """Runs a named query and returns how many rows it touched."""
    return conn.execute(queries()[query], parameters).rowcount


def migrate(conn: Connection) -> int:
    """Brings the schema to the newest version and returns it. Idempotent; processes that start at once take turns."""
    with transaction(conn):
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('sigma migrations', 0))")
        conn.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (version int PRIMARY KEY, name text NOT NULL, applied_at timestamptz DEFAULT now())"
        )
        found = conn.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
        current, newest = int(found[0]) if found else 0, migrations()[-1].version
        if current > newest:
            raise RefuseToStartError(
                f"the database has schema {current}, this program knows up to {newest}; install the newer version"
            )
        for step in migrations():
            if step.version > current:
                conn.execute(step.sql)
                conn.execute(
                    "INSERT INTO schema_version (version, name) VALUES (%s, %s)",
                    (step.version, step.name),
                )
    return newest
