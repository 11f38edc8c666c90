"""The resident generations: which ones a query worker keeps in memory, and the threads that follow.

Resident are the live generation, the shadow ones, and the fallback generation. Each is followed by
a thread of its own, which sends engine updates to the decode thread, the owner of the engines. So a
switch is a message between two batches of queries, from one warm engine to another. A follower that
finds its own generation live sends the changes first and the promotion afterwards: an image that
could be found before a switch can be found after it.
"""

import importlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import ExitStack
from dataclasses import dataclass

import structlog

from schemas.errors import SigmaError
from workers.query.engine import QueryEngine
from workers.query.loading import open_searcher
from workers.query.searcher import Searcher
from workers.query.updates import (
    ChangesApplied,
    EngineUpdate,
    GenerationLoaded,
    GenerationPromoted,
    GenerationUnloaded,
    LoadSearcher,
)
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.runtime.load_progress import loading_progress
from workers.runtime.model_loader import RETRY_S, background_thread
from workers.runtime.process import TRANSIENT_ERRORS, keep_running, settle_memory
from workers.runtime.query_metrics import QueryMetrics
from workers.runtime.services import Services
from workers.runtime.vital_thread import EndProcess, VitalThread, end_process

# Longest wait for a notification, and so for noticing that a thread is to stop.
_POLL_S = 1.0

# Longest wait for a follower that was told to stop: it may be in the middle of a query.
_JOIN_S = 5.0

# Seconds until a live generation that failed to load is tried again: queries fail meanwhile.
_LIVE_RETRY_S = 5.0

# Images that are inserted or deleted between two batches of queries at least: about 2 ms of work.
SLICE_IMAGES = 64

_STARTING = "starting"

_NONE_LIVE = "no generation is live yet; train one with: sigma train --manifest F"

log = structlog.get_logger()


def import_model() -> None:
    """Import what loads generations, which takes two seconds of processor time."""
    importlib.import_module("workers.query.model_engine")


def searcher_loader(services: Services) -> LoadSearcher:
    """Return a function that loads and warms up a generation's trained model."""

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        from workers.query.model_engine import ModelEngine

        checkpoint = None
        if previous is not None and isinstance(previous.engine, ModelEngine):
            checkpoint = previous.engine.checkpoint
        # Only the live generation decodes with vLLM, which a process can run once.
        engine = services.settings.engine if live else "torch"
        searcher = open_searcher(services, generation, checkpoint=checkpoint, engine=engine)
        with ExitStack() as undo:
            # Without this, a generation that cannot answer would leave its memory, its file and
            # two connections behind at each try.
            undo.callback(searcher.close)
            # Weights of `previous` are warm, and in use by the decode thread: leave them alone.
            if previous is None or searcher.engine.accelerated:
                searcher.search(["warm up"], 1)
            undo.pop_all()
        return searcher

    return load


def wanted_generations(
    every: Sequence[Generation], *, keep_fallback: bool
) -> dict[int, Generation]:
    """Select the generations to keep in memory, by number, in the order in which to load them.

    First the live one, because queries wait for it, then the shadow ones, then the fallback.
    """
    wanted = [generation for generation in every if generation.state == "live"]
    wanted += [generation for generation in every if generation.state == "shadow"]
    fallback = generations.find_fallback(every)
    if keep_fallback and fallback is not None:
        wanted.append(fallback)
    return {generation.id: generation for generation in wanted}


def unwanted_numbers(
    resident: Collection[int], wanted: Collection[int], leading: int | None
) -> set[int]:
    """Select the resident generations to unload.

    The one that answers (`leading`) stays, even if it is no longer wanted: the generation that is
    live now may still be loading.
    """
    return set(resident) - set(wanted) - {leading}


def shadow_numbers(every: Iterable[Generation]) -> frozenset[int]:
    """Return the numbers of the shadow generations."""
    return frozenset(generation.id for generation in every if generation.state == "shadow")


def problem_of(generation: Generation, error: Exception) -> str:
    """Say why a generation cannot answer. Only our own errors are written for people."""
    if isinstance(error, SigmaError):
        return str(error)
    return f"generation {generation.id} cannot be loaded: {error}"


@dataclass(frozen=True, slots=True)
class FollowerContext:
    """What the followers of one query worker share."""

    connect: Callable[[str], Connection]
    load: LoadSearcher
    executor: ThreadPoolExecutor
    """One thread: generations are loaded one after the other, to leave processors to queries."""
    send: Callable[[EngineUpdate], None]
    set_problem: Callable[[str], None]
    metrics: QueryMetrics
    stop: threading.Event
    """Set when the whole worker is to stop."""
    accelerate: bool
    """Whether the live generation is to decode with vLLM."""
    end: EndProcess
    """Called when a follower's thread dies: its generation would be served as it was then."""


class ResidentGenerations:
    """Keeps the wanted generations in memory."""

    def __init__(
        self,
        services: Services,
        load: LoadSearcher,
        send: Callable[[EngineUpdate], None],
        stop: threading.Event,
        metrics: QueryMetrics,
        end: EndProcess = end_process,
    ) -> None:
        """`send` passes an update to the decode thread; it is called from several threads.

        `end` is called when the thread of a follower dies.
        """
        self.problem = _STARTING
        """Why no generation can answer, as far as it is known."""
        self.leading: int | None = None
        """The generation that answers; set by the decode thread."""
        self.shadows: frozenset[int] = frozenset()
        """Numbers of the candidates; read by the decode thread."""
        self._connect = services.connect
        self._keep_fallback = services.settings.keep_fallback
        self._stop = stop
        self._metrics = metrics
        self._context = FollowerContext(
            services.connect,
            load,
            background_thread("loading"),
            send,
            self._set_problem,
            metrics,
            stop,
            accelerate=services.settings.engine == "vllm",
            end=end,
        )
        self._followers: dict[int, GenerationFollower] = {}

    @property
    def problem_is_public(self) -> bool:
        """Whether everybody may know it. Why a generation cannot be loaded holds paths."""
        return self.problem == _NONE_LIVE or self.problem.startswith(_STARTING)

    def run(self) -> None:
        """Check which generations are wanted whenever one changes its state; until stopped."""
        try:
            keep_running(self._session, self._stop, "query")
        finally:
            self._context.executor.shutdown(wait=False, cancel_futures=True)
            for follower in self._followers.values():
                follower.close()

    def _session(self, stop: threading.Event) -> None:
        with self._connect("query control") as conn:
            conn.execute(f"LISTEN {generations.CHANNEL}".encode())
            while not stop.is_set():
                self._update(generations.generations(conn))
                for _ in conn.notifies(timeout=_POLL_S, stop_after=1):
                    pass

    def _update(self, every: Sequence[Generation]) -> None:
        """Start followers of the wanted generations and stop the others."""
        wanted = wanted_generations(every, keep_fallback=self._keep_fallback)
        self.shadows = shadow_numbers(every)
        if not any(generation.state == "live" for generation in every):
            self.problem = _NONE_LIVE
        for number in unwanted_numbers(self._followers.keys(), wanted.keys(), self.leading):
            self._followers.pop(number).request_stop()
        for number, generation in wanted.items():
            if number not in self._followers:
                follower = GenerationFollower(self._context, generation)
                self._followers[number] = follower
                follower.start()
        self._metrics.resident.set(len(self._followers))

    def _set_problem(self, problem: str) -> None:
        self.problem = problem


class GenerationFollower:
    """Loads one generation, and sends its updates until asked to stop."""

    def __init__(self, context: FollowerContext, generation: Generation) -> None:
        self._context = context
        self._generation = generation
        self._stop = threading.Event()
        self._searcher: Searcher[QueryEngine] | None = None
        self._changed = 0
        """Images that came or went since the snapshot was renewed, or the session began."""
        self._renewed_s = 0.0
        """When that was, by the monotonic clock."""
        self._renewing: Future[None] | None = None
        self._thread = VitalThread(f"follow {generation.id}", self._run, context.end)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def request_stop(self) -> None:
        """Ask the thread to end, and to send that the generation is unloaded."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and wait until the thread ended."""
        self.request_stop()
        self._thread.join(_JOIN_S)

    @property
    def _stopping(self) -> bool:
        return self._stop.is_set() or self._context.stop.is_set()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._session()
            except TRANSIENT_ERRORS as error:
                log.warning(
                    "following interrupted, retrying",
                    generation=self._generation.id,
                    reason=str(error),
                )
                self._stop.wait(_POLL_S)
            except Exception as error:
                # Whatever is wrong with one generation must not end the others.
                self._stop.wait(self._report_failure(error))
        if self._searcher is not None:
            self._context.send(GenerationUnloaded(self._searcher))

    def _report_failure(self, error: Exception) -> float:
        """Count and log a failure; returns the seconds until the next try."""
        live = self._generation.state == "live"
        retry_s = _LIVE_RETRY_S if live else RETRY_S
        self._context.metrics.load_failures.inc()
        log.error(
            "generation not loaded",
            generation=self._generation.id,
            state=self._generation.state,
            reason=str(error),
            retry_s=retry_s,
        )
        if live:
            self._context.set_problem(problem_of(self._generation, error))
        return retry_s

    def _session(self) -> None:
        """Load, then send what changes. An earlier session's weights are used again."""
        with self._context.connect("query control") as conn:
            self._generation = generations.get(conn, self._generation.id)
        searcher = self._load(live=self._generation.state == "live")
        promoted = False
        while searcher is not None and not self._stopping:
            # Ask whether it is live before reading the changes: what was committed before the
            # switch is then among them.
            live = searcher.follower.live()
            changed = searcher.follower.changes()
            for changes in changed.slices(SLICE_IMAGES):
                self._context.send(ChangesApplied(searcher, changes))
            self.renew_snapshot(searcher, changed.images)
            if live and not promoted:
                self._context.send(GenerationPromoted(searcher))
                if self._context.accelerate and not searcher.engine.accelerated:
                    # It was loaded as a candidate, without vLLM: load it again with.
                    searcher = self._load(live=True)
                    continue
            promoted = live
            searcher.follower.wait(_POLL_S)

    def renew_snapshot(self, searcher: Searcher[QueryEngine], changed: int) -> None:
        """After `changed` more images: begin to write a new snapshot of the index if one is due."""
        self._changed += changed
        snapshot = searcher.snapshot
        if snapshot is None or (self._renewing is not None and not self._renewing.done()):
            return
        age_s = time.monotonic() - self._renewed_s
        if snapshot.is_due(self._changed, age_s, searcher.engine.images):
            self._changed = 0
            self._renewed_s = time.monotonic()
            self._renewing = self._context.executor.submit(
                _renew, snapshot.renew, self._generation.id
            )

    def wait_for_renewal(self) -> None:
        """Wait until the snapshot that is being written is, or has failed."""
        if self._renewing is not None:
            self._renewing.result()

    def _tell_progress(self, text: str) -> None:
        """Let those who wait for the live generation know how far it is."""
        if self._generation.state == "live" and not self._stopping:
            self._context.set_problem(f"{_STARTING}: {text}")

    def _load(self, *, live: bool) -> Searcher[QueryEngine] | None:
        """Load and send a searcher; None when the generation is no longer wanted."""
        future: Future[Searcher[QueryEngine]] = self._context.executor.submit(
            _load_settled,
            self._context.load,
            self._generation,
            self._searcher,
            live,
            self._tell_progress,
        )
        while not self._stopping:
            try:
                searcher = future.result(_POLL_S)
            except NotYet:
                continue
            with ExitStack() as undo:
                # Without this, a database that goes away just now would leave an engine's memory,
                # its file and two connections behind at each try.
                undo.callback(searcher.close)
                searcher.listen(generations.CHANNEL)
                undo.pop_all()
            self._searcher = searcher
            self._changed = 0
            self._renewed_s = time.monotonic()
            self._context.send(GenerationLoaded(searcher))
            return searcher
        future.cancel()
        future.add_done_callback(_close_unwanted)
        return None


def _load_settled(
    load: LoadSearcher,
    generation: Generation,
    previous: Searcher[QueryEngine] | None,
    live: bool,
    tell: Callable[[str], None],
) -> Searcher[QueryEngine]:
    with loading_progress(f"generation {generation.id}", tell):
        searcher = load(generation, previous, live)
    settle_memory()
    return searcher


def _renew(renew: Callable[[], None], generation: int) -> None:
    try:
        renew()
    except Exception as error:
        # It only makes the next start faster, and is due again.
        log.warning("index snapshot not renewed", generation=generation, reason=str(error))
    settle_memory()


def _close_unwanted(future: "Future[Searcher[QueryEngine]]") -> None:
    """Close what was loaded after its follower stopped."""
    if not future.cancelled() and future.exception() is None:
        future.result().close()
