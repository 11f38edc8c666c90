"""The query text: what may be searched for, and what is refused before a model sees it."""

import re
import unicodedata

from schemas.errors import UsageError

# Letters of a query; the model reads only the first few dozen tokens.
MAX_QUERY_LETTERS = 2000

# Images of one page of an answer; the default beams reach a few hundred candidates.
PAGE_RESULTS = 100

# Images of one answer: a cursor that carries the places of so many fits into a request.
MAX_RESULTS = 2000

# Unicode categories without a visible sign: control, format, unassigned, and the separators.
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cn", "Zl", "Zp", "Zs"})

# Letters and marks that are blank by their nature, in the other categories: combining grapheme
# joiner, Hangul fillers, Khmer inherent vowels, Mongolian and general variation selectors, the
# empty Braille pattern. See Default_Ignorable_Code_Point in Unicode's DerivedCoreProperties.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")

# Control characters but tabs and line ends: they mean nothing in a description, steer a terminal,
# and the zero character cannot be stored.
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def checked_query(text: str, count: int) -> str:
    """Return the text to search for; `UsageError` when it or `count` is out of bounds."""
    if len(text) > MAX_QUERY_LETTERS:
        raise UsageError(
            f"the query must have at most {MAX_QUERY_LETTERS:,} letters, got {len(text):,}; "
            "shorten it"
        )
    if _HALF_CHARACTERS.search(text):
        raise UsageError(
            "the query must be valid Unicode, got half a character (a lone surrogate); "
            "send the whole character or leave it out"
        )
    if is_blank(text):
        raise UsageError("the query must not be empty; describe the image in words")
    if not 1 <= count <= MAX_RESULTS:
        raise UsageError(f"k must be between 1 and {MAX_RESULTS:,}, got {count}; change it")
    return _CONTROL.sub(" ", text)


def is_blank(text: str) -> bool:
    """Tell whether a text has nothing that a person could see."""
    return all(
        unicodedata.category(letter) in _INVISIBLE_CATEGORIES or _INVISIBLE.match(letter)
        for letter in text
    )
