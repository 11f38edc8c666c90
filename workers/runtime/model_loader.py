"""The model loader: reads models of generations in a background thread while work goes on."""

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

import structlog

from workers.repository.generations import Generation
from workers.runtime.load_progress import loading_progress
from workers.runtime.process import announce_progress, settle_memory

# Seconds until a failed load is tried again: long enough for somebody to restore the folder.
RETRY_S = 30.0

# Priority of the loading thread. With a lower one it starves, and then keeps the interpreter's
# lock longer than a query can wait.
_NICE = 10

T = TypeVar("T")

log = structlog.get_logger()


def background_thread(name: str) -> ThreadPoolExecutor:
    """Return an executor with one thread, which yields the processor to the others of its process.

    The thread starts with the first submitted call.
    """
    return ThreadPoolExecutor(1, name, initializer=_lower_priority)


def loading_order(generations: Iterable[Generation]) -> list[Generation]:
    """Sort generations by urgency: the live one, because queries wait for it, then the newest."""
    return sorted(generations, key=lambda generation: (generation.state != "live", -generation.id))


def may_retry(future: "Future[T]", *, now_s: float, retry_at_s: float) -> bool:
    """Decide whether a load is to be begun again: it failed, and the pause after that is over.

    `now_s` and `retry_at_s` are of the same monotonic clock.
    """
    return has_failed(future) and now_s >= retry_at_s


def has_failed(future: "Future[T]") -> bool:
    """Tell whether a load ended without a result."""
    return future.cancelled() or (future.done() and future.exception() is not None)


class ModelLoader(Generic[T]):
    """The loaded models, by generation number. Safe to use from several threads."""

    def __init__(
        self,
        load: Callable[[Generation], T],
        count_failure: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`count_failure` is called whenever a model could not be loaded."""
        self._load = load
        self._count_failure = count_failure
        self._clock = clock
        self._executor = background_thread("loading")
        # Guards the two dictionaries: the worker's main thread asks for generations while the
        # thread that handles a batch waits for them.
        self._lock = threading.Lock()
        self._futures: dict[int, Future[T]] = {}
        self._retry_at_s: dict[int, float] = {}

    def want(self, generations: Iterable[Generation]) -> None:
        """Begin to load what is missing, the live generation first, and forget all others."""
        wanted = loading_order(generations)
        wanted_numbers = {generation.id for generation in wanted}
        with self._lock:
            for number in self._futures.keys() - wanted_numbers:
                self._futures.pop(number).cancel()
            for generation in wanted:
                self._begin(generation)

    def wait(self, generation: Generation) -> T:
        """Return the model of a generation once it is loaded.

        An error of loading is raised; the next call tries again at once.
        """
        with self._lock:
            known = self._futures.get(generation.id)
            if known is not None and has_failed(known):
                self._retry_at_s.pop(generation.id, None)
            future = self._begin(generation)
        return future.result()

    def loaded(self) -> dict[int, T]:
        """Return every model that is loaded, by ascending generation number."""
        models = {}
        with self._lock:
            for number, future in sorted(self._futures.items()):
                if future.done() and not has_failed(future):
                    models[number] = future.result()
        return models

    def close(self) -> None:
        """Cancel what was not begun yet. A load that runs is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _begin(self, generation: Generation) -> "Future[T]":
        # Call with the lock.
        number = generation.id
        known = self._futures.get(number)
        retry_at_s = self._retry_at_s.get(number, 0.0)
        if known is None or may_retry(known, now_s=self._clock(), retry_at_s=retry_at_s):
            known = self._executor.submit(self._run, generation)
            self._futures[number] = known
        return known

    def _run(self, generation: Generation) -> T:
        try:
            with loading_progress(f"generation {generation.id}", announce_progress):
                model = self._load(generation)
        except Exception as error:
            self._retry_at_s[generation.id] = self._clock() + RETRY_S
            log.error(
                "model not loaded",
                generation=generation.id,
                state=generation.state,
                reason=str(error),
                retry_s=RETRY_S,
            )
            self._count_failure()
            raise
        log.info("model loaded", generation=generation.id)
        settle_memory()
        return model


def _lower_priority() -> None:
    # On Linux a thread has a priority of its own; elsewhere this would slow the whole process.
    if os.uname().sysname == "Linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
