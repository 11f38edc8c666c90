"""The timeline: what happened meanwhile. Generations and their gates, switches between them, alarms, and how the jobs went."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from workers.repository.alarms import Alarm, alarms_since, open_alarms
from workers.repository.connection import Connection
from workers.repository.generations import Generation, generations
from workers.repository.history import outcomes_since
from workers.repository.job_runs import JobRun


@dataclass(frozen=True, slots=True)
class Switch:
    """The moment from which a generation answered."""

    at: datetime
    generation: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened between `since` and `until`; generations are all there ever were, oldest first."""

    since: datetime
    until: datetime
    generations: tuple[Generation, ...]
    alarms: tuple[Alarm, ...]
    """Those raised in the time and those still open, oldest first."""
    runs: tuple[JobRun, ...]

    @property
    def live(self) -> Generation | None:
        """The generation that answers queries."""
        return next((one for one in self.generations if one.state == "live"), None)

    @property
    def open(self) -> tuple[Alarm, ...]:
        """Alarms that nobody has cleared; pages first."""
        found = [one for one in self.alarms if one.cleared_at is None]
        return tuple(sorted(found, key=lambda one: (one.level != "page", one.raised_at)))

    def jobs(self) -> list[dict[str, Any]]:
        """How each job went: runs by outcome, its last success, its usual duration and its last failure."""
        names = sorted({one.job for one in self.runs})
        return [_job(name, [one for one in self.runs if one.job == name]) for name in names]

    def to_dict(self) -> dict[str, Any]:
        """The part of the JSON document that both reports share."""
        return {
            "generations": [_generation(one) for one in self.generations],
            "alarms": [_alarm(one) for one in self.alarms],
            "jobs": self.jobs(),
        }


def timeline(conn: Connection, since: datetime, until: datetime) -> Timeline:
    """Read it from the database."""
    alarms = {one.id: one for one in [*alarms_since(conn, since), *open_alarms(conn)]}
    return Timeline(
        since=since,
        until=until,
        generations=tuple(generations(conn)),
        alarms=tuple(sorted(alarms.values(), key=lambda one: (one.raised_at, one.id))),
        runs=tuple(outcomes_since(conn, since)),
    )


def switches(
    found: Sequence[Generation], seen: Sequence[tuple[datetime, int]], since: datetime
) -> list[Switch]:
    """When generations began to answer: as the table says, and as records (`seen`, ascending) show it.

    The table keeps the last time only: a generation that came back by rollback has lost its first one.
    """
    known = [Switch(one.live_at, one.id) for one in found if one.live_at is not None]
    for (before, old), (after, new) in pairwise(seen):
        if new != old and not any(
            one.generation == new and before <= one.at <= after for one in known
        ):
            known.append(Switch(after, new))
    return sorted((one for one in known if one.at >= since), key=lambda one: one.at)


def mode_of(found: Generation) -> str:
    """How a generation was made: full, refresh, recluster, or full where nobody noted it."""
    return found.config.training.mode_or_full


def _generation(found: Generation) -> dict[str, Any]:
    return {
        "id": found.id,
        "state": found.state,
        "mode": mode_of(found),
        "parent": found.config.training.parent,
        "images": found.config.training.images,
        "codebook": found.codebook_version,
        "created_at": found.created_at.isoformat(),
        "live_at": _iso(found.live_at),
        "ended_at": _iso(found.ended_at),
        "gate": None if found.config.gate is None else found.config.gate.to_json(),
    }


def _alarm(found: Alarm) -> dict[str, Any]:
    return {
        "id": found.id,
        "generation": found.generation,
        "monitor": found.monitor,
        "level": found.level,
        "effect": found.effect,
        "effect_limit": found.effect_limit,
        "p": found.p,
        "p_limit": found.p_limit,
        "detail": found.detail,
        "raised_at": found.raised_at.isoformat(),
        "cleared_at": _iso(found.cleared_at),
    }


def _job(name: str, runs: Sequence[JobRun]) -> dict[str, Any]:
    done = [one for one in runs if one.outcome == "done" and one.ended_at is not None]
    failed = [one for one in runs if one.outcome == "failed"]
    seconds = [
        (one.ended_at - one.started_at).total_seconds() for one in done if one.ended_at is not None
    ]
    return {
        "job": name,
        "runs": {
            outcome: sum(one.outcome == outcome for one in runs)
            for outcome in ("done", "failed", "skipped", "running")
        },
        "last_done_at": _iso(done[-1].ended_at) if done else None,
        "median_s": round(statistics.median(seconds), 3) if seconds else None,
        "last_failure": {
            "at": failed[-1].started_at.isoformat(),
            "error": failed[-1].figures.get("error"),
        }
        if failed
        else None,
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
