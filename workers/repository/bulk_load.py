"""Bulk load: the postings that a new generation begins with, by COPY instead of row by row."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from schemas.errors import UsageError
from schemas.records import BoolArray, FloatArray, HalfArray, IntArray, require_finite
from workers.repository.binary_copy import Column, as_arrays, as_bytes, write_rows
from workers.repository.connection import (
    Connection,
    execute,
    fetch_column,
    fetch_row,
    fetch_rows,
    transaction,
)
from workers.repository.counters import count_up, sum_of_hashes, totals

# Numbers of PostgreSQL's types, which are the same everywhere.
_INT8 = 20
_FLOAT4 = 700


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
        order = np.lexsort((self.leaves, self.posted_keys))
        leaves, keys = self.leaves[order], self.posted_keys[order]
        twice = np.flatnonzero((leaves[1:] == leaves[:-1]) & (keys[1:] == keys[:-1]))
        if len(twice):
            raise ValueError(
                f"the leaves of an image must differ, got {leaves[twice[0]]} twice for image "
                f"{keys[twice[0]]}"
            )
        primaries = self.posted_keys[self.suffixes >= 0]
        owners, counts = np.unique(primaries, return_counts=True)
        others = [*owners[counts > 1], *np.setdiff1d(self.image_keys, owners)]
        if others:
            count = int((primaries == others[0]).sum())
            raise ValueError(f"an image must have 1 primary, got {count} for image {others[0]}")


def bulk_append(conn: Connection, generation: int, load: InitialLoad, *, more: bool = False) -> int:
    """Load an empty generation with COPY, in one transaction; return how many images it loaded.

    With `more`, load a further part into one that is loaded in parts, and leave out what an
    earlier part brought. Images deleted meanwhile are left out too. `UsageError` when the
    generation is not empty, without `more`.
    """
    with transaction(conn):
        wanted = _array(load.image_keys)
        existing = dict(fetch_rows(conn, "lock_images_by_key", image_keys=wanted))
        # Alone in the generation, so that no append takes a suffix of the load.
        fetch_rows(conn, "own_generation", generation=generation)
        if more:
            for present in fetch_column(
                conn, "present_images", generation=generation, image_keys=wanted
            ):
                existing.pop(present, None)
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
        alternate = posted & (load.suffixes < 0)
        _copy_placements(conn, generation, load, kept, posted)
        # After the slow COPY, so that the leaves are locked briefly.
        opened = _record_suffixes(conn, generation, load.leaves[primary], load.suffixes[primary])
        checksum = _checksum(load, primary, existing) + _checksum(load, alternate, existing)
        amounts = {
            "images": int(primary.sum()),
            "postings": int(posted.sum()),
            "leaves": opened,
            "checksum": checksum,
            "beyond": _beyond(conn, generation, load.suffixes[primary]),
        }
        count_up(conn, generation, amounts)
        execute(conn, "mark_indexed", image_keys=_array(kept_keys))
        fetch_rows(conn, "notify_index", generation=generation)
    return int(kept.sum())


def _copy_placements(
    conn: Connection, generation: int, load: InitialLoad, kept: BoolArray, posted: BoolArray
) -> None:
    """Load the kept (N,) images with their posted (P,) postings, one row an image."""
    # Images in the order of their keys, which fills the index of keys in order. Of each the primary
    # first, and the likeliest alternates then.
    images = np.flatnonzero(kept)
    images = images[np.argsort(load.image_keys[images], kind="stable")]
    postings = np.flatnonzero(posted)
    is_alternate = load.suffixes[postings] < 0
    own_keys, weights = load.posted_keys[postings], load.weights[postings]
    postings = postings[np.lexsort((load.leaves[postings], -weights, is_alternate, own_keys))]
    keys = load.image_keys[images]
    first = np.searchsorted(load.posted_keys[postings], keys)
    counts = np.searchsorted(load.posted_keys[postings], keys, side="right") - first
    # Binary rows of one width cannot have a NULL in some places: one COPY for each width.
    for count in np.unique(counts).tolist():
        alike = counts == count
        # (M, count) postings of M images.
        own = postings[first[alike][:, None] + np.arange(count)]
        columns = _placement_columns(generation, load, images[alike], own)
        write_rows(conn, f"copy_placements_of_{count if count <= 3 else 'more'}", columns)


def _placement_columns(
    generation: int, load: InitialLoad, images: IntArray, postings: IntArray
) -> dict[str, tuple[str, Column]]:
    """Columns of (M,) images, given as rows of the load, with (M, C) postings each."""
    embeddings = as_bytes(load.embeddings[images])
    columns: dict[str, tuple[str, Column]] = {
        "generation": (">i4", np.full(len(images), generation)),
        "image_key": (">i8", load.image_keys[images]),
        "embedding": (embeddings.dtype.str, embeddings),
        "confidence": (">f4", load.confidences[images]),
        "trained": ("u1", np.broadcast_to(load.trained, len(load.image_keys))[images]),
    }
    leaves, weights = load.leaves[postings], load.weights[postings]
    for place in range(min(3, postings.shape[1])):
        number = str(place + 1) if place else ""
        columns[f"leaf{number}"] = (">i8", leaves[:, place])
        columns[f"weight{number}"] = (">f4", weights[:, place])
        if not place:
            columns["suffix"] = (">i4", load.suffixes[postings[:, 0]])
    if postings.shape[1] > 3:
        for name, values, kind, element in (
            ("more_leaves", leaves, ">i8", _INT8),
            ("more_weights", weights, ">f4", _FLOAT4),
        ):
            arrays = as_arrays(values[:, 3:], kind, element)
            columns[name] = (arrays.dtype.str, arrays)
    return columns


def _record_suffixes(
    conn: Connection, generation: int, leaves: IntArray, suffixes: IntArray
) -> int:
    """Record the suffixes of (K,) primaries in their leaves; return how many leaves were empty."""
    loaded_leaves, position, primaries = np.unique(leaves, return_inverse=True, return_counts=True)
    # One above the highest suffix that the load has in each leaf.
    suffix_ends = np.zeros(len(loaded_leaves), dtype=np.int64)
    np.maximum.at(suffix_ends, position, suffixes + 1)
    known_leaves = fetch_column(
        conn, "lock_known_leaves", generation=generation, leaves=_array(loaded_leaves)
    )
    known = np.isin(loaded_leaves, np.array(known_leaves, np.int64))
    row = fetch_row(
        conn,
        "fill_leaves",
        generation=generation,
        leaves=_array(loaded_leaves[known]),
        next_suffixes=_array(suffix_ends[known]),
        lives=_array(primaries[known]),
    )
    columns: dict[str, tuple[str, Column]] = {
        "generation": (">i4", np.full(int((~known).sum()), generation)),
        "leaf": (">i8", loaded_leaves[~known]),
        "next_suffix": (">i4", suffix_ends[~known]),
        "live": (">i4", primaries[~known]),
    }
    write_rows(conn, "copy_leaves", columns)
    return int((~known).sum()) + (int(row[0]) if row else 0)


def _checksum(load: InitialLoad, chosen: BoolArray, image_ids: Mapping[int, str]) -> int:
    """The sum of the hashes of the chosen (P,) postings, all primary or none of them."""
    is_primary = bool((load.suffixes[chosen] >= 0).any())
    owners = map(image_ids.__getitem__, load.posted_keys[chosen].tolist())
    return sum_of_hashes(owners, load.leaves[chosen].tolist(), is_primary=is_primary)


def _array(values: IntArray) -> str:
    """(N,) values as PostgreSQL writes an array: psycopg looks at each element of a list."""
    return f"{{{','.join(map(str, values.tolist()))}}}"


def _beyond(conn: Connection, generation: int, suffixes: IntArray) -> int:
    """How many of (K,) suffixes lie beyond the shape."""
    row = fetch_row(conn, "shape_suffixes", generation=generation)
    return int((suffixes >= (row or (0,))[0]).sum())
