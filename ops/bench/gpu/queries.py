"""Queries on one GPU: how long one takes, how many there are a second, and what makes it wait."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from model.decoding.beam import Beams, Guide, search_leaves
from model.decoding.decoder import Decoder
from model.retrieval.guidance import READING_TEXTS
from model.retrieval.prefix_means import PrefixMeans
from model.retrieval.trie import Trie
from ops.bench.gpu.training import finish
from ops.bench.query_texts import query_texts
from schemas.identifiers import LEVELS
from schemas.records import FloatArray

_WARM_UP = 3

# Vectors of a guide: as many different ones, each of them of many images.
_VECTORS = 10_000

# What makes a host wait for its GPU, by the names of PyTorch's operators: a value that is read, and
# a result whose size is not known before.
_WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")


@dataclass(frozen=True, slots=True)
class QueryFigures:
    """Searches one after the other, texts to leaves on the host."""

    graphs: bool
    """Whether searches were replayed by CUDA graphs."""
    guided: bool
    """Whether beams were guided by prefix means, twice as many of them, as the product's are."""
    beams: int
    batch: int
    """Queries of a search."""
    searches: int
    p50_ms: float
    p99_ms: float
    queries_per_s: float
    synchronisations: float
    """How often a search makes the host wait; on a CPU, how often it would."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The same queries with graphs and without, by a decoder in bfloat16."""

    queries: int
    same_leaves: float
    """Share of the leaves of both that are the same."""
    largest_difference: float
    """Of the scores of the same leaves, in nats."""


class QueryBench:
    """A decoder over a gallery of random identifiers."""

    def __init__(self, sigma: Any, images: int, seed: int) -> None:
        """`sigma` has the number format that it answers in."""
        self._decoder = Decoder(sigma)
        self._graphs = self._decoder.graphs
        self._seed = seed
        self._shape = sigma.profile.shape
        self._trie = Trie(self._shape, sigma.device)
        slots = np.arange(images)
        self._leaves = np.random.default_rng(seed).integers(0, self._shape.leaves, images)
        zeros = np.zeros(images, np.float32)
        self._trie.insert(self._leaves, slots, zeros, slots % self._shape.suffixes)
        self._vectors = _unit_vectors(_VECTORS, sigma.profile.embedding_width, seed)
        self._means: PrefixMeans | None = None

    @property
    def device(self) -> torch.device:
        """Where the decoder is."""
        return self._decoder.device

    def measure(
        self, beams: int, batch: int, searches: int, *, graphs: bool = False, guided: bool = False
    ) -> QueryFigures:
        """Figures of so many searches."""
        self._decoder.graphs = self._graphs if graphs else None
        wider = READING_TEXTS.wider if guided else 1

        def answer(texts: Sequence[str]) -> None:
            self._search(texts, beams * wider, guided=guided).on_host()

        texts = query_texts((searches + _WARM_UP) * batch, self._seed)
        batches = [texts[place : place + batch] for place in range(0, len(texts), batch)]
        # All once where there are graphs: those of each length are captured before.
        for each in batches if graphs else batches[:_WARM_UP]:
            answer(each)
        took = [_milliseconds(answer, each) for each in batches[_WARM_UP:]]
        p50, p99 = np.percentile(took, [50, 99]).tolist()
        rate = batch * len(took) / sum(took) * 1e3
        waits = _synchronisations(answer, batches[0], self.device)
        return QueryFigures(graphs, guided, beams, batch, searches, p50, p99, rate, waits)

    def agreement(self, beams: int, queries: int) -> Agreement:
        """How far searches by graphs are from those that run as they are."""
        shared = 0
        differences = [0.0]
        for text in query_texts(queries, self._seed + 1):
            found = []
            for graphs in (self._graphs, None):
                self._decoder.graphs = graphs
                own = self._search([text], beams, guided=False).on_host()
                found.append(dict(zip(own.leaves[0].tolist(), own.scores[0].tolist(), strict=True)))
            both = set(found[0]) & set(found[1])
            shared += len(both)
            differences += [abs(found[0][leaf] - found[1][leaf]) for leaf in both]
        return Agreement(queries, shared / (queries * beams), max(differences))

    def mask_ms(self, beams: int, repeats: int) -> float:
        """Milliseconds of the mask of one step: children of all beams, in the deepest table."""
        branches = self._trie.branches
        level = LEVELS - 1
        prefixes = torch.from_numpy(self._leaves[:beams] // self._shape.codes[level])
        prefixes = prefixes.unsqueeze(0).to(self.device)
        gains = torch.zeros((1, beams, self._shape.codes[level]), device=self.device)

        def steps(count: int) -> None:
            for _ in range(count):
                gains.masked_fill(branches.children(level, prefixes) == 0, float("-inf"))
            finish(self.device)

        steps(_WARM_UP)
        began = time.perf_counter()
        steps(repeats)
        return (time.perf_counter() - began) * 1e3 / repeats

    def _search(self, texts: Sequence[str], beams: int, *, guided: bool) -> Beams:
        guide = None
        if guided:
            queries = torch.from_numpy(self._vectors[: len(texts)])
            guide = Guide(self._prefix_means(), queries, READING_TEXTS.weight)
        prompt = self._decoder.read_texts(texts)
        branches = self._trie.branches
        return search_leaves(self._decoder, prompt, self._shape, beams, branches, guide)

    def _prefix_means(self) -> PrefixMeans:
        if self._means is None:
            self._means = PrefixMeans(self._shape, self._vectors.shape[1], self.device)
            for start in range(0, len(self._leaves), _VECTORS):
                own = self._leaves[start : start + _VECTORS]
                self._means.add(own, self._vectors[: len(own)])
        return self._means


def _unit_vectors(count: int, width: int, seed: int) -> FloatArray:
    rows = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    unit: FloatArray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _milliseconds(work: Callable[[Sequence[str]], None], texts: Sequence[str]) -> float:
    began = time.perf_counter()
    work(texts)
    return (time.perf_counter() - began) * 1e3


def _synchronisations(
    answer: Callable[[Sequence[str]], None], texts: Sequence[str], device: torch.device
) -> int:
    """How often one search makes the host wait: CUDA warns of it; on a CPU operators are counted.

    Asynchronous copies from memory that is not pinned are no waits by CUDA's own count.
    """
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            answer(texts)
            torch.cuda.set_sync_debug_mode("default")
        # The first call says once that the count itself is a prototype.
        messages = [str(warning.message) for warning in caught]
        return sum("synchroniz" in text and "prototype" not in text for text in messages)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        answer(texts)
    counted = {event.key: event.count for event in profiled.key_averages()}
    return sum(counted.get(name, 0) for name in _WAITING)
