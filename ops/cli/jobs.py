"""What `sigma jobs` says and does: the timetable with the newest runs, and one run by hand."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from ops.cli.context import AddCommand, emit, limit_threads, open_database
from ops.embedded.database import open_services
from ops.jobs.registry import job_named, run_job
from ops.jobs.timetable import TimetableEntry, run_to_json, timetable
from schemas.errors import RetryLaterError, UsageError
from schemas.job_results import JobFailure
from schemas.records import JsonObject
from schemas.settings import Settings
from stream.lease import kept
from workers.repository import job_runs
from workers.repository.connection import Connection
from workers.repository.job_runs import JobRun
from workers.runtime.services import Services


def add_commands(add: AddCommand) -> None:
    """Declare the command of this group."""
    command = add("jobs", jobs, "scheduled jobs and their runs, or run one now")
    command.add_argument("action", choices=("list", "run"), nargs="?", default="list")
    command.add_argument("name", nargs="?", metavar="NAME")


def jobs(options: Namespace, settings: Settings) -> int:
    """`sigma jobs`"""
    if (options.action == "run") != (options.name is not None):
        raise UsageError("name a job to run, and only then: sigma jobs run NAME")
    if options.action == "run":
        # Before anything is started for a name that is misspelt.
        job_named(options.name)
    limit_threads(settings)
    with open_services(settings) as services, open_database(services, "jobs") as conn:
        if options.action == "run":
            done = run_by_hand(services, conn, options.name)
            listing = JobListing(timetable(conn, settings), [done])
            text = _run_line(done)
        else:
            listing = list_jobs(conn, settings)
            text = listing.text()
    emit(listing.to_json(), options.json, text)
    return 0


@dataclass(frozen=True, slots=True)
class JobListing:
    """The timetable, and runs, newest first."""

    entries: Sequence[TimetableEntry]
    runs: Sequence[JobRun]

    def to_json(self) -> JsonObject:
        """The document of `sigma jobs`."""
        return {
            "jobs": [entry.to_json() for entry in self.entries],
            "runs": [run_to_json(run) for run in self.runs],
        }

    def text(self) -> str:
        """The same for people."""
        lines = []
        for entry in self.entries:
            lines += _entry_lines(entry)
        lines.append("")
        lines += map(_run_line, self.runs)
        return "\n".join(lines).strip()


def list_jobs(conn: Connection, settings: Settings) -> JobListing:
    """All jobs, and their newest runs."""
    return JobListing(timetable(conn, settings), job_runs.job_runs(conn))


def run_by_hand(services: Services, conn: Connection, name: str) -> JobRun:
    """Run a job now, beside whatever the scheduler does.

    `RetryLaterError` when the same job is running elsewhere, `UsageError` for an unknown job.
    """
    job = job_named(name)
    claim = job_runs.claim_job(conn, job.name)
    if claim is None:
        raise RetryLaterError(f"{job.name} is running elsewhere; wait for its end")
    try:
        with kept(lambda: services.connect("lease"), claim):
            number = job_runs.begin_manual_run(conn, job.name)
            return run_job(services, conn, job, number, [claim])
    finally:
        job_runs.release_job(conn, claim)


def _entry_lines(entry: TimetableEntry) -> list[str]:
    job = entry.wanted.job
    schedule = entry.schedule.text
    if entry.wanted.on_alarm:
        schedule += f", at alarms: {' '.join(sorted(entry.wanted.on_alarm))}"
    lines = [f"{job.name:<14} {schedule:<24} {_next(entry):<22} {_last(entry):<26} {job.about}"]
    failure = None if entry.last is None else JobFailure.from_json(entry.last.figures)
    if failure is not None:
        lines.append(f"{'':<14} failed: {failure.error}")
    wanted = entry.wanted.schedule
    if wanted != entry.schedule:
        lines.append(
            f"{'':<14} the settings here say {wanted.text}, which applies once a scheduler with "
            "them leads"
        )
    return lines


def _next(entry: TimetableEntry) -> str:
    if entry.running:
        return "runs now"
    if entry.next_at is None:
        return "no next run"
    return f"next {entry.next_at:%Y-%m-%d %H:%M}"


def _last(entry: TimetableEntry) -> str:
    last = entry.last
    if last is None:
        return "never ran"
    ended = "" if last.ended_at is None else f" {last.ended_at:%Y-%m-%d %H:%M}"
    return f"last {last.outcome}{ended}"


def _run_line(run: JobRun) -> str:
    cause = f" {json.dumps(run.cause)}" if run.cause else ""
    figures = json.dumps(run.figures, ensure_ascii=False)
    return f"{run.started_at:%Y-%m-%d %H:%M:%S}  {run.job:<14} {run.outcome:<8}{cause} {figures}"
