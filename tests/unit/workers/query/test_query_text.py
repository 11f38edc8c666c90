"""Query texts: what is searched for, and which texts are refused."""

import unicodedata

import pytest

from schemas.errors import UsageError
from workers.query.query_text import MAX_QUERY_LETTERS, MAX_RESULTS, checked_query, is_blank

# One or more of each kind of letter that shows nothing.
INVISIBLE = [
    "\u200b",
    "\u200b\u200d\ufeff",
    "\u2060\u2061\u2064",
    "\u00ad",
    "\u00a0\u2003\u3000",
    "\u2028\u2029",
    "\x00\x07\x1b\x7f\x85",
    "\u202e\u2066\u2069",
    "\u3164\u115f\u1160\uffa0",
    "\u2800",
    "\u034f",
    "\ufe0f\ufe00",
    "\U000e0100\U000e01ef",
    "\U000e0001\U000e0041",
    "\u0378\U0003fffe",
    "\u180e\u180b",
    " \t\r\n\x0b\x0c",
]


@pytest.mark.parametrize("text", ["", "  ", "\n", *INVISIBLE])
def test_a_query_of_nothing_visible_is_empty(text: str) -> None:
    with pytest.raises(UsageError, match="must not be empty"):
        checked_query(text, 10)


def test_spaces_controls_formats_and_unassigned_letters_of_all_unicode_are_invisible() -> None:
    # All of the alphabets and the punctuation, and a sample of the rest.
    for number in [*range(0x3000), *range(0x3000, 0x110000, 97)]:
        letter = chr(number)
        if unicodedata.category(letter) in ("Zs", "Zl", "Zp", "Cc", "Cf", "Cn"):
            assert is_blank(letter), f"U+{number:04X}"


@pytest.mark.parametrize("text", ["a", "红", "é", "e\u0301", "🌵", "👩\u200d🚀", "\u200bred", "."])
def test_a_query_with_anything_visible_is_asked_as_it_is(text: str) -> None:
    assert checked_query(text, 10) == text


def test_control_characters_in_a_query_become_spaces_and_lines_stay() -> None:
    assert checked_query("red\0\x1b[2Jcircle\n\ton navy", 10) == "red  [2Jcircle\n\ton navy"


def test_a_query_may_be_as_long_as_allowed_and_no_longer() -> None:
    assert checked_query("a" * MAX_QUERY_LETTERS, 10) == "a" * MAX_QUERY_LETTERS
    with pytest.raises(UsageError, match=r"at most 2,000 letters, got 2,001"):
        checked_query("a" * (MAX_QUERY_LETTERS + 1), 10)


@pytest.mark.parametrize("count", [0, -1, MAX_RESULTS + 1])
def test_a_number_of_images_out_of_range_is_refused_with_the_range(count: int) -> None:
    with pytest.raises(UsageError, match=f"between 1 and {MAX_RESULTS:,}, got {count}"):
        checked_query("a circle", count)


@pytest.mark.parametrize("text", ["red \ud83d", "\udc00", "\ude00\ud83d"])
def test_half_a_character_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="half a character"):
        checked_query(text, 10)
