"""Stored text: any text of Python, made fit for PostgreSQL and for UTF-8."""

import re

# The zero character, which PostgreSQL's `text` cannot hold, and halves of UTF-16 pairs, which UTF-8
# cannot.
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def storable(text: str) -> str:
    """Replace every character that cannot be stored by the replacement character."""
    return _NOT_STORABLE.sub(_REPLACEMENT, text)
