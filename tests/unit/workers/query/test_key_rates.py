"""The rate of a key: so many at once, so many a second, and each key by itself."""

from dataclasses import dataclass

import pytest

from workers.query.key_rates import KeyRates


@dataclass
class HandClock:
    """A clock that a test sets."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def admitted(rates: KeyRates, count: int, rate: float, name: str = "web") -> int:
    return sum(rates.take(name, rate) == 0 for _ in range(count))


def test_one_second_s_requests_may_come_at_once_and_no_more() -> None:
    rates = KeyRates(HandClock())
    assert admitted(rates, 100, rate=20) == 20


def test_after_a_pause_as_many_as_it_had_seconds_but_never_more_than_fit() -> None:
    clock = HandClock()
    rates = KeyRates(clock)
    assert admitted(rates, 100, rate=20) == 20
    clock.now_s += 0.5
    assert admitted(rates, 100, rate=20) == 10
    clock.now_s += 3600
    assert admitted(rates, 100, rate=20) == 20


def test_in_the_long_run_a_key_that_asks_too_often_gets_its_rate() -> None:
    clock = HandClock()
    rates = KeyRates(clock)
    count = 0
    for _ in range(10_000):
        count += admitted(rates, 1, rate=5)
        clock.now_s += 0.01
    assert 500 <= count <= 506


@pytest.mark.parametrize(("rate", "wait_s"), [(20.0, 1), (1.0, 1), (0.5, 2), (0.01, 100)])
def test_retry_after_says_when_it_will_work(rate: float, wait_s: int) -> None:
    clock = HandClock()
    rates = KeyRates(clock)
    while not rates.take("web", rate):
        pass
    assert rates.take("web", rate) == wait_s
    clock.now_s += wait_s
    assert rates.take("web", rate) == 0


def test_another_key_is_not_slowed_down() -> None:
    rates = KeyRates(HandClock())
    admitted(rates, 100, rate=1, name="greedy")
    assert rates.take("modest", 1) == 0


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    clock = HandClock()
    rates = KeyRates(clock)
    admitted(rates, 20, rate=20)
    clock.now_s -= 3600
    assert rates.take("web", 20) == 1
    clock.now_s += 1
    assert admitted(rates, 100, rate=20) == 20


def test_a_revoked_key_leaves_no_bucket_behind() -> None:
    rates = KeyRates(HandClock())
    for number in range(1000):
        rates.take(f"key{number}", 1)
        rates.forget(f"key{number}")
    assert len(rates) == 0
