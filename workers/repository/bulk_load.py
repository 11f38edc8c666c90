"""Bulk load: the postings that a new generation begins with, by COPY instead of row by row."""

from dataclasses import dataclass

import numpy as np

from schemas.errors import UsageError
from schemas.records import BoolArray, FloatArray, HalfArray, IntArray, require_finite
from workers.repository.binary_copy import Column, as_bytes, write_rows
from workers.repository.connection import (
    Connection,
    execute,
    fetch_column,
    fetch_row,
    fetch_rows,
    transaction,
)
from workers.repository.counters import count_up, totals
from workers.repository.postings import present_images


@dataclass(frozen=True, slots=True)
class InitialLoad:
    """What a trained generation begins with, all or a part: N images with P postings."""

    leaves: IntArray
    """(P,)"""
    posted_keys: IntArray
    """(P,) image keys"""
    weights: FloatArray
    """(P,)"""
    suffixes: IntArray
    """(P,); -1 marks an alternate"""
    image_keys: IntArray
    """(N,)"""
    embeddings: HalfArray
    """(N, D)"""
    confidences: FloatArray
    """(N,)"""
    trained: bool | BoolArray = True
    """(N,), or the same for all"""

    def __post_init__(self) -> None:
        require_finite("the embeddings of a generation", self.embeddings)
        require_finite("the confidences of a generation", self.confidences)
        require_finite("the weights of a generation's postings", self.weights)


def bulk_append(conn: Connection, generation: int, load: InitialLoad, *, more: bool = False) -> int:
    """Load an empty generation with COPY, in one transaction; return how many images it loaded.

    With `more`, load a further part into one that is loaded in parts, and leave out what an
    earlier part brought. Images deleted meanwhile are left out too. `UsageError` when the
    generation is not empty, without `more`.
    """
    with transaction(conn):
        wanted = load.image_keys.tolist()
        existing = set(fetch_column(conn, "lock_images_by_key", image_keys=wanted))
        # Alone in the generation, so that no append takes a suffix of the load.
        fetch_rows(conn, "own_generation", generation=generation)
        if more:
            existing -= present_images(conn, generation, wanted)
        elif totals(conn, generation).images:
            raise UsageError(
                f"generation {generation} has images already, the initial load needs an empty one; "
                "create a new generation"
            )
        # (N,) images and (P,) postings that are loaded.
        kept = np.isin(load.image_keys, np.fromiter(existing, np.int64, len(existing)))
        kept_keys = load.image_keys[kept]
        posted = np.isin(load.posted_keys, kept_keys)
        primary = posted & (load.suffixes >= 0)
        _copy_primaries(conn, generation, load, primary)
        _copy_alternates(conn, generation, load, posted & (load.suffixes < 0))
        _copy_embeddings(conn, generation, load, kept)
        # After the slow COPY, so that the leaves are locked briefly.
        opened = _record_suffixes(conn, generation, load.leaves[primary], load.suffixes[primary])
        _count_loaded(conn, generation, kept_keys.tolist(), opened)
        execute(conn, "mark_indexed", image_keys=kept_keys.tolist())
        fetch_rows(conn, "notify_index", generation=generation)
    return int(kept.sum())


def _copy_primaries(
    conn: Connection, generation: int, load: InitialLoad, chosen: BoolArray
) -> None:
    order = _by_leaf(load, chosen)
    columns = _posting_columns(generation, load, order)
    columns["suffix"] = (">i4", load.suffixes[order])
    write_rows(conn, "copy_primaries", columns)


def _copy_alternates(
    conn: Connection, generation: int, load: InitialLoad, chosen: BoolArray
) -> None:
    # Without the suffix column: binary rows of one width cannot have a NULL.
    columns = _posting_columns(generation, load, _by_leaf(load, chosen))
    write_rows(conn, "copy_alternates", columns)


def _by_leaf(load: InitialLoad, chosen: BoolArray) -> IntArray:
    """Rows of the chosen (P,) postings by ascending leaf, which fills index pages in order."""
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(load.leaves[chosen], kind="stable")]


def _posting_columns(
    generation: int, load: InitialLoad, order: IntArray
) -> dict[str, tuple[str, Column]]:
    return {
        "generation": (">i4", np.full(len(order), generation)),
        "leaf": (">i8", load.leaves[order]),
        "image_key": (">i8", load.posted_keys[order]),
        "weight": (">f4", load.weights[order]),
    }


def _copy_embeddings(conn: Connection, generation: int, load: InitialLoad, kept: BoolArray) -> None:
    embeddings = as_bytes(load.embeddings[kept])
    columns: dict[str, tuple[str, Column]] = {
        "generation": (">i4", np.full(len(embeddings), generation)),
        "image_key": (">i8", load.image_keys[kept]),
        "embedding": (embeddings.dtype.str, embeddings),
        "confidence": (">f4", load.confidences[kept]),
        "trained": ("u1", np.broadcast_to(load.trained, len(kept))[kept]),
    }
    write_rows(conn, "copy_embeddings", columns)


def _record_suffixes(
    conn: Connection, generation: int, leaves: IntArray, suffixes: IntArray
) -> int:
    """Record the suffixes of (K,) primaries in their leaves; return how many leaves were empty."""
    loaded_leaves, position, primaries = np.unique(leaves, return_inverse=True, return_counts=True)
    # One above the highest suffix that the load has in each leaf.
    suffix_ends = np.zeros(len(loaded_leaves), dtype=np.int64)
    np.maximum.at(suffix_ends, position, suffixes + 1)
    numbers = loaded_leaves.tolist()
    locked = {}
    for leaf, next_suffix, live in fetch_rows(
        conn, "lock_leaves", generation=generation, leaves=numbers
    ):
        locked[leaf] = (next_suffix, live)
    next_suffixes: list[int] = []
    lives: list[int] = []
    opened = 0
    for leaf, end, added in zip(numbers, suffix_ends.tolist(), primaries.tolist(), strict=True):
        next_suffix, live = locked[leaf]
        next_suffixes.append(max(next_suffix, end))
        lives.append(live + added)
        opened += live == 0
    execute(
        conn,
        "update_leaves",
        generation=generation,
        leaves=numbers,
        next_suffixes=next_suffixes,
        lives=lives,
    )
    return opened


def _count_loaded(
    conn: Connection, generation: int, image_keys: list[int], opened_leaves: int
) -> None:
    row = fetch_row(conn, "recount_images", generation=generation, image_keys=image_keys)
    images, postings, checksum, beyond = row or (0, 0, 0, 0)
    amounts = {
        "images": images,
        "postings": postings,
        "leaves": opened_leaves,
        "checksum": int(checksum),
        "beyond": beyond,
    }
    count_up(conn, generation, amounts)
