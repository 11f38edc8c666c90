"""Maintenance: what the API may do to an installation, given by whoever put it together."""

from collections.abc import Callable
from dataclasses import dataclass

from schemas.records import JsonObject
from workers.repository.connection import Connection

# Days that a report looks back.
REPORT_DAYS = 30

Report = Callable[[Connection], JsonObject]


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Changes of the live generation, which take as long as they take, and reports.

    The changes raise `UsageError` for what cannot be, `WorkFailedError` for what was refused.
    """

    promote: Callable[[int, bool], None]
    """Make a generation live; with True without asking the gate."""
    roll_back: Callable[[], None]
    """Make the fallback generation live."""
    drift_report: Report
    recall_report: Report
