"""Commands for images: `ingest`, `delete`, `dead-letters`."""

import json
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

from ops import ingestion
from ops.cli.context import AddCommand, emit, open_database, split_of
from ops.embedded.database import open_services
from ops.ingestion import IngestOutcome, PublishedImages
from schemas.errors import UsageError
from schemas.records import JsonObject
from schemas.settings import Settings
from stream.log.event_log import EventLog
from stream.manifest import Listing, list_manifest, list_paths
from workers.generations.none_live import why_none_is_live
from workers.repository import generations
from workers.repository.announced_deletions import delete_announced
from workers.repository.connection import Connection

# Rejections that are printed for a person; `--json` has all of them.
SHOWN_REJECTIONS = 20


def add_commands(add: AddCommand) -> None:
    """Declare the commands of this group."""
    ingest_command = add("ingest", ingest, "publish images to the stream")
    ingest_command.add_argument(
        "paths", type=Path, nargs="*", metavar="PATH", help="image files or folders"
    )
    ingest_command.add_argument(
        "--manifest", type=Path, metavar="F", help="JSON Lines, Karpathy's JSON, or a folder"
    )
    ingest_command.add_argument("--split", help="only entries of this split")
    ingest_command.add_argument(
        "--version",
        type=int,
        help="version of these images; a higher one replaces what is stored",
    )
    ingest_command.add_argument(
        "--wait", action="store_true", help="return when all are searchable or rejected"
    )
    ingest_command.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="give up after so many seconds without progress",
    )
    delete_command = add("delete", delete, "remove images from all answers at once")
    delete_command.add_argument("image_ids", nargs="+", metavar="IMAGE_ID")
    letters_command = add("dead-letters", dead_letters, "events that could not be used, and why")
    letters_command.add_argument(
        "action", choices=("list", "show", "replay"), nargs="?", default="list"
    )
    letters_command.add_argument(
        "place", nargs="?", metavar="PARTITION:OFFSET", help="the dead letter to show"
    )
    letters_command.add_argument("--limit", type=int, default=100)


def ingest(options: Namespace, settings: Settings) -> int:
    """`sigma ingest`: exit code 2 when images were rejected, after all others went through."""
    from ops.cli.progress_bar import bar

    listing = _listing_to_ingest(options, settings)
    entries = listing.entries
    with open_services(settings) as services, open_database(services, "ingest") as conn:
        if options.wait:
            _require_live(conn)
        log = services.open_log()
        with bar("publish", len(entries)) as progress:
            published = ingestion.publish(
                conn, log, entries, options.version, progress.update, ingestion.upload_to(services)
            )
        published = ingestion.with_left_out(published, listing.left_out)
        outcome = None
        waits_for = "" if generations.live(conn) else _why_none_is_live(conn)
        if options.wait:
            outcome = _wait_until_searchable(conn, settings, published, options.timeout)
        log.close()
    document = ingestion.summary(published, outcome) | {"hidden": listing.hidden}
    searchable = None if outcome is None else outcome.indexed
    text = _ingest_text(document, searchable)
    if waits_for:
        text += f"\nthey are not searchable yet: {waits_for}"
    emit(document, options.json, text)
    return 2 if document["rejected"] else 0


def _listing_to_ingest(options: Namespace, settings: Settings) -> Listing:
    from ops.embedded.control import running

    if bool(options.paths) == bool(options.manifest):
        raise UsageError("give either --manifest F or image files and folders")
    if options.version is not None and options.version < 1:
        raise UsageError(f"--version must be at least 1, got {options.version}")
    if options.manifest:
        listing = list_manifest(options.manifest)
        if options.split is not None:
            chosen = split_of(options.manifest, listing.entries, options.split)
            listing = replace(listing, entries=chosen)
    else:
        listing = list_paths(options.paths)
    if options.wait and settings.embedded and running(settings) is None:
        raise UsageError(
            "no workers run here, so nothing would become searchable; start them with: sigma up"
        )
    return listing


def _require_live(conn: Connection) -> None:
    """Refuse to wait for what cannot happen, before anything is published."""
    if generations.live(conn) is None:
        raise UsageError(
            f"nothing was published, for nothing would become searchable: {_why_none_is_live(conn)}"
            "; or publish without --wait: the first generation takes what is stored by then"
        )


def _why_none_is_live(conn: Connection) -> str:
    return why_none_is_live(generations.generations(conn))


def _wait_until_searchable(
    conn: Connection, settings: Settings, published: PublishedImages, timeout_s: float
) -> IngestOutcome:
    from ops.cli.progress_bar import bar
    from ops.embedded.control import running

    serving = running(settings) is not None and generations.live(conn) is not None
    with bar("searchable", len(published.events)) as progress:
        return ingestion.wait(
            conn, published, serving=serving, timeout_s=timeout_s, tick=progress.update
        )


def _ingest_text(document: JsonObject, searchable: int | None) -> str:
    rejected = document["rejected"]
    text = f"published {document['published']:,} images"
    if searchable is not None:
        text += f", {searchable:,} are searchable, {len(rejected):,} were rejected"
    elif rejected:
        text += f", {len(rejected):,} were left out"
    for rejection in rejected[:SHOWN_REJECTIONS]:
        text += f"\n  {rejection['path']}: {rejection['reason']}"
    if len(rejected) > SHOWN_REJECTIONS:
        more = len(rejected) - SHOWN_REJECTIONS
        text += f"\n  … and {more:,} more; all of them: with --json"
    if document["hidden"]:
        text += f"\n{document['hidden']:,} hidden files and folders were skipped"
    return text


def delete(options: Namespace, settings: Settings) -> int:
    """`sigma delete`: the images are gone from all answers when the command returns.

    The deletion events are for other systems.
    """
    with open_services(settings) as services, open_database(services, "delete") as conn:
        done = delete_announced(conn, services.open_log, options.image_ids)
    text = f"deleted {len(done.deleted)}"
    if done.untouched:
        text += f"; unknown or deleted before: {', '.join(done.untouched)}"
        text += " (an image of this id that is still on its way will not appear)"
    document = {"deleted": list(done.deleted), "untouched": list(done.untouched)}
    emit(document, options.json, text)
    return 2 if done.untouched else 0


def dead_letters(options: Namespace, settings: Settings) -> int:
    """`sigma dead-letters`"""
    if (options.action == "show") != (options.place is not None):
        raise UsageError(
            "name a dead letter to show, and only then: sigma dead-letters show PARTITION:OFFSET"
        )
    with open_services(settings) as services, open_database(services, "dead letters") as conn:
        log = services.open_log()
        if options.action == "replay":
            document, text = _replay(log, conn)
        elif options.action == "show":
            document, text = _show(log, options.place)
        else:
            document, text = _list(log, options.limit)
        log.close()
    emit(document, options.json, text)
    return 0


def _replay(log: EventLog, conn: Connection) -> tuple[JsonObject, str]:
    from stream.log.dead_letters import replay

    replayed = replay(log, conn)
    text = f"published {replayed.replayed} events again"
    if replayed.lost:
        text += f"; {replayed.lost} are no longer in the log"
    return asdict(replayed), text


def _show(log: EventLog, place: str) -> tuple[JsonObject, str]:
    from stream.log.dead_letters import show

    document = asdict(show(log, place))
    return document, json.dumps(document, ensure_ascii=False, indent=2)


def _list(log: EventLog, limit: int) -> tuple[JsonObject, str]:
    from stream.log.dead_letters import dead_letters as read_letters

    documents = []
    lines = []
    for letter in read_letters(log, limit=limit):
        moment = letter.published_at
        documents.append(
            asdict(letter) | {"place": letter.place, "published_at": moment.isoformat()}
        )
        lines.append(
            f"{letter.place:>8}  {moment:%Y-%m-%d %H:%M:%S}  {letter.image_id}"
            f"  [{letter.code}] {letter.reason}"
        )
    return {"dead_letters": documents}, "\n".join(lines) or "none"
