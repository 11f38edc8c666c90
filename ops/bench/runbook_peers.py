"""Peers of a runbook: hnswlib, FAISS IVF-PQ and usearch (optional extra `bench`), one thread each.

Each gets the same float32 vectors and the same query vectors as ours. Inner product of unit
vectors is their cosine. Letters in shapes: n images of a step, D embedding width.
"""

from typing import Any

import numpy as np

from ops.bench.runbook_images import RunbookImages
from ops.bench.runbook_index import RunbookIndex, vectors_of
from ops.peer_library import peer_library
from schemas.records import IntArray

# Neighbours of a node, and candidates kept while inserting and while searching. The first is the
# default of both graph libraries; the others are above their defaults, for recall.
_LINKS = 16
_BUILD_WIDTH = 200
_SEARCH_WIDTH = 100

# Inverted lists, subquantisers of 8 bits and lists that a query opens.
_LISTS = 64
_SUBQUANTISERS = 32
_PROBES = 8

# Images that IVF-PQ finds by codes before their whole vectors rank them.
_RERANKED = 100

# Vectors that FAISS wants at least for a list of its own.
_LEAST_A_LIST = 39


def peers(images: RunbookImages) -> list[RunbookIndex]:
    """All peers, empty. `RefuseToStartError` where one is not installed."""
    return [
        HnswlibIndex(images),
        UsearchIndex(images),
        IvfPqIndex(images),
        IvfPqIndex(images, True),
    ]


class HnswlibIndex:
    """Hierarchical navigable small worlds (Malkov and Yashunin 2018), deletion by mark."""

    name = "hnswlib"
    setting = f"M {_LINKS}, ef {_BUILD_WIDTH} / {_SEARCH_WIDTH}, deleted places are used again"
    candidates = None

    def __init__(self, images: RunbookImages) -> None:
        self._images = images
        self._index: Any = peer_library("hnswlib").Index(space="ip", dim=images.vectors.shape[1])
        self._index.init_index(
            len(images), ef_construction=_BUILD_WIDTH, M=_LINKS, allow_replace_deleted=True
        )
        self._index.set_num_threads(1)
        self._index.set_ef(_SEARCH_WIDTH)

    @property
    def bytes(self) -> int:
        """Of its file."""
        return int(self._index.index_file_size())

    def insert(self, ids: IntArray) -> None:
        """Insert (n,) images."""
        self._index.add_items(vectors_of(self._images, ids), ids, replace_deleted=True)

    def delete(self, ids: IntArray) -> None:
        """Mark (n,) images."""
        for number in ids.tolist():
            self._index.mark_deleted(number)

    def search(self, count: int) -> list[IntArray]:
        """Search the graph, one query after the other."""
        found: list[IntArray] = []
        for query in self._images.query_vectors:
            found.append(self._nearest(query[np.newaxis], count))
        return found

    def _nearest(self, query: Any, count: int) -> IntArray:
        # It raises where the graph leads to fewer images than were asked for.
        for wanted in range(count, 0, -1):
            try:
                labels, _ = self._index.knn_query(query, k=wanted, num_threads=1)
            except RuntimeError:
                continue
            return np.asarray(labels[0], np.int64)
        return np.empty(0, np.int64)

    def close(self) -> None:
        """Freed with the object."""


class UsearchIndex:
    """The graph of usearch, in float32."""

    name = "usearch"
    setting = f"connectivity {_LINKS}, expansion {_BUILD_WIDTH} / {_SEARCH_WIDTH}"
    candidates = None

    def __init__(self, images: RunbookImages) -> None:
        self._images = images
        self._index: Any = peer_library("usearch.index").Index(
            ndim=images.vectors.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=_LINKS,
            expansion_add=_BUILD_WIDTH,
            expansion_search=_SEARCH_WIDTH,
        )

    @property
    def bytes(self) -> int:
        """Of its file."""
        return int(self._index.serialized_length)

    def insert(self, ids: IntArray) -> None:
        """Insert (n,) images."""
        if len(ids):
            self._index.add(ids.astype(np.uint64), vectors_of(self._images, ids), threads=1)

    def delete(self, ids: IntArray) -> None:
        """Delete (n,) images."""
        if len(ids):
            self._index.remove(ids.astype(np.uint64), threads=1)

    def search(self, count: int) -> list[IntArray]:
        """Search the graph, one query after the other."""
        found: list[IntArray] = []
        for query in self._images.query_vectors:
            matches = self._index.search(query, count, threads=1)
            found.append(np.asarray(matches.keys, np.int64))
        return found

    def close(self) -> None:
        """Free its memory."""
        self._index.reset()


class IvfPqIndex:
    """Inverted lists of product-quantised residuals (Jégou et al. 2011).

    Trained before the first step on all images of the runbook, which no index in a stream could
    be: an advantage over the others. Re-ranked, whole vectors order its first hundred.
    """

    def __init__(self, images: RunbookImages, reranked: bool = False) -> None:
        self._images = images
        self._faiss: Any = peer_library("faiss")
        self._faiss.omp_set_num_threads(1)
        width = images.vectors.shape[1]
        self._reranked = reranked
        lists = max(1, min(_LISTS, len(images) // _LEAST_A_LIST))
        # A quantiser cannot have more centroids than it is trained on.
        bits = min(8, int(np.log2(max(2, len(images)))))
        parts = _SUBQUANTISERS if width % _SUBQUANTISERS == 0 else 1
        quantizer = self._faiss.IndexFlatIP(width)
        self._index = self._faiss.IndexIVFPQ(
            quantizer, width, lists, parts, bits, self._faiss.METRIC_INNER_PRODUCT
        )
        # Python would free it while the index points to it.
        self._quantizer = quantizer
        self._index.train(vectors_of(images, np.arange(len(images))))
        self._index.nprobe = min(_PROBES, lists)
        self.name = "FAISS IVF-PQ" + (", re-ranked" if reranked else "")
        self.setting = f"{lists} lists, {parts} x {bits} bits, {self._index.nprobe} probes"
        self.candidates = float(_RERANKED) if reranked else None

    @property
    def bytes(self) -> int:
        """Of its file, and the vectors that re-rank."""
        own = int(self._faiss.serialize_index(self._index).nbytes)
        vectors = int(self._index.ntotal) * self._images.vectors[0].nbytes
        return own + (vectors if self._reranked else 0)

    def insert(self, ids: IntArray) -> None:
        """Insert (n,) images."""
        self._index.add_with_ids(vectors_of(self._images, ids), ids)

    def delete(self, ids: IntArray) -> None:
        """Delete (n,) images."""
        self._index.remove_ids(ids)

    def search(self, count: int) -> list[IntArray]:
        """Open the nearest lists, one query after the other."""
        found: list[IntArray] = []
        wanted = max(count, _RERANKED) if self._reranked else count
        for query in self._images.query_vectors:
            _, labels = self._index.search(query[np.newaxis], wanted)
            ids = labels[0][labels[0] >= 0].astype(np.int64)
            if self._reranked:
                order = np.argsort(-(self._images.vectors[ids] @ query), kind="stable")
                ids = ids[order]
            found.append(ids[:count])
        return found

    def close(self) -> None:
        """Freed with the object."""
