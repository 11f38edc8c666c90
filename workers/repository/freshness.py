"""Measure how long images need from being published to being searchable."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.events import now
from workers.repository.connection import (
    Connection,
    execute,
    fetch_row,
    fetch_rows,
    transaction,
)

# Rows of freshness measurements that are kept; `freshness` looks at the newest 1,000.
VISIBILITY_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Freshness:
    """Seconds from publishing to searchable; None where nothing was measured."""

    p50_s: float | None
    p95_s: float | None


def record_visibility(
    conn: Connection, worker: str, image_keys: Sequence[int], searchable_at: datetime | None = None
) -> list[float]:
    """Record when a query worker began to return these images; `searchable_at` is now by default.

    Returns the seconds since each was appended.
    """
    with transaction(conn):
        rows = fetch_rows(
            conn,
            "record_visibility",
            worker=worker,
            image_keys=[int(key) for key in image_keys],
            searchable_at=searchable_at or now(),
        )
        execute(conn, "prune_visibility", keep=VISIBILITY_KEPT)
    return [float(seconds) for (seconds,) in rows]


def freshness(conn: Connection) -> Freshness:
    """Return the freshness of the newest 1,000 images of the last hour."""
    row = fetch_row(conn, "freshness")
    return Freshness(None, None) if row is None else Freshness(*row)
