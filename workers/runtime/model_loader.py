"""Loading: models of generations are read in a background thread of low priority, while work goes on with those that are there."""

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

import structlog

from workers.repository.generations import Generation
from workers.runtime.process import settle_memory

RETRY_S = 30.0
"""Seconds until a model that could not be loaded is tried again: long enough for somebody to restore its folder."""

_NICE = 10
"""Priority of loading. Lower ones starve the loader, which then keeps the interpreter's lock longer than a query can wait."""

T = TypeVar("T")

log = structlog.get_logger()


def background(name: str) -> ThreadPoolExecutor:
    """One thread for loading, which yields the processor to the others of its process."""
    return ThreadPoolExecutor(1, name, initializer=_yielding)


def _yielding() -> None:
    # On Linux a thread has a priority of its own; elsewhere it would be the whole process's.
    if os.uname().sysname == "Linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class ModelLoader(Generic[T]):
    """What is loaded of each generation, by its number. Safe to use from several threads."""

    def __init__(
        self, load: Callable[[Generation], T], failed: Callable[[], None] = lambda: None
    ) -> None:
        """`failed` is called whenever something could not be loaded."""
        self._load = load
        self._failed = failed
        self._hands = background("loading")
        # Guards the two dictionaries: the worker's main thread asks for generations, the one with the batch waits for them.
        self._lock = threading.Lock()
        self._futures: dict[int, Future[T]] = {}
        self._retry_at: dict[int, float] = {}

    def want(self, generations: Iterable[Generation]) -> None:
        """Begin to load what is not there yet, the live one first, and forget all others."""
        wanted = sorted(generations, key=lambda one: (one.state != "live", -one.id))
        with self._lock:
            for number in self._futures.keys() - {one.id for one in wanted}:
                self._futures.pop(number).cancel()
            for one in wanted:
                self._begin(one)

    def wait(self, generation: Generation) -> T:
        """What belongs to the generation, once it is loaded. An error of loading is raised, and tried again by the next call."""
        with self._lock:
            known = self._futures.get(generation.id)
            if known is not None and _broken(known):
                self._retry_at.pop(generation.id, None)
            future = self._begin(generation)
        return future.result()

    def loaded(self) -> dict[int, T]:
        """Everything that is there, ascending."""
        with self._lock:
            return {
                number: one.result()
                for number, one in sorted(self._futures.items())
                if one.done() and not _broken(one)
            }

    def close(self) -> None:
        """Begin nothing any more."""
        self._hands.shutdown(wait=False, cancel_futures=True)

    def _begin(self, generation: Generation) -> Future[T]:
        known = self._futures.get(generation.id)
        if known is None or (
            _broken(known) and time.monotonic() >= self._retry_at.get(generation.id, 0.0)
        ):
            known = self._futures[generation.id] = self._hands.submit(self._try, generation)
        return known

    def _try(self, generation: Generation) -> T:
        try:
            found = self._load(generation)
        except Exception as error:
            self._retry_at[generation.id] = time.monotonic() + RETRY_S
            log.error(
                "model cannot be loaded",
                generation=generation.id,
                state=generation.state,
                reason=str(error),
            )
            self._failed()
            raise
        log.info("model loaded", generation=generation.id)
        settle_memory()
        return found


def _broken(future: "Future[T]") -> bool:
    return future.cancelled() or (future.done() and future.exception() is not None)
