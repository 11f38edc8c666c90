"""The served generations: the engines that can answer, and which of them is live.

The decode thread owns them, and applies engine updates between two batches of queries. So every
answer comes from one generation in one state.
"""

import time
from collections.abc import Callable, Collection
from queue import SimpleQueue

import numpy as np
import structlog

from schemas.events import now
from schemas.records import IntArray
from workers.query.engine import QueryEngine
from workers.query.reporter import Report, SearchableImages
from workers.query.searcher import Searcher
from workers.query.shadowing import ShadowQueue
from workers.query.updates import (
    ChangesApplied,
    EngineUpdate,
    GenerationLoaded,
    GenerationPromoted,
    GenerationUnloaded,
)
from workers.runtime.query_metrics import QueryMetrics

# Newest images that are compared at a switch: more than arrive while two followers differ. Of the
# previous generation twice as many are asked for, as many as its engine remembers.
_NEWEST = 10_000

log = structlog.get_logger()


class ServedGenerations:
    """The loaded searchers by generation, and the live one. For the decode thread."""

    def __init__(
        self,
        metrics: QueryMetrics,
        shadows: ShadowQueue,
        report: Callable[[Report], None],
        set_leading: Callable[[int], None],
    ) -> None:
        """`set_leading` is called with the number of each generation that begins to answer."""
        self.live: Searcher[QueryEngine] | None = None
        self._metrics = metrics
        self._shadows = shadows
        self._report = report
        self._set_leading = set_leading
        self._searchers: dict[int, Searcher[QueryEngine]] = {}

    @property
    def live_number(self) -> int | None:
        """The number of the generation that answers by default."""
        return None if self.live is None else self.live.generation.id

    @property
    def numbers(self) -> Collection[int]:
        """The numbers of all loaded generations."""
        return self._searchers.keys()

    def get(self, number: int) -> Searcher[QueryEngine]:
        """Return the searcher of a loaded generation."""
        return self._searchers[number]

    def select(self, numbers: Collection[int]) -> list[Searcher[QueryEngine]]:
        """Return the searchers of those of these generations that are loaded."""
        return [self._searchers[number] for number in numbers if number in self._searchers]

    def take(self, update: EngineUpdate) -> None:
        """Apply an update. Those of a searcher that was replaced have no effect."""
        searcher = update.searcher
        if isinstance(update, GenerationLoaded):
            self._load(searcher)
            return
        if self._searchers.get(searcher.generation.id) is not searcher:
            return
        match update:
            case ChangesApplied():
                self._apply(update)
            case GenerationPromoted():
                self._promote(searcher)
            case GenerationUnloaded():
                self._unload(searcher)

    def take_waiting(self, updates: "SimpleQueue[EngineUpdate]", most_s: float) -> None:
        """Apply updates in their order, at least one if there is one, for `most_s` seconds or so.

        Only those that are there now: a follower that sends on and on must not stop queries.
        """
        until_s = time.monotonic() + most_s
        for _ in range(updates.qsize()):
            self.take(updates.get())
            if time.monotonic() >= until_s:
                return

    def close(self) -> None:
        """Close all searchers."""
        for searcher in self._searchers.values():
            searcher.close()

    def _load(self, searcher: Searcher[QueryEngine]) -> None:
        number = searcher.generation.id
        previous = self._searchers.get(number)
        self._searchers[number] = searcher
        log.info("generation loaded", generation=number, images=searcher.engine.images)
        if previous is None:
            return
        searcher.inherit(previous)
        # Comparisons may refer to the searcher that is closed below.
        self._shadows.clear()
        if previous is self.live:
            self._promote(searcher)
        previous.close()

    def _promote(self, searcher: Searcher[QueryEngine]) -> None:
        previous = self.live
        number = searcher.generation.id
        self.live = searcher
        self._set_leading(number)
        self._measure(searcher.engine)
        if previous is None or previous is searcher:
            log.info("generation promoted", generation=number, images=searcher.engine.images)
            return
        self._shadows.clear()
        newly_searchable = keys_only_in_first(
            searcher.engine.newest(_NEWEST), previous.engine.newest(2 * _NEWEST)
        )
        if len(newly_searchable):
            self._report(SearchableImages(newly_searchable, now()))
        if previous.generation.id != number:
            self._metrics.switches.inc()
            log.info("generation promoted", generation=number, previous=previous.generation.id)

    def _apply(self, update: ChangesApplied) -> None:
        keys = update.searcher.apply(update.changes)
        if update.searcher is not self.live:
            return
        if len(keys):
            self._report(SearchableImages(keys, now()))
        self._measure(update.searcher.engine)

    def _unload(self, searcher: Searcher[QueryEngine]) -> None:
        if searcher is self.live:
            # It went live again while its follower was stopping. It answers until the residents,
            # which see it live too, have loaded it anew.
            return
        del self._searchers[searcher.generation.id]
        self._shadows.clear()
        searcher.close()
        log.info("generation unloaded", generation=searcher.generation.id)

    def _measure(self, engine: QueryEngine) -> None:
        self._metrics.images.set(engine.images)
        self._metrics.leaves.set(engine.occupied_leaves)
        self._metrics.generation.set(engine.generation)


def keys_only_in_first(first: IntArray, second: IntArray) -> IntArray:
    """Return the image keys that a switch from `second` to `first` makes searchable, ascending.

    The follower of the new generation may bring an image before that of the old one does; then
    nothing has reported the image as searchable yet.
    """
    return np.setdiff1d(first, second)
