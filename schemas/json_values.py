"""JSON values: readers for documents that older versions wrote, or that people changed.

Each reader takes whatever a key holds. It returns None, or an empty value, instead of raising when
that is something else.
"""

import math
from collections.abc import Mapping

# A JSON object as read from the database or from a file: nothing is known of its values.
StoredJson = Mapping[str, object]


def finite_number(value: object) -> float | None:
    """A finite number as a float; None for anything else, booleans included."""
    # PostgreSQL stores no NaN in JSON, but Python writes and reads it.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def whole_number(value: object) -> int | None:
    """A whole number from 0 on; None for anything else, booleans included."""
    # In Python a boolean is an integer too.
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return value


def text(value: object) -> str | None:
    """A string with at least one letter; None for anything else."""
    return value if isinstance(value, str) and value else None


def object_of(value: object) -> StoredJson:
    """A JSON object; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def list_of(value: object) -> list[object]:
    """A JSON list; an empty one for anything else."""
    return value if isinstance(value, list) else []
