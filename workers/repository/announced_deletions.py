"""Announced deletions: images are deleted, and other systems are told so by an event."""

from collections.abc import Callable, Sequence
from contextlib import closing

from schemas.events import ImageDeleted
from stream.log.event_log import EventLog, message
from workers.repository.connection import Connection, transaction
from workers.repository.image_deletion import Deletion, delete_images
from workers.repository.stored_images import images_by_id


def delete_announced(
    conn: Connection, open_log: Callable[[], EventLog], image_ids: Sequence[str]
) -> Deletion:
    """Delete images by id, and publish an event for each one that was there, in one transaction."""
    with closing(open_log()) as log, transaction(conn):
        done = delete_images(conn, image_ids)
        stored = images_by_id(conn, list(done.deleted))
        messages = []
        for image_id in done.deleted:
            event = ImageDeleted(image_id, stored[image_id].version)
            messages.append(message(event, image_id))
        log.publish(conn, messages)
    return done
