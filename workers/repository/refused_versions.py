"""Versions that were refused: deletions hold for them as for every version published before.

Otherwise the order of reading would matter. A version is published broken, then the image is
deleted, then the version is published again: read in this order, the deletion would find nothing of
it; with the deletion read first, the version is gone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from workers.repository.connection import (
    Connection,
    columns_of,
    execute,
    fetch_rows,
    join_transaction,
)
from workers.repository.deletions import deleted_versions, share_deletions, store_deletions
from workers.repository.image_rows import lock_images, take_away


@dataclass(frozen=True, slots=True)
class RefusedVersion:
    """A version of an image that could not be used."""

    image_id: str
    version: int
    published_at: datetime
    """When it was published first."""


def note_refused(conn: Connection, refused: Sequence[RefusedVersion]) -> None:
    """Note refused versions, and apply earlier deletions to what is stored of their images.

    Call it before the transaction locks images.
    """
    if not refused:
        return
    with join_transaction(conn):
        share_deletions(conn)
        first = _first_published(refused)
        execute(
            conn,
            "note_refused_versions",
            **columns_of(first, "image_id", "version", "published_at"),
        )
        before = deleted_versions(conn, [version.image_id for version in first])
        after = dict(before)
        for version in first:
            if version.image_id in after:
                known = after[version.image_id]
                after[version.image_id] = known.seen(version.version, version.published_at)
        grown = {name: after[name] for name in after if after[name] != before[name]}
        store_deletions(conn, before, grown)
        take_away(conn, lock_images(conn, grown), grown)


def refused_versions(conn: Connection, image_ids: Iterable[str]) -> list[RefusedVersion]:
    """Return the refused versions of these images."""
    rows = fetch_rows(conn, "refused_versions", image_ids=sorted(set(image_ids)))
    return [RefusedVersion(*columns) for columns in rows]


def _first_published(refused: Iterable[RefusedVersion]) -> list[RefusedVersion]:
    """Each version once, in the order in which writers lock rows."""
    first: dict[tuple[str, int], RefusedVersion] = {}
    for version in refused:
        key = version.image_id, version.version
        known = first.setdefault(key, version)
        if version.published_at < known.published_at:
            first[key] = version
    return [first[key] for key in sorted(first)]
