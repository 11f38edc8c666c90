"""Schedules: what a person writes means what cron means; what cannot run is refused with a hint."""

import re
from datetime import UTC, datetime

import pytest

from schemas.errors import UsageError
from schemas.schedules import Schedule

WEDNESDAY = int(datetime(2026, 11, 25, 12, 34, 56, tzinfo=UTC).timestamp())


def days(text: str, count: int = 7) -> list[str]:
    """Weekdays of the next run windows."""
    schedule = Schedule.parse(text)
    names: list[str] = []
    moment = WEDNESDAY
    for _ in range(count):
        window = schedule.next_window(moment)
        assert window is not None
        names.append(f"{datetime.fromtimestamp(window, UTC):%a}")
        moment = window
    return names


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        # Cron counts from Sunday, where APScheduler counts from Monday.
        ("0", ["Sun"]),
        ("7", ["Sun"]),
        ("sun", ["Sun"]),
        ("1-5", ["Thu", "Fri", "Mon", "Tue", "Wed"]),
        ("mon-fri", ["Thu", "Fri", "Mon", "Tue", "Wed"]),
        ("5-7", ["Fri", "Sat", "Sun"]),
        ("sat-mon", ["Sat", "Sun", "Mon"]),
        ("*/3", ["Sat", "Sun", "Wed"]),
        ("0,3", ["Sun", "Wed"]),
    ],
)
def test_weekdays_are_those_of_cron(field: str, expected: list[str]) -> None:
    assert days(f"0 3 * * {field}", len(expected)) == expected


def test_run_windows_lie_after_one_moment_and_not_after_the_other() -> None:
    half = Schedule.parse("*/30 * * * *")
    noon = WEDNESDAY - WEDNESDAY % 3600
    assert half.windows_between(noon, noon + 3600) == [noon + 1800, noon + 3600]
    assert half.windows_between(noon, noon) == []
    hourly = Schedule.parse("every 3600")
    assert hourly.windows_between(noon - 1, noon + 3600) == [noon, noon + 3600]
    assert hourly.windows_between(noon, noon + 3599) == []
    assert Schedule().windows_between(0, WEDNESDAY) == []


def test_a_job_never_seen_begins_with_the_running_period_but_waits_for_its_time_of_day() -> None:
    hourly = Schedule.parse("every 3600")
    weekly = Schedule.parse("0 3 * * 0")
    assert hourly.windows_between(hourly.start_after(WEDNESDAY), WEDNESDAY) == [
        WEDNESDAY // 3600 * 3600
    ]
    assert weekly.windows_between(weekly.start_after(WEDNESDAY), WEDNESDAY) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a schedule must be off"),
        ("hourly", "1 fields"),
        ("61 * * * *", "61"),
        ("* * * * 8", "8"),
        ("*/0 * * * *", "higher than 0"),
        ("0 0 30 2 *", "is never due"),
        ("0 0 1 * 1", "leave one of them *"),
        ("every", "must be off, every SECONDS"),
        ("every 0", "above 0"),
        ("every 1.5", "whole number"),
        ("every -3", "whole number"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Schedule.parse(text)
