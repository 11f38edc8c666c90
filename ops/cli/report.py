"""`sigma report`: reads what the jobs recorded and writes a page, JSON or a few lines."""

import logging
import os
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

from ops.cli.context import AddCommand, emit, limit_threads, open_database
from ops.embedded.database import open_services
from schemas.errors import UsageError
from schemas.settings import Settings
from workers.repository.connection import Connection
from workers.runtime.services import Services

# Ten years: more than any job history holds.
_MAX_DAYS = 3650


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
    if not 1 <= options.days <= _MAX_DAYS:
        raise UsageError(f"--days must be between 1 and {_MAX_DAYS:,}, got {options.days}")
    if options.out is not None:
        _check_writable(options.out)
    # matplotlib warns about font caches that it builds or cannot keep; a report is unaffected.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with open_services(settings) as opened, open_database(opened, "report") as conn:
        if options.what == "drift":
            _report_drift(options, conn)
        else:
            _report_recall(options, opened, conn)
    return 0


def _report_recall(options: Namespace, opened: Services, conn: Connection) -> None:
    from ops.report.documents import recall_report
    from ops.report.generation_comparison import GenerationComparison, compare_generations
    from ops.report.text_report import recall_summary

    # A comparison loads two models; the short summary does not show it.
    if options.out is None and not options.json:
        comparison = GenerationComparison(why="Not asked for.")
    else:
        from workers.query.loading import open_searcher

        limit_threads(opened.settings)
        comparison = compare_generations(conn, lambda generation: open_searcher(opened, generation))
    document = recall_report(conn, comparison, datetime.now(UTC), options.days)
    text = recall_summary(document)
    if options.out is not None:
        from ops.report.recall_page import recall_page
        from ops.report.thumbnails import thumbnails

        pictures = thumbnails(conn, opened.store, comparison.image_ids)
        _write(options.out, recall_page(document, pictures, _command(options)))
        text = f"wrote {options.out}"
    emit(document.to_dict(), options.json, text)


def _report_drift(options: Namespace, conn: Connection) -> None:
    from ops.report.documents import drift_report
    from ops.report.text_report import drift_summary

    document = drift_report(conn, datetime.now(UTC), options.days)
    text = drift_summary(document)
    if options.out is not None:
        from ops.report.drift_page import drift_page

        _write(options.out, drift_page(document, _command(options)))
        text = f"wrote {options.out}"
    emit(document.to_dict(), options.json, text)


def _check_writable(out: Path) -> None:
    """Refuse a place that cannot be written to before the work is done, not after."""
    if out.is_dir():
        example = out / "report.html"
        raise UsageError(f"--out must name a file, {out} is a folder; for example {example}")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--out {out}: the folder {folder} does not exist; create it first")
    if not os.access(out if out.exists() else folder, os.W_OK):
        raise UsageError(f"--out {out} cannot be written; name a file where you may write")


def _write(out: Path, page: str) -> None:
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written ({error.strerror}); name another file"
        ) from error


def _command(options: Namespace) -> str:
    """The command that makes the page again."""
    return f"sigma report {options.what} --days {options.days} --out {options.out.name}"
