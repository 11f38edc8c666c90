"""Delete images by request, event or id."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from schemas.events import ImageDeleted
from workers.repository.connection import (
    Connection,
    fetch_rows,
    transaction,
)
from workers.repository.counters import WHOLE_DATABASE, count_up
from workers.repository.deletions import (
    DeletedVersions,
    DeletionRequest,
    deleted_versions,
    own_deletions,
    store_deletions,
)
from workers.repository.image_rows import (
    LateArrival,
    LockedImage,
    insert_deleted,
    lock_images,
    take_away,
)
from workers.repository.refused_versions import refused_versions


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion did, as image ids."""

    deleted: tuple[str, ...]
    untouched: tuple[str, ...]
    """Unknown, deleted before, or newer than the deletion; it holds for what is still to come."""


def delete_images(
    conn: Connection,
    deletions: Iterable[DeletionRequest | ImageDeleted | str],
    late: Sequence[LateArrival] = (),
) -> Deletion:
    """Delete images, given as requests, events or ids, in one transaction.

    They are marked, their postings are removed from every generation, and tombstones tell the
    query workers. A deletion also holds for its versions that are still to come; it leaves newer
    ones alone, so that a replayed deletion is harmless. An id alone stands for every version that
    is known or was published until now. `late` are arrivals that an earlier deletion holds for.
    """
    named = list(deletions)
    with transaction(conn):
        own_deletions(conn)
        requests = _requests(conn, named)
        ids = {request.image_id for request in requests} | {image.image_id for image in late}
        stored = lock_images(conn, ids)
        before = deleted_versions(conn, ids)
        after = {name: before.get(name, DeletedVersions(name)) for name in ids}
        for request in [*requests, *_of_known_versions(named, stored)]:
            after[request.image_id] = after[request.image_id].joined(request)
        for refused in refused_versions(conn, ids):
            after[refused.image_id] = after[refused.image_id].seen(
                refused.version, refused.published_at
            )
        for name, image in stored.items():
            after[name] = after[name].seen(image.version, image.published_at)
        for arrival in late:
            after[arrival.image_id] = after[arrival.image_id].seen(
                arrival.version, arrival.published_at
            )
        store_deletions(conn, before, after)
        known_late = insert_deleted(conn, [image for image in late if image.image_id not in stored])
        # Counters of the whole database come before generations in the lock order.
        count_up(conn, WHOLE_DATABASE, {"deleted": len(known_late)})
        taken = take_away(conn, stored, after)
    untouched = tuple(
        {request.image_id: None for request in requests if request.image_id not in taken}
    )
    return Deletion(deleted=tuple(taken), untouched=untouched)


def _requests(
    conn: Connection, deletions: Sequence[DeletionRequest | ImageDeleted | str]
) -> list[DeletionRequest]:
    """The deletions as requests; one without a time of its own is published now."""
    ((moment,),) = fetch_rows(conn, "clock")
    requests = []
    for deletion in deletions:
        if isinstance(deletion, DeletionRequest):
            requests.append(deletion)
        elif isinstance(deletion, ImageDeleted):
            requests.append(DeletionRequest(deletion.image_id, deletion.version, moment))
        else:
            requests.append(DeletionRequest(deletion, None, moment))
    return requests


def _of_known_versions(
    deletions: Sequence[DeletionRequest | ImageDeleted | str],
    stored: Mapping[str, LockedImage],
) -> list[DeletionRequest]:
    """Requests for the stored versions of the images that were given by their id alone.

    The clock of the log, by which images are published, may be ahead of the database's.
    """
    requests = []
    for deletion in deletions:
        if isinstance(deletion, str) and deletion in stored:
            image = stored[deletion]
            requests.append(DeletionRequest(deletion, image.version, image.published_at))
    return requests
