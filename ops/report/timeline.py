"""The timeline of a report: generations, switches between them, alarms, and runs of jobs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from schemas.job_results import JobFailure
from schemas.json_values import finite_number
from workers.repository.alarms import Alarm, alarms_since, open_alarms
from workers.repository.connection import Connection
from workers.repository.generations import Generation, generations
from workers.repository.history import outcomes_since
from workers.repository.job_runs import JobRun

# Outcomes of a run that are counted, in the order of the JSON document.
_OUTCOMES = ("done", "failed", "skipped", "running")


@dataclass(frozen=True, slots=True)
class GenerationSwitch:
    """The moment from which a generation answered queries."""

    at: datetime
    generation: int

    def to_dict(self) -> dict[str, object]:
        """The JSON shape."""
        return {"at": self.at.isoformat(), "generation": self.generation}


@dataclass(frozen=True, slots=True)
class JobSummary:
    """How the runs of one job went."""

    job: str
    runs: Mapping[str, int]
    """Number of runs by outcome."""
    last_done_at: datetime | None
    """When the newest successful run ended."""
    median_s: float | None
    """Median duration of the successful runs, in seconds."""
    last_failure: JobRun | None

    @property
    def last_error(self) -> str | None:
        """Why the last failed run failed; None where it noted no reason."""
        if self.last_failure is None:
            return None
        failure = JobFailure.from_json(self.last_failure.figures)
        return None if failure is None else failure.error

    def to_dict(self) -> dict[str, object]:
        """The JSON shape."""
        failure: dict[str, object] | None = None
        if self.last_failure is not None:
            failure = {"at": self.last_failure.started_at.isoformat(), "error": self.last_error}
        return {
            "job": self.job,
            "runs": dict(self.runs),
            "last_done_at": _iso(self.last_done_at),
            "median_s": None if self.median_s is None else round(self.median_s, 3),
            "last_failure": failure,
        }


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened between `since` and `until`."""

    since: datetime
    until: datetime
    generations: tuple[Generation, ...]
    """All that ever existed, oldest first."""
    alarms: tuple[Alarm, ...]
    """Those raised in the time and those still open, oldest first."""
    runs: tuple[JobRun, ...]
    """Runs of all jobs begun in the time, oldest first."""

    @property
    def live(self) -> Generation | None:
        """The generation that answers queries."""
        # The database allows one live generation at most.
        for generation in self.generations:
            if generation.state == "live":
                return generation
        return None

    @property
    def open_alarms(self) -> tuple[Alarm, ...]:
        """Alarms that are not cleared; pages first."""
        still_open = [alarm for alarm in self.alarms if alarm.cleared_at is None]
        still_open.sort(key=lambda alarm: (alarm.level != "page", alarm.raised_at))
        return tuple(still_open)

    @property
    def open_pages(self) -> int:
        """How many pages are open."""
        return sum(alarm.level == "page" for alarm in self.open_alarms)

    def job_summaries(self) -> list[JobSummary]:
        """How each job went, in the order of the alphabet."""
        # Runs of each job, oldest first as in `runs`.
        runs_of: dict[str, list[JobRun]] = {}
        for run in self.runs:
            runs_of.setdefault(run.job, []).append(run)
        return [_summary(job, runs_of[job]) for job in sorted(runs_of)]

    def to_dict(self) -> dict[str, object]:
        """The part of the JSON document that both reports share."""
        return {
            "generations": list(map(_generation_document, self.generations)),
            "alarms": list(map(_alarm_document, self.alarms)),
            "jobs": [summary.to_dict() for summary in self.job_summaries()],
        }


def read_timeline(conn: Connection, since: datetime, until: datetime) -> Timeline:
    """Read what happened between two times from the database."""
    alarms: dict[int, Alarm] = {}
    # An alarm that was raised in the time and is still open is in both lists.
    for alarm in [*alarms_since(conn, since), *open_alarms(conn)]:
        alarms[alarm.id] = alarm
    oldest_first = sorted(alarms.values(), key=lambda alarm: (alarm.raised_at, alarm.id))
    return Timeline(
        since=since,
        until=until,
        generations=tuple(generations(conn)),
        alarms=tuple(oldest_first),
        runs=tuple(outcomes_since(conn, since)),
    )


def find_switches(
    known: Sequence[Generation], seen: Sequence[tuple[datetime, int]], since: datetime
) -> list[GenerationSwitch]:
    """When generations began to answer, oldest first.

    The table keeps only the last time that a generation went live: one that came back by rollback
    has lost its first time. Such a switch is taken from the records of the jobs.

    Args:
        known: rows of the table.
        seen: times of records, ascending, and the generation that was live.
        since: earlier switches are left out.
    """
    switches = []
    for generation in known:
        if generation.live_at is not None:
            switches.append(GenerationSwitch(generation.live_at, generation.id))
    for (before, old), (after, new) in pairwise(seen):
        # The records show only that the switch was between two of them: the later time is taken.
        if new != old and not _is_known(switches, new, before, after):
            switches.append(GenerationSwitch(after, new))
    recent = [switch for switch in switches if switch.at >= since]
    return sorted(recent, key=lambda switch: switch.at)


def _is_known(
    switches: Sequence[GenerationSwitch], generation: int, before: datetime, after: datetime
) -> bool:
    """Whether a switch to this generation is known between two times."""
    for switch in switches:
        if switch.generation == generation and before <= switch.at <= after:
            return True
    return False


def _summary(job: str, runs: Sequence[JobRun]) -> JobSummary:
    counts = dict.fromkeys(_OUTCOMES, 0)
    last_done_at = None
    last_failure = None
    seconds = []
    for run in runs:
        counts[run.outcome] += 1
        if run.outcome == "failed":
            last_failure = run
        elif run.outcome == "done" and run.ended_at is not None:
            last_done_at = run.ended_at
            # At least 0: the clock may have been set back meanwhile.
            seconds.append(max(0.0, (run.ended_at - run.started_at).total_seconds()))
    return JobSummary(
        job=job,
        runs=counts,
        last_done_at=last_done_at,
        median_s=statistics.median(seconds) if seconds else None,
        last_failure=last_failure,
    )


def _generation_document(generation: Generation) -> dict[str, object]:
    training = generation.config.training
    gate = generation.config.gate
    return {
        "id": generation.id,
        "state": generation.state,
        "mode": training.mode_or_full,
        "parent": training.parent,
        # A float, as in every version of this document.
        "images": finite_number(training.images),
        "codebook": generation.codebook_version,
        "created_at": generation.created_at.isoformat(),
        "live_at": _iso(generation.live_at),
        "ended_at": _iso(generation.ended_at),
        "gate": None if gate is None else gate.to_json(),
    }


def _alarm_document(alarm: Alarm) -> dict[str, object]:
    return {
        "id": alarm.id,
        "generation": alarm.generation,
        "monitor": alarm.monitor,
        "level": alarm.level,
        "effect": alarm.effect,
        "effect_limit": alarm.effect_limit,
        "p": alarm.p,
        "p_limit": alarm.p_limit,
        "detail": alarm.detail,
        "raised_at": alarm.raised_at.isoformat(),
        "cleared_at": _iso(alarm.cleared_at),
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
