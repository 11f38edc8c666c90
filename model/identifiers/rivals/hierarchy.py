"""Structured identifiers of GRACE: paths through hierarchical k-means, as in DSI (Tay et al. 2022).

Letters in shapes: N images, n of a cluster, D embedding width.
"""

from dataclasses import dataclass, field

import numpy as np

from model.identifiers.codebook import nearest
from model.identifiers.kmeans import kmeans_centres
from model.identifiers.rivals.scheme import FittedScheme, Identifier, SchemeImages, single
from schemas.records import FloatArray, IntArray

# Clusters that a cluster is divided into, and images that are not divided further.
_BRANCHES = 8

# Numbers that a level has: later images may fill a last cluster beyond its first eight.
_NUMBERS = 64

# Levels at most: identical pictures cannot be divided.
_MOST_LEVELS = 8

_STARTS = 2


@dataclass(slots=True)
class _Cluster:
    """A node of the hierarchy; without centres it numbers its images."""

    centres: FloatArray | None = None
    children: list["_Cluster"] = field(default_factory=list)
    images: int = 0

    def path(self, vector: FloatArray) -> list[int]:
        """Descend to the last cluster, and take its next number."""
        if self.centres is None:
            self.images += 1
            return [self.images - 1]
        child = int(nearest(vector[np.newaxis], self.centres)[0])
        return [child, *self.children[child].path(vector)]


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Numbers of clusters within clusters; the last one counts the images of a small cluster."""

    name: str = "GRACE structured"
    source: str = "Li et al. 2024"
    deviation: str = ""
    later: str = "the path of the nearest centres, and the next number there"
    writes: bool = False
    reranked: bool = False

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """Divide the images until clusters are small."""
        rows = np.arange(len(images), dtype=np.int64)
        root = _divided(images.vectors, rows, seed, _MOST_LEVELS)
        paths = [_symbols(root.path(vector)) for vector in images.vectors]

        def assign(later: SchemeImages) -> list[list[Identifier]]:
            assigned: list[list[Identifier]] = []
            for vector in later.vectors:
                path = root.path(vector)
                # A cluster that is full takes no more.
                assigned.append([_symbols(path)] if path[-1] < _NUMBERS else [])
            return assigned

        return FittedScheme(_MOST_LEVELS * _NUMBERS, single(paths, images), assign)


def _divided(vectors: FloatArray, rows: IntArray, seed: int, levels: int) -> _Cluster:
    inside = vectors[rows]
    different = len(np.unique(np.round(inside, 6), axis=0))
    if len(rows) <= _BRANCHES or levels == 1 or different < _BRANCHES:
        return _Cluster()
    found = kmeans_centres(inside, _BRANCHES, starts=_STARTS, seed=seed)
    centres = found.astype(np.float32)
    labels = nearest(inside, centres)
    children = [
        _divided(vectors, rows[labels == label], seed, levels - 1) for label in range(_BRANCHES)
    ]
    return _Cluster(centres, children)


def _symbols(path: list[int]) -> tuple[int, ...]:
    return tuple(level * _NUMBERS + number for level, number in enumerate(path))
