"""Removal: taking images out of every generation's trie. Deleting an image and replacing a version both need it."""

from collections.abc import Sequence

from workers.repository.connection import Connection, row, rows, run
from workers.repository.counters import count_up


def remove(conn: Connection, image_keys: Sequence[int]) -> None:
    """Removes postings and embeddings, frees the suffixes, lowers the counters and writes tombstones.

    Runs in the caller's transaction, which has locked the images. The image rows must still have these keys.
    """
    keys = [int(key) for key in image_keys]
    if not keys:
        return
    for (generation,) in rows(conn, "generations_of_images", image_keys=keys):
        rows(conn, "lock_leaves_of_images", generation=generation, image_keys=keys)
        images, postings, emptied, checksum = row(
            conn, "remove_postings", generation=generation, image_keys=keys
        ) or (0, 0, 0, 0)
        run(conn, "remove_embeddings", generation=generation, image_keys=keys)
        lost = {
            "images": -images,
            "postings": -postings,
            "leaves": -emptied,
            "checksum": -int(checksum),
        }
        count_up(conn, generation, lost)
        rows(conn, "notify_index", generation=generation)
    run(conn, "insert_tombstones", image_keys=keys)
