"""How the reports write numbers, times and durations, and texts of the database on one line."""

import re
import unicodedata
from datetime import datetime

# Characters of a text from the database: a longer one is cut, so that it cannot fill a page.
MAX_TEXT_LENGTH = 300

# Unicode categories of control and direction characters, line separators and unassigned code.
_UNREADABLE = frozenset(("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"))

_SPACES = re.compile(r"\s+")

_MINUTE_S = 60
_HOUR_S = 3_600
_DAY_S = 86_400


def one_line(text: object, max_length: int = MAX_TEXT_LENGTH) -> str:
    """Write any text as one readable line.

    Control and direction characters become spaces, runs of spaces become one, and what is beyond
    `max_length` characters is cut.
    """
    # Spaces collapse below, so more is looked at than is kept; a limit bounds the work.
    readable = "".join(map(_readable, str(text)[: 4 * max_length]))
    line = _SPACES.sub(" ", readable).strip()
    if len(line) <= max_length:
        return line
    return line[: max_length - 1].rstrip() + "…"


def percent(share: float, digits: int = 1) -> str:
    """Write a share from 0 to 1 in per cent."""
    return f"{share * 100:.{digits}f}%"


def percentage_points(difference: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    points = round(difference * 100, 1)
    # After rounding: "+0.0 points" would look like a difference.
    if points == 0:
        return "no difference"
    sign = "+" if points > 0 else "−"
    return f"{sign}{abs(points):.1f} points"


def format_time(at: datetime | None) -> str:
    """Write a time in UTC, to the minute; a dash for None."""
    return "—" if at is None else f"{at:%-d %b %Y %H:%M} UTC"


def format_number(value: float | None) -> str:
    """Write a number with three significant digits, without an exponent where none is needed."""
    if value is None:
        return "—"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """Write a duration in the unit in which it is a number of one to three digits."""
    digits = 1 if seconds < 10 else 0
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.{digits}f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < 2 * _DAY_S:
        return f"{seconds / _HOUR_S:.0f} h"
    return f"{seconds / _DAY_S:.0f} days"


def format_count(number: int, singular: str, plural: str | None = None) -> str:
    """Write a number with its noun."""
    noun = singular if number == 1 else plural or f"{singular}s"
    return f"{number:,} {noun}"


def capitalized(text: str) -> str:
    """A text with a capital first letter; the other letters stay as they are."""
    return text[:1].upper() + text[1:]


def _readable(character: str) -> str:
    return " " if unicodedata.category(character) in _UNREADABLE else character
