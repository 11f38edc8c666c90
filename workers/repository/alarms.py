"""Alarms: what the monitors raised, one open alarm at most for each generation and monitor."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from schemas.records import require_aware
from workers.repository.connection import Connection, row, rows, run


@dataclass(frozen=True, slots=True)
class Alarm:
    """A row of the table. `level` is ticket or page; `effect` and `p` are those it was raised with, beside their limits."""

    id: int
    generation: int
    monitor: str
    level: str
    effect: float
    effect_limit: float
    p: float
    p_limit: float
    detail: dict[str, Any]
    raised_at: datetime
    cleared_at: datetime | None

    @property
    def recall(self) -> tuple[float, float] | None:
        """R@10 of the most novel arrivals when the generation began and when the alarm was raised. None when it could not be measured."""
        then, now = (self.detail.get(name) or {} for name in ("recall_then", "recall_now"))
        return (
            (then["hits"] / then["queries"], now["hits"] / now["queries"])
            if then.get("queries") and now.get("queries")
            else None
        )

    def __str__(self) -> str:
        recall = (
            ""
            if self.recall is None
            else "; R@10 of the most novel arrivals {:.0%}, at first {:.0%}".format(
                *reversed(self.recall)
            )
        )
        return (
            f"{self.level}: {self.monitor} of generation {self.generation} drifted "
            f"(effect {self.effect:.3g}, {self.effect_limit:.3g} is allowed; p {self.p:.1g}{recall})"
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
    detail: Mapping[str, Any] | None = None,
) -> int | None:
    """Opens an alarm and returns its id. One that is open stays as it is (None), except that a ticket can become a page."""
    found = row(
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
    return None if found is None else int(found[0])


def clear_alarm(conn: Connection, number: int) -> bool:
    """Ends an alarm; False when it was ended before."""
    return run(conn, "clear_alarm", id=number) == 1


def open_alarms(conn: Connection) -> list[Alarm]:
    """Alarms that are open, pages first."""
    return [Alarm(*found) for found in rows(conn, "open_alarms")]


def alarms_since(conn: Connection, since: datetime) -> list[Alarm]:
    """Alarms raised since then, and those still open, oldest first."""
    require_aware("since", since)
    return [Alarm(*found) for found in rows(conn, "alarms_since", since=since)]
