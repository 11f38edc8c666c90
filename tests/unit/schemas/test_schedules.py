"""Schedules: the words that a person writes mean what cron means, and what cannot be followed is refused with the cure."""

import re
from datetime import UTC, datetime

import pytest

from schemas.errors import UsageError
from schemas.schedules import Schedule

WEDNESDAY = int(datetime(2026, 11, 25, 12, 34, 56, tzinfo=UTC).timestamp())


def days(text: str, count: int = 7) -> list[str]:
    """Weekdays of the next windows."""
    schedule, found, at = Schedule.parse(text), [], WEDNESDAY
    for _ in range(count):
        following = schedule.next_window(at)
        assert following is not None
        at = following
        found.append(f"{datetime.fromtimestamp(at, UTC):%a}")
    return found


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


def test_windows_lie_after_one_moment_and_not_after_the_other() -> None:
    half = Schedule.parse("*/30 * * * *")
    noon = WEDNESDAY - WEDNESDAY % 3600
    assert half.windows_between(noon, noon + 3600) == [noon + 1800, noon + 3600]
    assert half.windows_between(noon, noon) == []
    hourly = Schedule.parse("every 3600")
    assert hourly.windows_between(noon - 1, noon + 3600) == [noon, noon + 3600]
    assert hourly.windows_between(noon, noon + 3599) == []
    assert Schedule().windows_between(0, WEDNESDAY) == []


def test_a_job_never_seen_begins_with_the_running_period_but_waits_for_its_time_of_day() -> None:
    hourly, weekly = Schedule.parse("every 3600"), Schedule.parse("0 3 * * 0")
    assert hourly.windows_between(hourly.start_after(WEDNESDAY), WEDNESDAY) == [
        WEDNESDAY // 3600 * 3600
    ]
    assert weekly.windows_between(weekly.start_after(WEDNESDAY), WEDNESDAY) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "is no schedule"),
        ("hourly", "1 fields"),
        ("61 * * * *", "61"),
        ("* * * * 8", "8"),
        ("*/0 * * * *", "higher than 0"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 1 * 1", "leave one of them *"),
        ("every", "allowed are off, every SECONDS"),
        ("every 0", "above 0"),
        ("every 1.5", "whole number"),
        ("every -3", "whole number"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_what_is_allowed(text: str, found: str) -> None:
    with pytest.raises(UsageError, match=re.escape(found)):
        Schedule.parse(text)
