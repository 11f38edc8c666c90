"""Logs: one JSON object a line on standard error, with time, level and event.

Never bind a secret to a logger: everything bound to it is printed.
"""

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Set up structured logs for this process; `level` is one of `schemas.settings.LOG_LEVELS`."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # Look up sys.stderr when a line is written: a program that calls the command line may
        # redirect it after this function ran.
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
    )
