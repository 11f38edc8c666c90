"""Waiting for a start: as long as there is news of it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ops.embedded import control
from ops.embedded.control import Patience, Readiness
from ops.embedded.process_identity import ProcessIdentity
from ops.embedded.supervisor_record import SupervisorRecord
from schemas.errors import WorkFailedError
from schemas.settings import Settings


class Clock:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(control, "Patience", partial(Patience, clock=made))
    monkeypatch.setattr(control.time, "sleep", made.sleep)
    return made


class Starting:
    """A start: `news` by the second at which it is told, and the second at which it is ready."""

    def __init__(self, clock: Clock, news: Callable[[int], str], ready_s: float) -> None:
        self._clock = clock
        self._news = news
        self._ready_s = ready_s

    def is_ready(self) -> bool:
        return self._clock() >= self._ready_s

    def take_news(self) -> str:
        return self._news(int(self._clock()))

    def poll(self) -> None:
        """As of a process that runs."""

    def readiness(self, *_: object) -> Readiness:
        problem = "" if self.is_ready() else f"starting: {self.take_news()}"
        return Readiness(is_answering=True, problem=problem)


RECORD = SupervisorRecord(ProcessIdentity.current(), "127.0.0.1", 1, "home")


def waited(clock: Clock, monkeypatch: pytest.MonkeyPatch, start: Starting) -> Any:
    monkeypatch.setattr(control, "running", lambda settings: RECORD)
    monkeypatch.setattr(control, "readiness", start.readiness)
    monkeypatch.setattr(control, "START_POLL_S", 5.0)
    settings = Settings(home=Path("/nowhere"), start_s=180)
    return control._wait_until_ready(settings, start, start)  # type: ignore[arg-type]


def test_a_start_that_gets_on_is_waited_for_however_long_it_takes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Starting(clock, lambda second: f"{second // 60} GiB read", ready_s=3600)
    assert waited(clock, monkeypatch, start) is RECORD
    assert clock() == 3600


def test_a_start_that_repeats_itself_is_given_up(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Starting(clock, lambda second: f"{min(second, 300) // 60} GiB read", ready_s=3600)
    assert waited(clock, monkeypatch, start) is None
    # The last news came after 300 s.
    assert 300 + 180 <= clock() < 300 + 190


def test_a_query_worker_that_loads_is_waited_for_and_one_that_is_stuck_is_not(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=Path("/nowhere"), start_s=180)
    monkeypatch.setattr(control, "START_POLL_S", 5.0)
    start = Starting(clock, lambda second: f"{second // 60} GiB read", ready_s=1000)
    monkeypatch.setattr(control, "readiness", start.readiness)
    control.wait_until_answering(RECORD, settings)
    assert clock() == 1000
    stuck = Starting(clock, lambda second: "1 GiB read", ready_s=9000)
    monkeypatch.setattr(control, "readiness", stuck.readiness)
    with pytest.raises(WorkFailedError, match=r"no progress for 180 seconds .*1 GiB read"):
        control.wait_until_answering(RECORD, settings)


def test_only_what_was_not_said_before_is_news() -> None:
    def passing() -> Iterator[float]:
        yield from (0.0, 0.0, 100.0, 150.0, 250.0, 331.0)

    moments = passing()
    patience = Patience(180, clock=lambda: next(moments))
    patience.hear("reading")  # at 0
    assert patience.lasts  # at 100
    patience.hear("computing")  # at 150
    patience.hear("reading")
    patience.hear("")
    assert patience.lasts  # at 250
    assert not patience.lasts  # at 331
