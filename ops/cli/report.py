"""`sigma report`: reads the records, compares two generations where that is asked for, and writes a page, JSON or a few lines."""

import logging
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

from ops.cli.context import AddCommand, emit, limit_threads, open_database
from ops.embedded.database import open_services
from schemas.errors import UsageError
from schemas.settings import Settings
from workers.repository.connection import Connection
from workers.runtime.services import Services

_MOST_DAYS = 3650


def add_commands(add: AddCommand) -> None:
    """Declare the command of this group."""
    command = add(
        "report", report, "recall or drift over time, as a page with plots, JSON or a few lines"
    )
    command.add_argument("what", choices=("drift", "recall"))
    command.add_argument("--out", type=Path, metavar="F.html", help="write one self-contained page")
    command.add_argument(
        "--days", type=int, default=30, metavar="N", help="how far back (default 30)"
    )


def report(options: Namespace, settings: Settings) -> int:
    """`sigma report`"""
    if not 1 <= options.days <= _MOST_DAYS:
        raise UsageError(f"--days is {options.days}, allowed are 1 to {_MOST_DAYS:,}")
    if options.out is not None:
        _check(options.out)
    # It tells of caches that it builds or cannot keep, which is nobody's concern here.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with open_services(settings) as found, open_database(found, "report") as conn:
        (_drift if options.what == "drift" else _recall)(options, found, conn)
    return 0


def _recall(options: Namespace, found: Services, conn: Connection) -> None:
    from ops.report.documents import recall_report
    from ops.report.examples import Comparison, compare
    from ops.report.summary import recall_summary

    # Two models are loaded for the examples: a short summary does without.
    short = options.out is None and not options.json
    if not short:
        limit_threads(found.settings)
    comparison = Comparison(why="Not asked for.") if short else compare(found, conn)
    made = recall_report(conn, comparison, datetime.now(UTC), options.days)
    if options.out is not None:
        from ops.report.recall_page import recall_page
        from ops.report.thumbnails import thumbnails

        _write(
            options.out,
            recall_page(made, thumbnails(conn, found.store, comparison.image_ids), _again(options)),
        )
    emit(
        made.to_dict(),
        options.json,
        f"wrote {options.out}" if options.out else recall_summary(made),
    )


def _drift(options: Namespace, found: Services, conn: Connection) -> None:
    from ops.report.documents import drift_report
    from ops.report.summary import drift_summary

    made = drift_report(conn, datetime.now(UTC), options.days)
    if options.out is not None:
        from ops.report.drift_page import drift_page

        _write(options.out, drift_page(made, _again(options)))
    emit(
        made.to_dict(), options.json, f"wrote {options.out}" if options.out else drift_summary(made)
    )


def _check(out: Path) -> None:
    """Refuse a place that cannot be written before the work is done, not after."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file such as {out / 'report.html'}")
    if not out.absolute().parent.is_dir():
        raise UsageError(
            f"--out {out}: the folder {out.absolute().parent} is not there; make it first"
        )


def _write(out: Path, page: str) -> None:
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written ({error.strerror}); name another file"
        ) from error


def _again(options: Namespace) -> str:
    return f"sigma report {options.what} --days {options.days} --out {options.out.name}"
