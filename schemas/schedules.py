"""Schedules: when a job is due, in words that a person writes. Each due moment is a *window*, named by its second since 1970 (UTC)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from schemas.errors import UsageError

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

ALLOWED_FORMS = "off, every SECONDS, or five cron fields (minute hour day month weekday, UTC)"

_OFF, _EVERY = "off", "every "
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


@dataclass(frozen=True, slots=True)
class Schedule:
    """`off`, `every 3600` (at multiples of so many seconds since 1970), or cron such as `0 3 * * sun`."""

    text: str = _OFF

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """A schedule; `UsageError` says what was found and what is allowed."""
        found = cls(" ".join(text.lower().split()))
        if found.text.startswith(_EVERY):
            seconds = found.text.removeprefix(_EVERY)
            if not (seconds.isascii() and seconds.isdigit() and int(seconds) > 0):
                raise UsageError(
                    f"{text!r} is no schedule: {seconds!r} is no whole number of seconds above 0; allowed are {ALLOWED_FORMS}"
                )
        elif found.text != _OFF:
            _cron(found.text)
        return found

    @property
    def off(self) -> bool:
        """Whether there are no windows at all."""
        return self.text == _OFF

    @property
    def period_s(self) -> int | None:
        """The period of `every`."""
        return int(self.text.removeprefix(_EVERY)) if self.text.startswith(_EVERY) else None

    @property
    def cron_trigger(self) -> "CronTrigger | None":
        """The cron trigger, if the schedule is one."""
        return None if self.off or self.period_s else _cron(self.text)

    def next_window(self, after: int) -> int | None:
        """The first window later than a moment."""
        if self.period_s is not None:
            return (after // self.period_s + 1) * self.period_s
        if self.cron_trigger is None:
            return None
        fires = self.cron_trigger.get_next_fire_time(None, datetime.fromtimestamp(after + 1, UTC))
        return None if fires is None else int(fires.timestamp())

    def windows_between(self, after: int, until: int) -> list[int]:
        """All windows later than one moment and not later than the other, oldest first."""
        found = []
        window = self.next_window(after)
        while window is not None and window <= until:
            found.append(window)
            window = self.next_window(window)
        return found

    def start_after(self, now: int) -> int:
        """The moment after which windows count for a job never seen before.

        What is due every so often begins with the window that runs now. What is due at a time of day waits for it: nobody who installs
        this on a Wednesday wants Sunday's training at once.
        """
        return now if self.period_s is None else now // self.period_s * self.period_s - 1


@cache
def _cron(text: str) -> "CronTrigger":
    # The import takes a fifth of a second, and most processes know no cron schedule.
    from apscheduler.triggers.cron import CronTrigger

    fields = text.split(" ")
    if len(fields) != 5:
        raise UsageError(
            f"{text!r} is no schedule: it has {len(fields)} fields; allowed are {ALLOWED_FORMS}"
        )
    if fields[2] != "*" and fields[4] != "*":
        # Cron means either one, APScheduler both; whoever writes it should not have to know.
        raise UsageError(
            f"{text!r} is no schedule here: it limits both day and weekday; leave one of them *"
        )
    try:
        found = CronTrigger.from_crontab(
            " ".join([*fields[:4], _weekdays(fields[4])]), timezone=UTC
        )
        fires = found.get_next_fire_time(None, datetime.now(UTC))
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no schedule: {error}; allowed are {ALLOWED_FORMS}"
        ) from error
    if fires is None:
        raise UsageError(f"{text!r} is no schedule: it never comes; allowed are {ALLOWED_FORMS}")
    return found


def _weekdays(field: str) -> str:
    """A weekday field by names, for cron counts from Sunday and APScheduler from Monday; what is neither number nor name stays as it is."""
    return ",".join(_weekday(part) for part in field.split(","))


def _weekday(part: str) -> str:
    span, _, step = part.partition("/")
    first, _, last = ("0-6" if span == "*" and step else span).partition("-")
    low, high, stride = (
        _day(first),
        _day(last or first),
        int(step) if step.isascii() and step.isdigit() else 1,
    )
    if low is None or high is None or stride < 1:
        return part
    return ",".join(
        _DAYS[day % 7] for day in range(low, high + 1 if low <= high else high + 8, stride)
    )


def _day(text: str) -> int | None:
    if text in _DAYS:
        return _DAYS.index(text)
    return int(text) if text.isascii() and text.isdigit() and int(text) <= 7 else None
