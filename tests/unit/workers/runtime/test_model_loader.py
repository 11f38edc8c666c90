"""Loading in the background: the live generation first, failures retried, nothing unwanted kept."""

import threading
from concurrent.futures import Future
from datetime import UTC, datetime

import pytest

from ops.embedded.readiness import listen_for_readiness
from schemas.errors import RefuseToStartError
from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from workers.repository.generations import Generation
from workers.runtime.model_loader import (
    RETRY_S,
    ModelLoader,
    has_failed,
    loading_order,
    may_retry,
)


def generation(number: int, state: str = "shadow") -> Generation:
    return Generation(
        number,
        state,
        None,
        None,
        IdentifierShape((2, 2, 2, 2), 4),
        GenerationConfig(),
        datetime.now(UTC),
        None,
        None,
    )


def failed_future() -> "Future[int]":
    future: Future[int] = Future()
    future.set_exception(RefuseToStartError("the folder is empty"))
    return future


def test_the_live_generation_is_loaded_first_and_the_newest_next() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def load(wanted: Generation) -> int:
        gate.wait(30)
        begun.append(wanted.id)
        return wanted.id

    loader = ModelLoader(load)
    loader.want([generation(1, "retired"), generation(2, "live"), generation(3)])
    assert loader.loaded() == {}
    gate.set()
    assert loader.wait(generation(1, "retired")) == 1
    assert begun == [2, 3, 1]
    assert loader.loaded() == {1: 1, 2: 2, 3: 3}
    loader.close()


def test_a_failure_is_counted_raised_to_who_waits_and_tried_again() -> None:
    failures: list[int] = []
    broken = [True]

    def load(_: Generation) -> str:
        if broken[0]:
            raise RefuseToStartError("the folder is empty")
        return "loaded"

    loader = ModelLoader(load, lambda: failures.append(1))
    with pytest.raises(RefuseToStartError):
        loader.wait(generation(1))
    # Nobody waits: it is left alone for a while.
    loader.want([generation(1)])
    assert loader.loaded() == {}
    assert len(failures) == 1
    broken[0] = False
    assert loader.wait(generation(1)) == "loaded"
    loader.close()


def test_a_failed_load_is_begun_again_by_itself_once_the_pause_is_over() -> None:
    now_s = [1000.0]
    calls: list[float] = []

    def load(_: Generation) -> str:
        calls.append(now_s[0])
        if len(calls) == 1:
            raise RefuseToStartError("the folder is empty")
        return "loaded"

    loader = ModelLoader(load, clock=lambda: now_s[0])
    with pytest.raises(RefuseToStartError):
        loader.wait(generation(1))
    now_s[0] += RETRY_S - 1
    loader.want([generation(1)])
    assert len(calls) == 1
    now_s[0] += 1
    loader.want([generation(1)])
    assert loader.wait(generation(1)) == "loaded"
    assert calls == [1000.0, 1000.0 + RETRY_S]
    loader.close()


def test_what_is_wanted_no_more_is_forgotten() -> None:
    loader = ModelLoader(lambda wanted: wanted.id)
    loader.want([generation(1), generation(2)])
    assert loader.wait(generation(2)) == 2
    loader.want([generation(2)])
    assert loader.loaded() == {2: 2}
    loader.close()


def test_the_order_of_loading_is_live_first_then_newest_whatever_order_they_come_in() -> None:
    mixed = [generation(4), generation(1, "retired"), generation(2, "live"), generation(7)]
    assert [wanted.id for wanted in loading_order(mixed)] == [2, 7, 4, 1]
    assert [wanted.id for wanted in loading_order(reversed(mixed))] == [2, 7, 4, 1]
    assert loading_order([]) == []


def test_only_a_load_that_failed_long_enough_ago_is_begun_again() -> None:
    running: Future[int] = Future()
    done: Future[int] = Future()
    done.set_result(1)
    assert not may_retry(running, now_s=200.0, retry_at_s=100.0)
    assert not may_retry(done, now_s=200.0, retry_at_s=100.0)
    assert not may_retry(failed_future(), now_s=99.9, retry_at_s=100.0)
    assert may_retry(failed_future(), now_s=100.0, retry_at_s=100.0)


def test_a_cancelled_load_counts_as_failed_and_a_running_one_does_not() -> None:
    cancelled: Future[int] = Future()
    cancelled.cancel()
    assert has_failed(cancelled)
    assert has_failed(failed_future())
    assert not has_failed(Future())


def test_a_load_tells_the_supervisor_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen_for_readiness() as told:
        monkeypatch.setenv("NOTIFY_SOCKET", told.environment["NOTIFY_SOCKET"])
        loader = ModelLoader(lambda wanted: wanted.id)
        assert loader.wait(generation(5)) == 5
        assert told.take_news() == "loading generation 5"
        loader.close()
