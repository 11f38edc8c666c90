"""What the operating commands do: generations, jobs, deletions, dead letters, benchmarks."""

import json
from argparse import Namespace
from dataclasses import asdict

from ops.cli.commands import emit, ready, threads
from ops.embedded.database import services
from schemas.errors import UsageError
from schemas.events import ImageDeleted
from schemas.settings import Settings
from stream.log.event_log import message
from workers.repository import generations as repository
from workers.repository.connection import transaction
from workers.repository.images import delete_images, images_by_id


def generations(options: Namespace, settings: Settings) -> int:
    """`sigma generations`"""
    if (options.action in ("promote", "drop")) != (options.generation is not None):
        raise UsageError(
            "name the generation to promote or drop, and only then: sigma generations promote G"
        )
    with services(settings) as found, ready(found, "generations") as conn:
        if options.action == "promote":
            from ops.jobs.gate import promote

            threads(settings)
            promote(found, conn, options.generation, force=options.force)
        elif options.action == "rollback":
            from workers.generations.switching import rollback

            rollback(found, conn)
        elif options.action == "drop":
            from workers.generations.retiring import drop

            drop(found, conn, options.generation, force=options.force)
        listed = repository.generations(conn)
    document = {
        "generations": [
            {
                "id": g.id,
                "state": g.state,
                "dropped": g.dropped,
                "codebook": g.codebook_version,
                "created_at": g.created_at.isoformat(),
                "gate": None if g.config.gate is None else g.config.gate.to_json(),
            }
            for g in listed
        ]
    }
    emit(document, options.json, "\n".join(map(_generation, listed)) or "none yet")
    return 0


def _generation(found: repository.Generation) -> str:
    gate = found.config.gate
    verdict = (
        ""
        if gate is None
        else "  passed its gate"
        if gate.passed
        else f"  refused: {'; '.join(gate.reasons)}"
    )
    return f"{found.id:>4}  {found.display_state:<9} {found.created_at:%Y-%m-%d %H:%M}  codebook {found.codebook_version}{verdict}"


def jobs(options: Namespace, settings: Settings) -> int:
    """`sigma jobs`"""
    from ops.cli.jobs import list_jobs, run_job

    if (options.action == "run") != (options.name is not None):
        raise UsageError("name a job to run, and only then: sigma jobs run NAME")
    threads(settings)
    with services(settings) as found, ready(found, "jobs") as conn:
        document, text = (
            run_job(found, conn, options.name)
            if options.action == "run"
            else list_jobs(found, conn)
        )
    emit(document, options.json, text)
    return 0


def delete(options: Namespace, settings: Settings) -> int:
    """`sigma delete`: gone from the answers when the command returns; the event tells everybody else."""
    with services(settings) as found, ready(found, "delete") as conn:
        log = found.open_log()
        with transaction(conn):
            done = delete_images(conn, options.image_ids)
            stored = images_by_id(conn, list(done.deleted))
            events = [ImageDeleted(image_id, stored[image_id].version) for image_id in done.deleted]
            log.publish(conn, [message(event, event.image_id) for event in events])
        log.close()
    text = f"deleted {len(done.deleted)}" + (
        f"; unknown or deleted before: {', '.join(done.untouched)}" if done.untouched else ""
    )
    emit({"deleted": list(done.deleted), "untouched": list(done.untouched)}, options.json, text)
    return 2 if done.untouched else 0


def dead_letters(options: Namespace, settings: Settings) -> int:
    """`sigma dead-letters`"""
    from stream.log import dead_letters as letters

    if (options.action == "show") != (options.place is not None):
        raise UsageError(
            "name a dead letter to show, and only then: sigma dead-letters show PARTITION:OFFSET"
        )
    with services(settings) as found, ready(found, "dead letters") as conn:
        log = found.open_log()
        if options.action == "replay":
            done = letters.replay(log, conn)
            text = f"published {done.replayed} events again"
            emit(
                asdict(done),
                options.json,
                text + (f"; {done.lost} are no longer in the log" if done.lost else ""),
            )
        elif options.action == "show":
            shown = asdict(letters.show(log, options.place))
            emit(shown, options.json, json.dumps(shown, ensure_ascii=False, indent=2))
        else:
            listed = letters.dead_letters(log, limit=options.limit)
            document = {
                "dead_letters": [
                    asdict(one) | {"place": one.place, "published_at": one.published_at.isoformat()}
                    for one in listed
                ]
            }
            lines = [
                f"{one.place:>8}  {one.published_at:%Y-%m-%d %H:%M:%S}  {one.image_id}  [{one.code}] {one.reason}"
                for one in listed
            ]
            emit(document, options.json, "\n".join(lines) or "none")
        log.close()
    return 0


def bench(options: Namespace, settings: Settings) -> int:
    """`sigma bench`"""
    from ops.bench.run import bench as run

    threads(settings)
    document, text = run(options)
    emit(document, options.json, text)
    return 0


def study(options: Namespace, settings: Settings) -> int:
    """`sigma study`"""
    from ops.cli.progress_bar import bar
    from ops.study.longrun import REDUCED, StudyConfig, longrun, publish
    from ops.study.summary import table

    if options.seeds < 1:
        raise UsageError(f"--seeds is {options.seeds}, at least 1 is needed")
    config = REDUCED if options.reduced else StudyConfig(seeds=tuple(range(options.seeds)))
    document = longrun(config, options.out, bar)
    publish(document, options.out)
    emit(document, options.json, table(document) + f"\nplots and tables are in {options.out}")
    return 0
