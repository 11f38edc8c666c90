"""Alarms: what the monitors found to be out of bounds, and until when."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from workers.repository.connection import Connection, rows


@dataclass(frozen=True, slots=True)
class Alarm:
    """A row of the table. `level` is ticket or page; `cleared_at` None means open."""

    id: int
    generation: int | None
    monitor: str
    level: str
    effect: float | None
    effect_limit: float | None
    p: float | None
    p_limit: float | None
    detail: dict[str, Any]
    raised_at: datetime
    cleared_at: datetime | None


def open_alarms(conn: Connection) -> list[Alarm]:
    """Alarms that nobody has cleared, oldest first."""
    return [Alarm(*found) for found in rows(conn, "alarms_open")]


def alarms_since(conn: Connection, since: datetime) -> list[Alarm]:
    """Alarms raised since then, oldest first."""
    return [Alarm(*found) for found in rows(conn, "alarms_since", since=since)]
