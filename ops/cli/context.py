"""What command groups share: declaring a command, opening the installation, printing the answer."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ops.cli.terminal import terminal_json, terminal_text
from schemas.errors import UsageError, WorkFailedError
from schemas.records import ManifestEntry
from schemas.settings import Settings
from stream.manifest import list_manifest
from workers.repository.connection import Connection, migrate
from workers.runtime.services import Services

# The body of a command: parsed options and settings to the exit code.
RunCommand = Callable[[Namespace, Settings], int]


class AddCommand(Protocol):
    """Declares a command; the caller adds its options to the parser that comes back."""

    def __call__(
        self, name: str, run: RunCommand, help: str, *, has_json: bool = True
    ) -> ArgumentParser:
        """Add `sigma NAME`; with `has_json` it takes `--json`."""
        ...


def emit(document: Any, as_json: bool, text: str) -> None:
    """Print the JSON document, or the text for people."""
    # On a terminal that has no letters for it, JSON has escapes of its own for every letter.
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    answer = terminal_json(document, ascii_only=not is_utf8) if as_json else terminal_text(text)
    try:
        print(answer, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WorkFailedError(
            f"the work is done and its answer cannot be written ({error.strerror}); ask again with"
            " room for it"
        ) from error


def open_database(services: Services, name: str) -> Connection:
    """Connect to a database whose schema, topics and bucket exist afterwards.

    So no command needs `sigma init` first. `name` shows in pg_stat_activity.
    """
    conn = services.connect(name)
    migrate(conn)
    if services.s3 is not None:
        services.s3.create_bucket()
    log = services.open_log()
    log.ensure_topics()
    log.close()
    return conn


def entries_of(manifest: Path, split: str | None) -> list[ManifestEntry]:
    """Read a manifest's entries, only those of `split` if one is named.

    What is left out of a folder is told on standard error. `UsageError` if none is left.
    """
    listing = list_manifest(manifest)
    for refused in listing.left_out:
        print(f"left out: {refused.path}: {refused.reason}", file=sys.stderr)
    if listing.hidden:
        print(f"skipped: {listing.hidden:,} hidden files and folders", file=sys.stderr)
    return split_of(manifest, listing.entries, split)


def split_of(
    manifest: Path, entries: list[ManifestEntry], split: str | None
) -> list[ManifestEntry]:
    """Choose the entries of a split, or all. `UsageError` if none is left."""
    if split is None:
        chosen = entries
    else:
        chosen = [entry for entry in entries if entry.split == split]
    if not entries:
        raise UsageError(
            f"{manifest} must hold files that can be used, got none; "
            "give what was left out in another way, such as by a manifest"
        )
    if not chosen:
        splits = ", ".join(sorted({str(entry.split) for entry in entries}))
        raise UsageError(f"split must be one of {splits} in {manifest}, got {split!r}")
    return chosen


def limit_threads(settings: Settings) -> None:
    """Set the CPU threads of a process with a model.

    One by default: the other processes of the machine need the other cores.
    """
    import torch

    torch.set_num_threads(settings.threads or 1)
