"""Holding: a query worker keeps the live generation, the shadow ones and the fallback generation in memory, each followed by a thread of its own.

Everything goes to the decode thread, which owns the engines, as an `EngineUpdate`: so a switch is a message between two batches of
queries, from one warm engine to another. A follower that finds its own generation live brings it up to date before it says
so, hence an image that could be found before a switch can be found after it.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass

import structlog

from schemas.errors import SigmaError
from workers.query.searcher import Searcher
from workers.repository import generations
from workers.repository.follower import Changes
from workers.repository.generations import Generation
from workers.runtime.metrics import QueryMetrics
from workers.runtime.model_loader import RETRY_S, background_thread
from workers.runtime.process import TRANSIENT_ERRORS, keep_running, settle_memory
from workers.runtime.services import Services

_LOOK_S = 1.0
_LIVE_RETRY_S = 5.0
_NOBODY = "no generation is live yet; train one with: sigma train --manifest F"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GenerationLoaded:
    """A generation can answer from now on; it takes the place of an engine of the same number."""

    searcher: Searcher


@dataclass(frozen=True, slots=True)
class ChangesApplied:
    """What changed in a generation."""

    searcher: Searcher
    changes: Changes


@dataclass(frozen=True, slots=True)
class GenerationPromoted:
    """This generation is live: queries that name none are answered from it."""

    searcher: Searcher


@dataclass(frozen=True, slots=True)
class GenerationUnloaded:
    """This generation is needed no more."""

    searcher: Searcher


EngineUpdate = GenerationLoaded | ChangesApplied | GenerationPromoted | GenerationUnloaded

LoadSearcher = Callable[[Services, Generation, Searcher | None, bool], Searcher]
"""Loads a generation; the searcher it replaces has weights that are still good; whether it is live."""


def load_searcher(
    services: Services, generation: Generation, before: Searcher | None, live: bool
) -> Searcher:
    """Load and warm up. Only the live generation decodes with vLLM, which one process can run once."""
    engine = services.settings.engine if live else "torch"
    searcher = Searcher(
        services, generation, before.engine.checkpoint if before else None, engine=engine
    )
    if before is None or searcher.engine.accelerated:
        # Otherwise the weights are those of `before`: warm, and in use by the decode thread.
        searcher.search(["warm up"], 1)
    return searcher


class ResidentGenerations:
    """Decides which generations are held, and holds them."""

    def __init__(
        self,
        services: Services,
        stop: threading.Event,
        metrics: QueryMetrics,
        hand: Callable[[EngineUpdate], None],
        load: LoadSearcher = load_searcher,
    ) -> None:
        self.services, self.stop, self.metrics, self.hand, self.load = (
            services,
            stop,
            metrics,
            hand,
            load,
        )
        self.problem = "starting"
        """Why no generation can answer, as far as it is known."""
        self.leading: int | None = None
        """The generation that answers; set by the decode thread."""
        self.shadows: frozenset[int] = frozenset()
        """Numbers of the candidates."""
        self.loader: ThreadPoolExecutor = background_thread("loading")
        self._holders: dict[int, GenerationFollower] = {}

    def run(self) -> None:
        """Look which generations are wanted whenever one changes its state; until stopped."""
        try:
            keep_running(self._session, self.stop, "query")
        finally:
            self.loader.shutdown(wait=False, cancel_futures=True)
            for holder in self._holders.values():
                holder.join()

    def _session(self, stop: threading.Event) -> None:
        with self.services.connect("query control") as conn:
            conn.execute(f"LISTEN {generations.CHANNEL}".encode())
            while not stop.is_set():
                self._look(generations.generations(conn))
                for _ in conn.notifies(timeout=_LOOK_S, stop_after=1):
                    pass

    def _look(self, found: list[Generation]) -> None:
        """Begin to hold what is wanted, the live one first, and let go of the rest."""
        live = [one for one in found if one.state == "live"]
        shadows = [one for one in found if one.state == "shadow"]
        back = generations.find_fallback(found) if self.services.settings.keep_fallback else None
        wanted = {one.id: one for one in (*live, *shadows, *([back] if back else ()))}
        self.shadows = frozenset(one.id for one in shadows)
        if not live:
            self.problem = _NOBODY
        for number in self._holders.keys() - wanted.keys() - {self.leading}:
            self._holders.pop(number).stop.set()
        for number, generation in wanted.items():
            if number not in self._holders:
                self._holders[number] = GenerationFollower(self, generation)
        self.metrics.resident.set(len(self._holders))


class GenerationFollower:
    """Loads one generation and follows it until it is told to stop."""

    def __init__(self, keeper: ResidentGenerations, generation: Generation) -> None:
        self.stop = threading.Event()
        self._keeper = keeper
        self._generation = generation
        self._searcher: Searcher | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"follow {generation.id}", daemon=True
        )
        self._thread.start()

    def join(self) -> None:
        """End, within the time that a follower sleeps at most."""
        self.stop.set()
        self._thread.join(5 * _LOOK_S)

    @property
    def _over(self) -> bool:
        return self.stop.is_set() or self._keeper.stop.is_set()

    def _run(self) -> None:
        while not self._over:
            try:
                self._session()
            except TRANSIENT_ERRORS as error:
                log.warning(
                    "following ended, trying again",
                    generation=self._generation.id,
                    reason=str(error),
                )
                self.stop.wait(_LOOK_S)
            except (
                Exception
            ) as error:  # whatever is wrong with one generation must not end the others
                self.stop.wait(self._failed(error))
        if self._searcher is not None:
            self._keeper.hand(GenerationUnloaded(self._searcher))

    def _failed(self, error: Exception) -> float:
        """Say what is wrong; returns the seconds until the next try."""
        keeper, live = self._keeper, self._generation.state == "live"
        keeper.metrics.load_failures.inc()
        log.error(
            "generation cannot be held",
            generation=self._generation.id,
            state=self._generation.state,
            reason=str(error),
        )
        if live:
            keeper.problem = (
                str(error)
                if isinstance(error, SigmaError)
                else f"generation {self._generation.id} cannot be loaded: {error}"
            )
        return _LIVE_RETRY_S if live else RETRY_S

    def _session(self) -> None:
        """Load, then pass on what changes; the weights of an earlier session are used again."""
        with self._keeper.services.connect("query control") as conn:
            self._generation = generations.get(conn, self._generation.id)
        searcher = self._loaded(self._generation.state == "live")
        leads = False
        while searcher is not None and not self._over:
            # Asked first and read afterwards: what was committed before the switch is then in the changes.
            live = searcher.follower.live()
            if changes := searcher.follower.changes():
                self._keeper.hand(ChangesApplied(searcher, changes))
            if live and not leads:
                self._keeper.hand(GenerationPromoted(searcher))
                if self._slow(searcher):
                    searcher = self._loaded(live=True)
                    continue
            leads = live
            searcher.follower.wait(_LOOK_S)

    def _slow(self, searcher: Searcher) -> bool:
        """Whether vLLM is wanted and this generation, until now not live, decodes without."""
        return self._keeper.services.settings.engine == "vllm" and not searcher.engine.accelerated

    def _loaded(self, live: bool) -> Searcher | None:
        """A searcher that the decode thread has, or None when it is no longer wanted."""
        keeper = self._keeper
        future: Future[Searcher] = keeper.loader.submit(
            _load, keeper.load, keeper.services, self._generation, self._searcher, live
        )
        while not self._over:
            try:
                searcher = future.result(_LOOK_S)
            except NotYet:
                continue
            searcher.listen(generations.CHANNEL)
            self._searcher = searcher
            keeper.hand(GenerationLoaded(searcher))
            return searcher
        future.cancel()
        future.add_done_callback(_unwanted)
        return None


def _load(
    load: LoadSearcher,
    services: Services,
    generation: Generation,
    before: Searcher | None,
    live: bool,
) -> Searcher:
    found = load(services, generation, before, live)
    settle_memory()
    return found


def _unwanted(future: "Future[Searcher]") -> None:
    """Free what was loaded for nobody."""
    if not future.cancelled() and future.exception() is None:
        future.result().close()
