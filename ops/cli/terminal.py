"""The terminal: text as it may be printed there, whoever wrote it.

Captions, addresses and ids come from producers. A control character in one of them would move the
cursor, set the window's title, or hide what stands before it.
"""

import json
import unicodedata
from collections.abc import Callable

# Control, half and format characters, line and paragraph separators.
_STEERING_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

# Format characters that only join letters: emoji and many scripts need them.
_JOINERS = frozenset("\u200c\u200d")

_LAYOUT = frozenset("\n\t")


def terminal_text(text: str) -> str:
    """Return text of several lines with whatever steers a terminal written as an escape."""
    return _escaped(text, _python_escape, kept=_LAYOUT)


def terminal_line(text: str) -> str:
    """Return text for a part of one line: line ends and tabs are escaped too."""
    return _escaped(text, _python_escape)


def terminal_json(document: object, *, ascii_only: bool = False) -> str:
    """Encode a document as JSON that means the same and steers no terminal."""
    # Outside of strings JSON as we write it has ASCII letters only, so an escape is inside of one.
    return _escaped(json.dumps(document, ensure_ascii=ascii_only), _json_escape)


def _escaped(text: str, escape: Callable[[str], str], kept: frozenset[str] = frozenset()) -> str:
    if text.isascii() and text.isprintable():
        return text
    shown = []
    for letter in text:
        steers = unicodedata.category(letter) in _STEERING_CATEGORIES and letter not in _JOINERS
        shown.append(escape(letter) if steers and letter not in kept else letter)
    return "".join(shown)


def _python_escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _json_escape(letter: str) -> str:
    return json.dumps(letter)[1:-1] if not letter.isascii() else f"\\u{ord(letter):04x}"
