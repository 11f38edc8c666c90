"""Binary COPY: rows of one fixed width between PostgreSQL and numpy, without an object per row.

Source of the format: PostgreSQL manual, COPY, "Binary Format".
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.named_sql import queries
from workers.repository.connection import Connection

# (N,) structured rows with the layout of `row_layout`.
Rows = npt.NDArray[np.void]

# (N,) values of one column.
Column = npt.NDArray[Any]

# Signature, flags and the length of an empty extension.
_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)

# A field count of -1.
_TRAILER = b"\xff\xff"

# Rows are converted and sent in chunks of this size, which bounds memory.
_CHUNK_BYTES = 8 << 20


def row_layout(columns: Mapping[str, str]) -> np.dtype[np.void]:
    """Return the layout of a row whose columns have the given numpy types.

    A row is a 16-bit count of fields, then for each field its 32-bit width and its big-endian
    bytes. Types: `>i8`, `>i4`, `>f4`, `u1` (boolean), `V256` (256 bytes).
    """
    fields: list[tuple[str, str]] = [("count", ">i2")]
    for name, kind in columns.items():
        fields += [(_width_field(name), ">i4"), (name, kind)]
    return np.dtype(fields)


def read_rows(
    conn: Connection, query: str, layout: np.dtype[np.void], parameters: Mapping[str, Any]
) -> Iterator[Rows]:
    """Yield the rows of a COPY ... TO STDOUT in chunks. No column may be NULL."""
    pending = bytearray()
    skipped = len(_HEADER)
    with conn.cursor() as cursor, cursor.copy(queries()[query], parameters) as copy:
        for block in copy:
            pending += block
            if len(pending) >= _CHUNK_BYTES:
                row_bytes = (len(pending) - skipped) // layout.itemsize * layout.itemsize
                end = skipped + row_bytes
                # Copied, because the buffer changes while the caller still has the chunk.
                yield np.frombuffer(bytes(pending[skipped:end]), dtype=layout)
                del pending[:end]
                skipped = 0
    # What is left are whole rows and the trailer.
    rest = bytes(pending[skipped : len(pending) - len(_TRAILER)])
    if rest:
        yield np.frombuffer(rest, dtype=layout)


def write_rows(conn: Connection, query: str, columns: Mapping[str, tuple[str, Column]]) -> None:
    """Send columns to a COPY ... FROM STDIN with the same order of columns.

    `columns` maps names to (numpy type, (N,) values).
    """
    layout = row_layout({name: kind for name, (kind, _) in columns.items()})
    row_count = len(next(iter(columns.values()))[1])
    chunk_rows = max(1, _CHUNK_BYTES // layout.itemsize)
    with conn.cursor() as cursor, cursor.copy(queries()[query]) as copy:
        copy.write(_HEADER)
        for start in range(0, row_count, chunk_rows):
            chunk = np.zeros(min(chunk_rows, row_count - start), dtype=layout)
            # Assigning a column converts it to big-endian.
            chunk["count"] = len(columns)
            for name, (kind, values) in columns.items():
                chunk[_width_field(name)] = np.dtype(kind).itemsize
                chunk[name] = values[start : start + chunk_rows]
            copy.write(chunk.tobytes())
        copy.write(_TRAILER)


def as_bytes(embeddings: npt.NDArray[np.float16]) -> npt.NDArray[np.void]:
    """Convert (N, D) float16 to (N,) little-endian byte strings of 2·D bytes."""
    contiguous = np.ascontiguousarray(embeddings, dtype="<f2")
    return contiguous.view(f"V{contiguous.shape[1] * 2}").reshape(len(contiguous))


def as_arrays(values: Column, kind: str, element_type: int) -> npt.NDArray[np.void]:
    """Convert (N, K) values, K at least 1, to N arrays of K elements of a PostgreSQL type.

    `kind` is the numpy type of an element, big-endian, and `element_type` the type's number.
    """
    count = values.shape[1]
    element = np.dtype([("width", ">i4"), ("value", kind)])
    fields = ["dimensions", "has_nulls", "element_type", "count", "first"]
    layout = np.dtype([*((name, ">i4") for name in fields), ("elements", element, (count,))])
    arrays = np.zeros(len(values), layout)
    for name, value in zip(fields, (1, 0, element_type, count, 1), strict=True):
        arrays[name] = value
    arrays["elements"]["width"] = np.dtype(kind).itemsize
    arrays["elements"]["value"] = values
    return arrays.view(f"V{layout.itemsize}")


def as_halves(column: npt.NDArray[np.void]) -> npt.NDArray[np.float16]:
    """Convert (N,) byte strings of 2·D bytes to (N, D) float16: the inverse of `as_bytes`."""
    width = column.dtype.itemsize // 2
    halves = np.ascontiguousarray(column).view("<f2").reshape(len(column), width)
    return halves.astype(np.float16, copy=False)


def _width_field(column: str) -> str:
    return f"width of {column}"
