"""What `sigma jobs` says and does: the timetable with the newest runs, and one run by hand."""

import json
from argparse import Namespace
from typing import Any

from ops.cli.context import AddCommand, emit, limit_threads, open_database
from ops.embedded.database import open_services
from ops.jobs.registry import job, perform
from ops.jobs.timetable import run_entry, timetable
from schemas.errors import RetryLaterError, UsageError
from schemas.settings import Settings
from workers.repository import job_runs as repository
from workers.repository.connection import Connection
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
    limit_threads(settings)
    with open_services(settings) as services, open_database(services, "jobs") as conn:
        if options.action == "run":
            document, text = run_job(services, conn, options.name)
        else:
            document, text = list_jobs(services, conn)
    emit(document, options.json, text)
    return 0


def list_jobs(services: Services, conn: Connection) -> tuple[dict[str, Any], str]:
    """The document and text of `sigma jobs list`."""
    entries = timetable(conn, services.settings)
    runs = repository.job_runs(conn)
    lines = [line for entry in entries for line in _lines(entry)]
    return {"jobs": entries, "runs": [run_entry(one) for one in runs]}, "\n".join(
        [*lines, "", *map(_line, runs)]
    ).strip()


def run_job(services: Services, conn: Connection, name: str) -> tuple[dict[str, Any], str]:
    """Run a job now, beside whatever the scheduler does. `RetryLaterError` when the same job runs elsewhere."""
    wanted = job(name)
    if not repository.claim_job(conn, wanted.name):
        raise RetryLaterError(f"{wanted.name} is running elsewhere; wait for its end")
    try:
        done = perform(services, conn, wanted, repository.begin_manual_run(conn, wanted.name))
    finally:
        repository.release_job(conn, wanted.name)
    return {"jobs": timetable(conn, services.settings), "runs": [run_entry(done)]}, _line(done)


def _lines(entry: dict[str, Any]) -> list[str]:
    last = entry["last"]
    then = (
        "runs now"
        if entry["running"]
        else f"next {_short(entry['next'])}"
        if entry["next"]
        else "no next run"
    )
    result = f"last {last['outcome']} {_short(last['ended_at'])}" if last else "never ran"
    called = f", at alarms: {' '.join(entry['on_alarm'])}" if entry["on_alarm"] else ""
    lines = [
        f"{entry['name']:<14} {entry['schedule'] + called:<24} {then:<22} {result:<26} {entry['about']}"
    ]
    if last and last["error"]:
        lines.append(f"{'':<14} failed: {last['error']}")
    if entry["wanted"] != entry["schedule"]:
        lines.append(
            f"{'':<14} the settings here say {entry['wanted']}, which holds once a scheduler with them leads"
        )
    return lines


def _line(found: repository.JobRun) -> str:
    why = f" {json.dumps(found.cause)}" if found.cause else ""
    return f"{found.started_at:%Y-%m-%d %H:%M:%S}  {found.job:<14} {found.outcome:<8}{why} {json.dumps(found.figures, ensure_ascii=False)}"


def _short(moment: str) -> str:
    return moment[:16].replace("T", " ")
