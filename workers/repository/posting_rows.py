"""The posting rows: postings as they are read, an image at a time in one row of the database."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from schemas.records import BoolArray, FloatArray, IntArray
from workers.repository.binary_copy import Column, Rows, read_rows, row_layout
from workers.repository.connection import Connection

# The postings of an image. A leaf of -1 stands for an alternate that is not there.
_IMAGE_LAYOUT = row_layout(
    {
        "image_key": ">i8",
        "leaf": ">i8",
        "suffix": ">i4",
        "weight": ">f4",
        "leaf2": ">i8",
        "weight2": ">f4",
        "leaf3": ">i8",
        "weight3": ">f4",
        "has_more": "u1",
    }
)

# An alternate that is not one of the first two of its image.
_MORE_LAYOUT = row_layout({"image_key": ">i8", "leaf": ">i8", "weight": ">f4"})


@dataclass(frozen=True, slots=True)
class PostingRows:
    """P postings."""

    leaves: IntArray
    """(P,)"""
    image_keys: IntArray
    """(P,)"""
    weights: FloatArray
    """(P,)"""
    suffixes: IntArray
    """(P,); -1 marks an alternate"""

    def __len__(self) -> int:
        return len(self.leaves)

    def only(self, kept: BoolArray | IntArray) -> "PostingRows":
        """Some of the postings, by (P,) mask or by row."""
        return PostingRows(
            self.leaves[kept],
            self.image_keys[kept],
            self.weights[kept],
            self.suffixes[kept],
        )


def read_postings(
    conn: Connection, query: str, more: str, parameters: Mapping[str, object]
) -> PostingRows:
    """The postings that a query finds, and those that `more` finds where there are any."""
    images = _joined(read_rows(conn, query, _IMAGE_LAYOUT, parameters), _IMAGE_LAYOUT)
    parts = [_primaries(images)]
    for leaf, weight in (("leaf2", "weight2"), ("leaf3", "weight3")):
        there = images[images[leaf] >= 0]
        parts.append(_alternates(there["image_key"], there[leaf], there[weight]))
    if images["has_more"].any():
        rows = _joined(read_rows(conn, more, _MORE_LAYOUT, parameters), _MORE_LAYOUT)
        parts.append(_alternates(rows["image_key"], rows["leaf"], rows["weight"]))
    return PostingRows(
        leaves=np.concatenate([part.leaves for part in parts]),
        image_keys=np.concatenate([part.image_keys for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        suffixes=np.concatenate([part.suffixes for part in parts]),
    )


def _joined(chunks: Iterator[Rows], layout: np.dtype[np.void]) -> Rows:
    parts = list(chunks)
    return np.concatenate(parts) if parts else np.empty(0, layout)


def _primaries(images: Rows) -> PostingRows:
    return PostingRows(
        leaves=images["leaf"].astype(np.int64),
        image_keys=images["image_key"].astype(np.int64),
        weights=images["weight"].astype(np.float32),
        suffixes=images["suffix"].astype(np.int64),
    )


def _alternates(image_keys: Column, leaves: Column, weights: Column) -> PostingRows:
    return PostingRows(
        leaves=leaves.astype(np.int64),
        image_keys=image_keys.astype(np.int64),
        weights=weights.astype(np.float32),
        suffixes=np.full(len(leaves), -1),
    )
