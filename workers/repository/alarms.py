"""Alarms: what the monitors raised. Each generation and monitor has at most one open alarm."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from schemas.records import require_aware
from workers.repository.connection import Connection, execute, fetch_row, fetch_rows

# A JSON document with what a monitor saw; `ops/jobs/alarm_updates.py` writes it.
Detail = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm. Effect and p-value are those it was raised with, beside their limits."""

    id: int
    generation: int
    monitor: str
    level: str
    """ticket or page"""
    effect: float
    effect_limit: float
    p: float
    p_limit: float
    detail: Detail
    raised_at: datetime
    cleared_at: datetime | None

    @property
    def recall(self) -> tuple[float, float] | None:
        """R@10 of the most novel arrivals at the generation's start and at this alarm.

        None where it was not measured.
        """
        at_start = _share_found(self.detail.get("recall_then"))
        at_alarm = _share_found(self.detail.get("recall_now"))
        if at_start is None or at_alarm is None:
            return None
        return at_start, at_alarm

    def __str__(self) -> str:
        recall = ""
        if self.recall is not None:
            at_start, at_alarm = self.recall
            recall = f"; R@10 of the most novel arrivals {at_alarm:.0%}, at first {at_start:.0%}"
        return (
            f"{self.level}: {self.monitor} of generation {self.generation} drifted "
            f"(effect {self.effect:.3g}, {self.effect_limit:.3g} is allowed; "
            f"p {self.p:.1g}{recall})"
        )


def raise_alarm(
    conn: Connection,
    generation: int,
    monitor: str,
    level: str,
    *,
    effect: float,
    effect_limit: float,
    p: float,
    p_limit: float,
    detail: Detail | None = None,
) -> int | None:
    """Open an alarm and return its id.

    None when it is open already: it stays as it is, except that a ticket can become a page, which
    returns the id too.
    """
    # One statement: two schedulers that raise at once meet the unique index, not each other.
    row = fetch_row(
        conn,
        "raise_alarm",
        generation=generation,
        monitor=monitor,
        level=level,
        effect=effect,
        effect_limit=effect_limit,
        p=p,
        p_limit=p_limit,
        detail=Jsonb(dict(detail or {})),
    )
    return None if row is None else int(row[0])


def clear_alarm(conn: Connection, number: int) -> bool:
    """End an alarm; return False when it was ended before."""
    return execute(conn, "clear_alarm", id=number) == 1


def open_alarms(conn: Connection) -> list[Alarm]:
    """Return the open alarms, pages first."""
    return [Alarm(*columns) for columns in fetch_rows(conn, "open_alarms")]


def alarms_since(conn: Connection, since: datetime) -> list[Alarm]:
    """Return the alarms raised since a moment and those still open, oldest first."""
    require_aware("since", since)
    return [Alarm(*columns) for columns in fetch_rows(conn, "alarms_since", since=since)]


def _share_found(recall: Mapping[str, int] | None) -> float | None:
    if not recall or not recall.get("queries"):
        return None
    return recall["hits"] / recall["queries"]
