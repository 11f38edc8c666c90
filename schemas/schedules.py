"""Schedules: when a job is due, in words that a person writes.

Each due moment opens a *run window*, named by its second since 1970 (UTC). A job runs once for each
run window, oldest first.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from schemas.errors import UsageError

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

ALLOWED_FORMS = "off, every SECONDS, or five cron fields (minute hour day month weekday, UTC)"

# Weekdays as cron numbers them: 0 is Sunday.
_OFF = "off"
_EVERY = "every "
_CRON_FIELDS = 5
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# Cron allows 7 for Sunday too.
_SUNDAY_AGAIN = 7


@dataclass(frozen=True, slots=True)
class Schedule:
    """`off`, `every 3600` (at multiples of that many seconds since 1970), or cron: `0 3 * * sun`.

    All moments are whole seconds since 1970 (UTC).
    """

    text: str = _OFF

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read a schedule; `UsageError` says what is wrong and what is allowed."""
        schedule = cls(" ".join(text.lower().split()))
        if schedule.text.startswith(_EVERY):
            seconds = schedule.text.removeprefix(_EVERY)
            if not (seconds.isascii() and seconds.isdigit() and int(seconds) > 0):
                raise _invalid(text, f"{seconds!r} is not a whole number of seconds above 0")
        elif not schedule.off:
            _parse_cron(schedule.text)
        return schedule

    @property
    def off(self) -> bool:
        """Whether the schedule has no run windows at all."""
        return self.text == _OFF

    @property
    def period_s(self) -> int | None:
        """Seconds between run windows of an `every` schedule; None for the other forms."""
        if not self.text.startswith(_EVERY):
            return None
        return int(self.text.removeprefix(_EVERY))

    @property
    def cron_trigger(self) -> "CronTrigger | None":
        """The trigger of a cron schedule; None for the other forms."""
        if self.off or self.period_s is not None:
            return None
        return _parse_cron(self.text)

    def next_window(self, after: int) -> int | None:
        """Return the first run window later than `after`; None when there is none."""
        if self.period_s is not None:
            return (after // self.period_s + 1) * self.period_s
        if self.cron_trigger is None:
            return None
        # The trigger's own answer may be the given moment itself, so ask from a second later.
        fires = self.cron_trigger.get_next_fire_time(None, datetime.fromtimestamp(after + 1, UTC))
        return None if fires is None else int(fires.timestamp())

    def windows_between(self, after: int, until: int) -> list[int]:
        """Return the run windows later than `after` and not later than `until`, oldest first."""
        windows: list[int] = []
        window = self.next_window(after)
        while window is not None and window <= until:
            windows.append(window)
            window = self.next_window(window)
        return windows

    def start_after(self, now: int) -> int:
        """Return the moment after which run windows count for a job that never ran before.

        An `every` job starts with the run window that is open now. A cron job waits for its time
        of day: somebody who installs this on a Wednesday does not want Sunday's training at once.
        """
        if self.period_s is None:
            return now
        return now // self.period_s * self.period_s - 1


def _invalid(text: str, reason: str) -> UsageError:
    return UsageError(f"a schedule must be {ALLOWED_FORMS}, got {text!r}: {reason}")


@cache
def _parse_cron(text: str) -> "CronTrigger":
    # The import takes a fifth of a second, and most processes have no cron schedule.
    from apscheduler.triggers.cron import CronTrigger

    fields = text.split(" ")
    if len(fields) != _CRON_FIELDS:
        raise _invalid(text, f"it has {len(fields)} fields")
    _, _, day, _, weekday = fields
    if day != "*" and weekday != "*":
        # Cron runs when either matches, APScheduler when both do; refuse what is read both ways.
        raise _invalid(text, "it limits both day and weekday; leave one of them *")
    expression = " ".join([*fields[:4], _weekday_names(weekday)])
    try:
        trigger = CronTrigger.from_crontab(expression, timezone=UTC)
        fires = trigger.get_next_fire_time(None, datetime.now(UTC))
    except ValueError as error:
        raise _invalid(text, str(error)) from error
    if fires is None:
        raise _invalid(text, "it is never due")
    return trigger


def _weekday_names(field: str) -> str:
    """Spell a weekday field in names: cron counts from Sunday, APScheduler from Monday.

    What is neither a number nor a name stays as it is, for APScheduler to refuse.
    """
    return ",".join(_expand_weekdays(part) for part in field.split(","))


def _expand_weekdays(part: str) -> str:
    """Spell one part of a weekday field, such as `1-5` or `*/2`, as a list of names."""
    span, _, step = part.partition("/")
    if span == "*" and step:
        span = "0-6"
    first, _, last = span.partition("-")
    low = _weekday_number(first)
    high = _weekday_number(last or first)
    stride = int(step) if _is_number(step) else 1
    if low is None or high is None or stride < 1:
        return part
    if high < low:
        # A range over the end of the week, such as sat-mon.
        high += len(_DAYS)
    return ",".join(_DAYS[day % len(_DAYS)] for day in range(low, high + 1, stride))


def _weekday_number(text: str) -> int | None:
    if text in _DAYS:
        return _DAYS.index(text)
    if _is_number(text) and int(text) <= _SUNDAY_AGAIN:
        return int(text)
    return None


def _is_number(text: str) -> bool:
    # isdigit alone also accepts superscripts and other digits that int() refuses.
    return text.isascii() and text.isdigit()
