"""What the API may do to an installation: by our own commands, each in a process of its own.

A gate loads two models and asks both: in the query worker that would hold up queries.
"""

import subprocess
from datetime import UTC, datetime

from ops.embedded.isolation import python_module
from schemas.errors import UsageError, WorkFailedError
from schemas.records import JsonObject
from workers.api.maintenance import REPORT_DAYS, Maintenance
from workers.repository.connection import Connection

# The longest promotion: a gate over two large models, and the images that arrived since training.
_TIMEOUT_S = 4 * 3600

# Exit codes of the command line: bad usage.
_USAGE = 2


def api_maintenance() -> Maintenance:
    """What a query worker lets be done; the commands find its installation as it did itself."""
    return Maintenance(promote, roll_back, drift_report, recall_report)


def promote(generation: int, force: bool) -> None:
    """Run `sigma generations promote`."""
    _run("generations", "promote", str(generation), *(["--force"] if force else []))


def roll_back() -> None:
    """Run `sigma generations rollback`."""
    _run("generations", "rollback")


def drift_report(conn: Connection) -> JsonObject:
    """The document of `sigma report drift`."""
    # Imported here: what draws is slow to import, and most workers are never asked.
    from ops.report.documents import drift_report as report

    return report(conn, datetime.now(UTC), REPORT_DAYS).to_dict()


def recall_report(conn: Connection) -> JsonObject:
    """The document of `sigma report recall`, without comparing generations, which loads two."""
    from ops.report.documents import recall_report as report
    from ops.report.generation_comparison import GenerationComparison

    comparison = GenerationComparison(why="Not asked for: it loads two models.")
    return report(conn, comparison, datetime.now(UTC), REPORT_DAYS).to_dict()


def _run(*arguments: str) -> None:
    done = subprocess.run(
        python_module("ops.cli", *arguments, "--json"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode == 0:
        return
    reason = _last_line(done.stderr)
    raise UsageError(reason) if done.returncode == _USAGE else WorkFailedError(reason)


def _last_line(stderr: str) -> str:
    """What a command says last is why it failed."""
    lines = [line.removeprefix("sigma: ") for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "the command failed and said nothing; see its log"
