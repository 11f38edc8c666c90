"""How reports write numbers, times and names."""

import pytest

from ops.report.formatting import (
    format_count,
    format_duration,
    format_number,
    one_line,
    percentage_points,
)
from ops.report.words import monitor_words


def test_text_of_the_database_becomes_one_readable_line() -> None:
    assert one_line("a\u202eb\x00c\n\n  d\u200b") == "a b c d"
    assert one_line("x" * 500, 10) == "x" * 9 + "…"
    assert monitor_words("some_new-monitor") == "some new monitor"
    assert monitor_words("id1") == "first codes"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percentage_points(-0.026), "−2.6 points"),
        (percentage_points(0.0001), "no difference"),
        (format_number(None), "—"),
        (format_number(0.00012345), "0.000123"),
        (format_number(12345.6), "12,346"),
        (format_duration(9), "9.0 s"),
        (format_duration(600), "10 min"),
        (format_duration(200_000), "2 days"),
        (format_count(1, "query", "queries"), "1 query"),
        (format_count(2000, "page"), "2,000 pages"),
    ],
)
def test_numbers_read_as_people_write_them(written: str, expected: str) -> None:
    assert written == expected
