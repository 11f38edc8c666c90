"""Logs: one JSON object a line on standard error, with time, level and event. Nothing secret is ever bound to a logger."""

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
        # Standard error as it is when a line is written: who calls the command line from a program may redirect it.
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
    )
