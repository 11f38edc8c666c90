"""The connection: how processes reach PostgreSQL, run transactions and named queries, and migrate.

Connections are in autocommit mode, so that only `transaction` decides what commits together.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from schemas.errors import RefuseToStartError, RejectInputError, RetryLaterError, brief
from schemas.named_sql import migrations, queries
from stream.session import NOTICE_VANISHED_CLIENTS, connection_options

Connection = psycopg.Connection[tuple[Any, ...]]

# Errors after which nothing was written and the same transaction may succeed when repeated.
_UNDONE = (
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.LockNotAvailable,
    errors.IdleInTransactionSessionTimeout,
    psycopg.OperationalError,
)

# What exceeds a limit of the server. psycopg counts these as operational errors too.
_TOO_LARGE = (
    errors.ProgramLimitExceeded,
    errors.StatementTooComplex,
    errors.TooManyColumns,
    errors.TooManyArguments,
)

_VERSION_TABLE = """
CREATE TABLE IF NOT EXISTS schema_version (
    version int PRIMARY KEY, name text NOT NULL, applied_at timestamptz DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How long PostgreSQL lets a session wait. What takes longer fails and may be tried again."""

    statement_s: float
    """One statement, waiting for locks included."""
    lock_s: float
    """Waiting for one lock."""
    idle_transaction_s: float
    """Between two statements of a transaction, which holds up others with its locks."""
    connect_s: int | None = None
    """Opening the connection, at each address of the server; None for the usual time."""


# For workers and jobs: a generation of many millions of images is read in one statement, and a
# switch assigns what is missing in one transaction.
WORK_LIMITS = SessionLimits(statement_s=3600, lock_s=600, idle_transaction_s=3600)

# For measurements: newer ones matter more than one that waits.
REPORT_LIMITS = SessionLimits(statement_s=10, lock_s=5, idle_transaction_s=30)

# For what a client waits for, which is to be answered within a second.
ANSWER_LIMITS = SessionLimits(statement_s=2, lock_s=0.5, idle_transaction_s=10, connect_s=2)

# For members of a consumer group, whose transactions are short: one that is stopped inside of one
# keeps its locks no longer than its leases (`stream.lease`).
MEMBER_LIMITS = replace(WORK_LIMITS, idle_transaction_s=10)


def connect(url: str, *, name: str = "sigma", limits: SessionLimits = WORK_LIMITS) -> Connection:
    """Open an autocommit connection; `name` shows in pg_stat_activity.

    `RetryLaterError` when the database is unavailable.
    """
    try:
        options = connection_options(url)
        if limits.connect_s is not None:
            options["connect_timeout"] = limits.connect_s
        conn: Connection = psycopg.connect(url, autocommit=True, application_name=name, **options)
        try:
            conn.execute(NOTICE_VANISHED_CLIENTS.encode())
            _limit(conn, limits)
        except BaseException:
            conn.close()
            raise
        return conn
    except psycopg.OperationalError as error:
        raise RetryLaterError(
            f"the database does not answer ({brief(error)}); check that it runs, then try again"
        ) from error


def _limit(conn: Connection, limits: SessionLimits) -> None:
    # In UTC: in another zone PostgreSQL's first and last days lie outside Python's years 1 to 9999.
    # Not by the connection's `options`, which connection poolers refuse.
    conn.execute(
        """SELECT set_config('timezone', 'UTC', false),
                  set_config('statement_timeout', %s, false),
                  set_config('lock_timeout', %s, false),
                  set_config('idle_in_transaction_session_timeout', %s, false)""",
        (
            _milliseconds(limits.statement_s),
            _milliseconds(limits.lock_s),
            _milliseconds(limits.idle_transaction_s),
        ),
    )


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


@contextmanager
def transaction(conn: Connection) -> Iterator[None]:
    """Run one transaction; nested calls are savepoints.

    `RetryLaterError` when another worker or a lost connection undid it; `RejectInputError` when a
    value is larger than PostgreSQL can take, which no retry changes.
    """
    try:
        with conn.transaction():
            yield
    except _TOO_LARGE as error:
        raise RejectInputError(
            "too-large",
            f"the database cannot take a value of this size ({brief(error)}); send a shorter one",
        ) from error
    except _UNDONE as error:
        raise RetryLaterError(
            f"the transaction was undone ({brief(error)}); nothing was written, try it again"
        ) from error


@contextmanager
def join_transaction(conn: Connection) -> Iterator[None]:
    """Run in the caller's transaction if there is one, else in a new one.

    For work that the caller undoes as a whole when it fails: the savepoint of a nested
    `transaction` costs two round trips.
    """
    if conn.info.transaction_status == TransactionStatus.INTRANS:
        yield
        return
    with transaction(conn):
        yield


def fetch_rows(conn: Connection, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """Run a named query and return all its rows."""
    return conn.execute(queries()[query], parameters).fetchall()


def fetch_row(conn: Connection, query: str, **parameters: Any) -> tuple[Any, ...] | None:
    """Run a named query and return its first row, or None."""
    return conn.execute(queries()[query], parameters).fetchone()


def fetch_column(conn: Connection, query: str, **parameters: Any) -> list[Any]:
    """Run a named query and return the first column of all its rows."""
    return [row[0] for row in fetch_rows(conn, query, **parameters)]


def execute(conn: Connection, query: str, **parameters: Any) -> int:
    """Run a named query and return how many rows it touched."""
    return conn.execute(queries()[query], parameters).rowcount


def columns_of(records: Sequence[object], *fields: str) -> dict[str, list[Any]]:
    """Turn records into one list for each field, for queries that `unnest` columns into rows.

    One statement with N rows, where N statements would cost N round trips.
    """
    columns = {}
    for field in fields:
        columns[field] = [getattr(record, field) for record in records]
    return columns


def migrate(conn: Connection) -> int:
    """Bring the schema to the newest version and return that version. Idempotent.

    `RefuseToStartError` when the database is newer than this program.
    """
    newest = migrations()[-1].version
    with transaction(conn):
        migrate_to(conn, newest)
        # Rows that a restore brought here are taken over before anybody follows them.
        conn.execute("SELECT adopt_restored()")
    return newest


def migrate_to(conn: Connection, version: int) -> None:
    """Bring the schema to a version, in the caller's transaction, and look at no rows.

    `RefuseToStartError` when the database is newer.
    """
    # Processes that start at the same time take turns; the lock ends with the transaction.
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('sigma migrations', 0))")
    conn.execute(_VERSION_TABLE)
    row = conn.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
    current = int(row[0]) if row else 0
    if current > version:
        raise RefuseToStartError(
            f"the database has schema {current}, this program knows up to {version}; "
            "install the newer version of the program"
        )
    for step in migrations():
        if current < step.version <= version:
            conn.execute(step.sql)
            conn.execute(
                "INSERT INTO schema_version (version, name) VALUES (%s, %s)",
                (step.version, step.name),
            )
