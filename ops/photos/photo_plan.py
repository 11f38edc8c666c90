"""The photo plan: which pictures of a folder are sent, and which need not be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from ops.ingestion import RefusedFile
from schemas.records import ManifestEntry
from stream.images.file_checksum import file_checksum
from workers.repository.connection import Connection
from workers.repository.rejections import Rejection, rejections
from workers.repository.stored_images import StoredImage, images_by_id

# Pictures looked up at once.
_PAGE = 500

# What a picture that is not sent is.
PhotoState = Literal["known", "deleted"]
KNOWN: Final = "known"
DELETED: Final = "deleted"


@dataclass(frozen=True, slots=True)
class PhotoPlan:
    """What becomes of the files of a folder."""

    to_send: tuple[ManifestEntry, ...] = ()
    """New, changed, or not searchable yet."""
    known: int = 0
    """Searchable as they are."""
    deleted: int = 0
    """Deleted from the index: they stay so."""
    refused: tuple[RefusedFile, ...] = ()
    """Refused before and not changed since: they would be refused again."""


def plan_photos(
    conn: Connection, entries: Sequence[ManifestEntry], tick: Callable[[int], None]
) -> PhotoPlan:
    """Compare files with what is stored; `tick` is called with the number of files looked at."""
    to_send: list[ManifestEntry] = []
    refused: list[RefusedFile] = []
    counts = {KNOWN: 0, DELETED: 0}
    for start in range(0, len(entries), _PAGE):
        page = entries[start : start + _PAGE]
        image_ids = [entry.image_id for entry in page]
        stored = images_by_id(conn, image_ids)
        newest: dict[str, Rejection] = {}
        for rejection in rejections(conn, image_ids):
            # The newest comes first.
            newest.setdefault(rejection.image_id, rejection)
        for entry in page:
            fate = fate_of(entry, stored.get(entry.image_id), newest.get(entry.image_id))
            if isinstance(fate, ManifestEntry):
                to_send.append(fate)
            elif isinstance(fate, RefusedFile):
                refused.append(fate)
            else:
                counts[fate] += 1
        tick(len(page))
    return PhotoPlan(tuple(to_send), counts[KNOWN], counts[DELETED], tuple(refused))


def fate_of(
    entry: ManifestEntry, stored: StoredImage | None, rejection: Rejection | None
) -> ManifestEntry | RefusedFile | PhotoState:
    """What becomes of one file, whose image may be stored or refused already.

    The entry itself is to be sent.
    """
    if rejection is not None and not _changed_since(entry.path, rejection.rejected_at):
        return RefusedFile(entry.path, rejection.reason, rejection.code)
    if stored is None:
        return entry
    if stored.state == "deleted":
        # Deleting a picture from the index would mean little if the next run brought it back.
        return DELETED
    if stored.state == "indexed" and stored.checksum == file_checksum(entry.path):
        return KNOWN
    return entry


def _changed_since(path: str, moment: datetime) -> bool:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return True
    # Of its content, and of its permissions or name: a file that could not be read may be readable
    # now.
    changed_s = max(status.st_mtime, status.st_ctime)
    return datetime.fromtimestamp(changed_s, UTC) > moment
