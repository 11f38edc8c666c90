"""The command line `sigma`. Each group of commands declares itself in a file beside this one.

Command modules import what is heavy (PyTorch, faust, matplotlib) inside the function that needs it,
so that `sigma --help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version

import structlog

from ops.cli import (
    backups,
    deploy,
    generations,
    images,
    jobs,
    keys,
    material,
    measure,
    photos,
    processes,
    profiles,
    report,
    search,
    train,
)
from ops.cli.command_parser import CommandParser
from ops.cli.context import RunCommand
from ops.cli.failures import report as report_failure
from schemas.settings import Settings
from workers.runtime.logs import configure, tolerant_streams

log = structlog.get_logger()

DISTRIBUTION = "sigma-stream"
DESCRIPTION = "A streaming incremental index for generative text-to-image retrieval."

# Command groups in the order of the help text.
GROUPS = (
    processes,
    photos,
    keys,
    train,
    profiles,
    images,
    search,
    generations,
    jobs,
    report,
    backups,
    deploy,
    material,
    measure,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `sigma`. Exit codes: 0 done, 1 the work failed, 2 bad usage or bad input."""
    with tolerant_streams():
        parsed = parser().parse_args(arguments)
        # Standard output is for the answer; workers set a log level of their own.
        configure("warning")
        try:
            return int(parsed.run(parsed, Settings.from_environment(os.environ)) or 0)
        except BrokenPipeError:
            # The reader of our output has left, as `head` does.
            _abandon_output()
            return 1
        except (Exception, KeyboardInterrupt) as error:
            if parsed.command == "worker":
                # Its log is for those who look after it, who need to know where.
                log.critical("worker failed", reason=str(error), exc_info=error)
            return report_failure(error)


def _abandon_output() -> None:
    """Let go of standard output, which the interpreter would otherwise try to flush at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands and their options."""
    root = argparse.ArgumentParser(prog="sigma", description=DESCRIPTION)
    root.add_argument("--version", action="version", version=f"%(prog)s {version(DISTRIBUTION)}")
    commands = root.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
    )

    def add(
        name: str, run: RunCommand, help: str, *, has_json: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        if has_json:
            command.add_argument(
                "--json", action="store_true", help="print one JSON document on standard output"
            )
        return command

    for group in GROUPS:
        group.add_commands(add)
    return root


if __name__ == "__main__":
    sys.exit(main())
