"""Binary COPY: rows of one fixed width between Postgres and numpy, without a Python object per row."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.named_sql import queries
from workers.repository.connection import Connection

Rows = npt.NDArray[np.void]

_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = b"\xff\xff"
_CHUNK_BYTES = 8 << 20


def row_type(columns: Mapping[str, str]) -> np.dtype[np.void]:
    """The layout of one row: a 16-bit field count, then for each field its 32-bit width and its big-endian bytes.

    `columns` maps names to numpy types: `>i8`, `>i4`, `>f4`, `u1` (boolean), `V256` (bytes). Source: PostgreSQL manual, COPY.
    """
    layout: list[tuple[str, str]] = [("count", ">i2")]
    for name, kind in columns.items():
        layout += [(f"width of {name}", ">i4"), (name, kind)]
    return np.dtype(layout)


def read_rows(
    conn: Connection, query: str, layout: np.dtype[np.void], parameters: Mapping[str, Any]
) -> Iterator[Rows]:
    """Rows of a COPY ... TO STDOUT in chunks of a few MiB. No column may be NULL."""
    pending = bytearray()
    header = len(_HEADER)
    with conn.cursor() as cursor, cursor.copy(queries()[query], parameters) as copy:
        for block in copy:
            pending += block
            if len(pending) >= _CHUNK_BYTES:
                whole = (len(pending) - header) // layout.itemsize * layout.itemsize
                yield np.frombuffer(bytes(pending[header : header + whole]), dtype=layout)
                del pending[: header + whole]
                header = 0
    rest = bytes(pending[header : len(pending) - len(_TRAILER)])
    if rest:
        yield np.frombuffer(rest, dtype=layout)


def write_rows(
    conn: Connection, query: str, columns: Mapping[str, tuple[str, npt.NDArray[Any]]]
) -> None:
    """Sends columns, name → (numpy type, values), to a COPY ... FROM STDIN with the same column order."""
    layout = row_type({name: kind for name, (kind, _) in columns.items()})
    length = len(next(iter(columns.values()))[1])
    step = max(1, _CHUNK_BYTES // layout.itemsize)
    with conn.cursor() as cursor, cursor.copy(queries()[query]) as copy:
        copy.write(_HEADER)
        for start in range(0, length, step):
            block = np.zeros(min(step, length - start), dtype=layout)
            block["count"] = len(columns)
            for name, (kind, values) in columns.items():
                block[f"width of {name}"] = np.dtype(kind).itemsize
                block[name] = values[start : start + step]
            copy.write(block.tobytes())
        copy.write(_TRAILER)


def as_bytes(embeddings: npt.NDArray[np.float16]) -> npt.NDArray[np.void]:
    """(N, D) float16 as N little-endian byte strings of 2·D bytes."""
    rows = np.ascontiguousarray(embeddings, dtype="<f2")
    return rows.view(f"V{rows.shape[1] * 2}").reshape(len(rows))


def as_halves(column: npt.NDArray[np.void]) -> npt.NDArray[np.float16]:
    """The inverse of `as_bytes`: (N, D) float16."""
    width = column.dtype.itemsize // 2
    return (
        np.ascontiguousarray(column)
        .view("<f2")
        .reshape(len(column), width)
        .astype(np.float16, copy=False)
    )
