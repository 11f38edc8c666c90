"""Store why images were rejected, and list it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.events import ImageAccepted, ImageRejected
from workers.repository.connection import (
    Connection,
    execute,
    fetch_row,
    fetch_rows,
    join_transaction,
)
from workers.repository.counters import WHOLE_DATABASE, count_up


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an image was rejected."""

    image_id: str
    version: int
    uri: str
    code: str
    reason: str
    stage: str
    rejected_at: datetime


def reject_image(conn: Connection, rejected: ImageRejected) -> bool:
    """Store a rejection and count it once, however often it is replayed.

    Returns whether it is new.
    """
    with join_transaction(conn):
        row = fetch_row(
            conn,
            "insert_rejection",
            image_id=rejected.image_id,
            version=rejected.version,
            uri=rejected.uri,
            code=rejected.code,
            reason=rejected.reason,
            stage=rejected.stage,
        )
        is_new = bool(row and row[0])
        count_up(conn, WHOLE_DATABASE, {"rejected": int(is_new)})
    return is_new


def rejections(
    conn: Connection, image_ids: Sequence[str] | None = None, *, limit: int = 1000
) -> list[Rejection]:
    """Return rejections, of these ids or of all, newest first."""
    # NULL matches every image in the query.
    wanted = None if image_ids is None else list(image_ids)
    rows = fetch_rows(conn, "rejections", image_ids=wanted, amount=limit)
    return [Rejection(*columns) for columns in rows]


def delete_rejections(conn: Connection, images: Sequence[ImageAccepted]) -> None:
    deleted = execute(
        conn,
        "delete_rejections",
        image_ids=[image.image_id for image in images],
        versions=[image.version for image in images],
    )
    count_up(conn, WHOLE_DATABASE, {"rejected": -deleted})
