"""Deletions: which versions of an image are gone, whether they came before the deletion or after.

The log keeps no order between topics and partitions, so a deletion may be read before the image
that it deletes. What is stored of the deletions of one id only ever grows, and growing commutes:
whatever the order in which events are read, the same versions are gone in the end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from workers.repository.connection import Connection, columns_of, execute, fetch_rows

# The version of an event that names none; a deletion that names none deletes it at least.
FIRST_VERSION = 1


@dataclass(frozen=True, slots=True)
class DeletionRequest:
    """One deletion of an image."""

    image_id: str
    version: int | None
    """This version and every lower one; None for every version that was published before it."""
    published_at: datetime


@dataclass(frozen=True, slots=True)
class DeletedVersions:
    """The versions of one image that are gone."""

    image_id: str
    version: int = 0
    """This one and every lower one."""
    published_at: datetime | None = None
    """Every version that was published up to this moment is gone too."""

    def covers(self, version: int, published_at: datetime) -> bool:
        """Tell whether a version, published at a moment, is gone."""
        return version <= self.seen(version, published_at).version

    def joined(self, request: DeletionRequest) -> "DeletedVersions":
        """What is gone after one more deletion."""
        if request.version is not None:
            version = max(self.version, request.version)
            return DeletedVersions(self.image_id, version, self.published_at)
        published_at = max(self.published_at or request.published_at, request.published_at)
        return DeletedVersions(self.image_id, max(self.version, FIRST_VERSION), published_at)

    def seen(self, version: int, published_at: datetime) -> "DeletedVersions":
        """The same with the knowledge of when one version was published.

        A version that was published before the deletion stays gone, also when its event is
        published again.
        """
        if self.published_at is None or published_at > self.published_at:
            return self
        return DeletedVersions(self.image_id, max(self.version, version), self.published_at)


def share_deletions(conn: Connection) -> None:
    """Keep deletions out until this transaction ends: call it before looking for them.

    A deletion cannot lock the row of an image that another transaction is about to insert.
    """
    fetch_rows(conn, "share_deletions")


def own_deletions(conn: Connection) -> None:
    """Wait for transactions that accept images, and keep new ones out until this one ends."""
    fetch_rows(conn, "own_deletions")


def deleted_versions(conn: Connection, image_ids: Iterable[str]) -> dict[str, DeletedVersions]:
    """Return what is deleted of these images; ids without a deletion are left out."""
    rows = fetch_rows(conn, "deletions", image_ids=sorted(set(image_ids)))
    return {row[0]: DeletedVersions(*row) for row in rows}


def store_deletions(
    conn: Connection,
    before: Mapping[str, DeletedVersions],
    after: Mapping[str, DeletedVersions],
) -> None:
    """Store what has grown, in the caller's transaction."""
    grown = [after[name] for name in sorted(after) if after[name] != before.get(name)]
    if grown:
        execute(conn, "store_deletions", **columns_of(grown, "image_id", "version", "published_at"))
