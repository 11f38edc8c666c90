"""Removal: take images out of every generation's trie, for deletions and for new versions."""

from collections.abc import Sequence

from workers.repository.connection import Connection, execute, fetch_column, fetch_row, fetch_rows
from workers.repository.counters import count_up


def remove(conn: Connection, image_keys: Sequence[int]) -> None:
    """Remove postings and embeddings, free suffixes, lower counters and write tombstones.

    Runs in the caller's transaction, which has locked the images. The image rows must still have
    these keys, because the checksum is computed from their ids.
    """
    keys = [int(key) for key in image_keys]
    if not keys:
        return
    # Generations ascending, and leaves ascending in each: the lock order of this package.
    for generation in fetch_column(conn, "generations_of_images", image_keys=keys):
        _remove_from(conn, generation, keys)
    execute(conn, "insert_tombstones", image_keys=keys)


def _remove_from(conn: Connection, generation: int, image_keys: list[int]) -> None:
    # The deletion itself would lock the leaves too, but in any order.
    fetch_rows(conn, "lock_leaves_of_images", generation=generation, image_keys=image_keys)
    removed = fetch_row(conn, "remove_placements", generation=generation, image_keys=image_keys)
    images, postings, emptied_leaves, checksum, beyond = removed or (0, 0, 0, 0, 0)
    amounts = {
        "images": -images,
        "postings": -postings,
        "leaves": -emptied_leaves,
        "checksum": -int(checksum),
        "beyond": -beyond,
    }
    count_up(conn, generation, amounts)
    fetch_rows(conn, "notify_index", generation=generation)
