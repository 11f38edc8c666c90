"""Table copies: every row of the database as text, out of one snapshot and into an empty schema.

Text and not the binary form of COPY: it is the same in every version of PostgreSQL.
Source: PostgreSQL manual, COPY, "Text Format".
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter

from psycopg import sql

from schemas.named_sql import migrations
from workers.repository.connection import (
    Connection,
    SessionLimits,
    fetch_column,
    fetch_row,
    fetch_rows,
    transaction,
)

# Seconds of a day.
_DAY_S = 86_400.0

# A table of many millions of rows is one statement, and all tables are one transaction. A lock that
# is not free within a minute belongs to somebody who changes the schema.
COPY_LIMITS = SessionLimits(statement_s=_DAY_S, lock_s=60, idle_transaction_s=_DAY_S)

# Leases are of processes that run.
_LEFT_OUT = "lease"

# Only what migrations create is copied. Others may have tables in the same database, and the one of
# APScheduler holds pickles, which must never come from a file: it is filled anew at every start.
_CREATED = re.compile(rb"^CREATE TABLE (\w+)", re.MULTILINE)

# What a database holds that was only initialised.
_BOOKKEEPING = ("epoch", "log_partition", "job_schedule")

# Values are written and read the same way whatever the database's own settings are.
_FORMATS = """SELECT set_config('client_encoding', 'UTF8', false),
                     set_config('datestyle', 'ISO, YMD', false),
                     set_config('intervalstyle', 'postgres', false),
                     set_config('bytea_output', 'hex', false),
                     set_config('extra_float_digits', '1', false)"""


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table and its columns, in the order in which they are copied."""

    name: str
    columns: tuple[str, ...]


def stored_tables(conn: Connection) -> list[StoredTable]:
    """Return the tables to copy, each after those that it refers to."""
    tables: dict[str, StoredTable] = {}
    graph: dict[str, set[str]] = {}
    for name, columns, needed in fetch_rows(conn, "backup_tables", ours=_own_tables()):
        tables[name] = StoredTable(name, tuple(columns))
        graph[name] = set(needed)
    return [tables[name] for name in TopologicalSorter(graph).static_order()]


@contextmanager
def table_snapshot(conn: Connection, tables: Sequence[StoredTable]) -> Iterator[None]:
    """Run statements that all see the same rows, while nobody drops one of the tables."""
    conn.execute(_FORMATS)
    with transaction(conn):
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # Before the snapshot, which the first query takes: a partition that is dropped after it
        # would be empty although its generation is in the snapshot.
        names = sql.SQL(", ").join([sql.Identifier(table.name) for table in tables])
        conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
        yield


def copy_out(conn: Connection, table: StoredTable, write: Callable[[bytes], object]) -> int:
    """Send a table's rows to `write` in small pieces; return how many they are."""
    statement = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(
        _columns(table), sql.Identifier(table.name)
    )
    rows = 0
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        for piece in copy:
            text = bytes(piece)
            write(text)
            # A line end inside of a value is written as an escape.
            rows += text.count(b"\n")
    return rows


def clear_tables(conn: Connection, tables: Sequence[StoredTable]) -> None:
    """Empty the tables, of which only bookkeeping has rows, and let no trigger judge old rows."""
    conn.execute(_FORMATS)
    names = sql.SQL(", ").join([sql.Identifier(table.name) for table in tables])
    conn.execute(sql.SQL("TRUNCATE {}").format(names))
    _set_triggers(conn, tables, sql.SQL("DISABLE"))


def copy_in(conn: Connection, table: StoredTable, pieces: Iterable[bytes]) -> None:
    """Load a table's rows from what `copy_out` wrote."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), _columns(table)
    )
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        for piece in pieces:
            copy.write(piece)


def end_loading(conn: Connection, tables: Sequence[StoredTable]) -> None:
    """Let triggers judge new rows again."""
    _set_triggers(conn, tables, sql.SQL("ENABLE"))


def filled_table(conn: Connection) -> str | None:
    """The name of a table that has rows, beyond what initialising a database writes; or None."""
    for table in stored_tables(conn):
        if table.name in _BOOKKEEPING:
            continue
        look = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(table.name))
        row = conn.execute(look).fetchone()
        if row is not None and row[0]:
            return table.name
    return None


def schema_version(conn: Connection) -> int | None:
    """The number of the database's newest migration; None for one that was never migrated."""
    has_schema = fetch_row(conn, "has_schema")
    if has_schema is None or not has_schema[0]:
        return None
    row = fetch_row(conn, "schema_of")
    return int(row[0]) if row is not None and row[0] is not None else None


def sequences(conn: Connection) -> dict[str, int]:
    """The highest number that each sequence has given out."""
    return dict(fetch_rows(conn, "backup_sequences", ours=_own_tables()))


def partitioned_generations(conn: Connection) -> list[int]:
    """The generations that have tables of their own."""
    return fetch_column(conn, "backup_partitions")


def _own_tables() -> list[str]:
    names = {name.decode() for step in migrations() for name in _CREATED.findall(step.sql)}
    return sorted(names - {_LEFT_OUT})


def _columns(table: StoredTable) -> sql.Composed:
    return sql.SQL(", ").join([sql.Identifier(column) for column in table.columns])


def _set_triggers(conn: Connection, tables: Sequence[StoredTable], what: sql.SQL) -> None:
    for table in tables:
        # USER leaves those that check references.
        statement = sql.SQL("ALTER TABLE {} {} TRIGGER USER")
        conn.execute(statement.format(sql.Identifier(table.name), what))
