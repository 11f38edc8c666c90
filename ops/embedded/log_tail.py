"""The log's tail: what a process said last, for a message about its end."""

import json
import os
from pathlib import Path
from typing import Any

# How much of a log is looked at: a long traceback fits, a log of gigabytes costs nothing.
_TAIL_BYTES = 16_384

# Characters of one line that a message shows.
_SHOWN_CHARACTERS = 500

_ERROR_LEVELS = ("error", "critical")


def log_tail(log: Path, since: int = 0) -> list[str]:
    """The last lines that are not empty, of what was written after the byte `since`."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            # A log that is shorter now was begun anew.
            first = since if since <= end else 0
            file.seek(max(first, end - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = ["".join(filter(str.isprintable, line)).strip() for line in text.splitlines()]
    return [line for line in lines if line]


def last_error(log: Path, since: int = 0) -> str | None:
    """Why a process ended, by its log: its last error, or its last line; None when it said nothing.

    Of a traceback the last line names the error.
    """
    lines = log_tail(log, since)
    for line in reversed(lines):
        found = _logged_error(line)
        if found is not None:
            return found[:_SHOWN_CHARACTERS]
        if not line.startswith("{"):
            return line[:_SHOWN_CHARACTERS]
    return lines[-1][:_SHOWN_CHARACTERS] if lines else None


def _logged_error(line: str) -> str | None:
    """The message of a line of our JSON log, if it is an error."""
    try:
        document: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("level") not in _ERROR_LEVELS:
        return None
    trace = str(document.get("exception", "")).strip().splitlines()
    reason = trace[-1] if trace else str(document.get("reason", ""))
    return f"{document.get('event')}: {reason}" if reason else str(document.get("event"))
