"""Logs: one JSON object a line on standard error, with time, level and event.

Never bind a secret to a logger: everything bound to it is printed. Logging never raises: what
cannot be written, as on a full disk, is lost, and the work that it tells of goes on.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import structlog


class TolerantStream:
    """A text stream that loses what it cannot write, instead of raising."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, or lose it."""
        # ValueError: the stream is closed, or has no way to write these letters.
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is kept, or keep it."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """While the block runs, standard error never raises, and no letter is too much for a terminal.

    Standard output does raise when it cannot be written: an answer must not be lost unnoticed.
    """
    before = sys.stderr
    for stream in (sys.stdout, sys.stderr):
        # Letters that the terminal's encoding lacks are written as escapes. Streams that a program
        # has put in their place may not know how.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with suppress(OSError, ValueError):
                reconfigure(errors="backslashreplace")
    sys.stderr = cast(TextIO, TolerantStream(before))
    try:
        yield
    finally:
        sys.stderr = before


def configure(level: str) -> None:
    """Set up structured logs for this process; `level` is one of `schemas.settings.LOG_LEVELS`."""
    # Other libraries' logs go through the standard library's, which must not raise either.
    logging.raiseExceptions = False
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # Look up sys.stderr when a line is written: a program that calls the command line may
        # redirect it after this function ran.
        logger_factory=lambda *_: structlog.WriteLogger(cast(TextIO, TolerantStream(sys.stderr))),
    )
