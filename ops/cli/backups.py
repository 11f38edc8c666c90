"""Commands that save an installation and bring it back: `backup`, `restore`."""

import time
from argparse import Namespace
from pathlib import Path

from ops.cli.context import AddCommand, emit
from ops.embedded.database import open_services
from schemas.errors import UsageError
from schemas.records import JsonObject
from schemas.settings import Settings

_MEGABYTE = 1_000_000


def add_commands(add: AddCommand) -> None:
    """Declare the commands of this group."""
    backup_command = add("backup", backup, "save everything in a folder, while all goes on")
    backup_command.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    backup_command.add_argument(
        "--link-from",
        type=Path,
        metavar="OLD",
        help="a backup on the same disk to share pictures and weights with, by links",
    )
    restore_command = add("restore", restore, "bring a backup into an empty home or database")
    restore_command.add_argument("folder", type=Path, metavar="DIR", help="a backup")
    restore_command.add_argument(
        "--check", action="store_true", help="only read all of the backup, and change nothing"
    )


def backup(options: Namespace, settings: Settings) -> int:
    """`sigma backup`: exit code 1 when something could not be saved because it is damaged."""
    from ops.backup.backup import back_up, open_folder
    from ops.backup.backup_manifest import read_manifest
    from ops.cli.progress_bar import bar

    home = settings.home.absolute()
    if settings.embedded and not (home / "postgres").exists():
        raise UsageError(f"there is nothing to save in the home {home}; see SIGMA_HOME")
    if options.link_from is not None:
        # Refused before anything is written.
        read_manifest(options.link_from)
    folder = options.folder.absolute()
    open_folder(folder)
    started_s = time.monotonic()
    with open_services(settings) as services:
        manifest = back_up(services, folder, bar, options.link_from)
    document: JsonObject = {
        "backup": str(folder),
        "schema": manifest.schema,
        "images": manifest.rows.get("image", 0),
        "pictures": manifest.pictures,
        "generations": list(manifest.generations),
        "waiting": manifest.unread,
        "bytes": manifest.bytes,
        "erased": len(manifest.erased),
        "left_out": list(manifest.left_out),
        "damaged": list(manifest.damaged),
        "seconds": round(time.monotonic() - started_s, 1),
    }
    emit(document, options.json, _backup_text(document))
    return 1 if manifest.damaged else 0


def _backup_text(document: JsonObject) -> str:
    lines = [
        f"saved {document['images']:,} images with {document['pictures']:,} pictures,"
        f" {len(document['generations'])} generations and {document['waiting']:,} waiting events"
        f" in {document['backup']} ({document['bytes'] / _MEGABYTE:,.1f} MB)"
    ]
    if document["erased"]:
        lines.append(f"{document['erased']:,} pictures were erased meanwhile: a restore deletes")
        lines[-1] += " their images too"
    lines += [f"left out: {sentence}" for sentence in document["left_out"]]
    lines += [f"DAMAGED BEFORE: {sentence}" for sentence in document["damaged"]]
    return "\n".join(lines)


def restore(options: Namespace, settings: Settings) -> int:
    """`sigma restore`: nothing is changed unless all of the backup is what was written."""
    from ops.backup.restore import restore as restore_backup
    from ops.backup.verification import verify
    from ops.cli.progress_bar import bar

    folder = options.folder.absolute()
    manifest = verify(folder, bar)
    summary: JsonObject = {
        "backup": str(folder),
        "made_at": manifest.made_at,
        "schema": manifest.schema,
        "pictures": manifest.pictures,
        "bytes": manifest.bytes,
        "damaged": list(manifest.damaged),
    }
    size = f"{manifest.pictures:,} pictures, {manifest.bytes / _MEGABYTE:,.1f} MB"
    if options.check:
        emit(
            {"whole": True} | summary,
            options.json,
            f"{folder} is whole: made {manifest.made_at}, {size}",
        )
        return 0
    with open_services(settings) as services:
        restored = restore_backup(services, folder, manifest, bar)
    document = summary | restored.to_json()
    emit(document, options.json, f"{size} restored\n{_restored_text(document)}")
    return 0


def _restored_text(document: JsonObject) -> str:
    lines = [
        f"{document['images']:,} images in {document['generations']} generations, database at"
        f" schema {document['schema']}; start it with: sigma up"
    ]
    if document["deleted"]:
        lines.append(f"{document['deleted']:,} images were deleted while the backup was made")
    if document["carried_over"]:
        lines.append(f"{document['carried_over']:,} waiting events were published again")
    for number in document["given_up"]:
        lines.append(f"generation {number} was being trained: train it again")
    return "\n".join(lines)
