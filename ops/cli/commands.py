"""What each command does: read, call, print. Heavy modules are imported where they are used."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ops.embedded.database import services
from schemas.errors import UsageError
from schemas.records import ManifestEntry
from schemas.settings import Settings
from stream.manifest import read_manifest, read_paths
from workers.repository import generations as repository
from workers.repository.connection import Connection, migrate
from workers.repository.images import images_by_id
from workers.repository.postings import image_at, postings_of
from workers.runtime.services import Services

_SHOWN = 20
"""Rejections that a person is shown at once; `--json` has all."""


def emit(document: Any, as_json: bool, text: str) -> None:
    """Print the document, or what a person would rather read."""
    print(json.dumps(document, ensure_ascii=False) if as_json else text, flush=True)


def ready(found: Services, name: str) -> Connection:
    """A connection to a database whose schema, topics and bucket are there: no command needs `sigma init` first."""
    conn = found.connect(name)
    migrate(conn)
    if found.s3 is not None:
        found.s3.create_bucket()
    log = found.open_log()
    log.ensure_topics()
    log.close()
    return conn


def entries_of(manifest: Any, split: str | None) -> list[ManifestEntry]:
    """Entries of a manifest, of one split if asked."""
    entries = read_manifest(manifest)
    kept = [entry for entry in entries if split is None or entry.split == split]
    if not kept:
        found = ", ".join(sorted({str(entry.split) for entry in entries}))
        raise UsageError(f"{manifest} has no entry of split {split!r}, found are: {found}")
    return kept


def demo(options: Namespace, settings: Settings) -> int:
    """`sigma demo`"""
    from ops.demo.demo import DemoConfig
    from ops.demo.demo import demo as run
    from ops.demo.story import story

    document = run(
        settings, DemoConfig(images=options.images, seed=options.seed, ablate=options.ablate)
    )
    emit(document, options.json, story(document))
    return 0


def up(options: Namespace, settings: Settings) -> int:
    """`sigma up`"""
    from ops.embedded import supervisor as processes

    if options.foreground:
        processes.supervise(settings)
        return 0
    found = processes.up(settings)
    logs = settings.home.absolute() / "logs"
    text = f"running: POST {found.url}/v1/query · documentation {found.url}/docs · logs {logs} · stop with: sigma down"
    emit({"url": found.url, "pid": found.pid}, options.json, text)
    return 0


def down(options: Namespace, settings: Settings) -> int:
    """`sigma down`"""
    from ops.embedded import supervisor as processes

    stopped = processes.down(settings)
    emit({"stopped": stopped}, options.json, "stopped" if stopped else "nothing was running")
    return 0


def init(options: Namespace, settings: Settings) -> int:
    """`sigma init`"""
    with services(settings) as found, ready(found, "init") as conn:
        version = migrate(conn)
    emit(
        {"schema": version},
        options.json,
        f"database at schema {version}, topics and image store ready",
    )
    return 0


def ingest(options: Namespace, settings: Settings) -> int:
    """`sigma ingest`: exit code 2 when images were rejected, after all others went through."""
    from ops import ingestion as work
    from ops.cli.progress_bar import bar
    from ops.embedded.supervisor import running

    if bool(options.paths) == bool(options.manifest):
        raise UsageError("give either --manifest F or image files and folders")
    if options.version is not None and options.version < 1:
        raise UsageError(f"--version is {options.version}, versions begin at 1")
    entries = (
        entries_of(options.manifest, options.split)
        if options.manifest
        else read_paths(options.paths)
    )
    if options.wait and settings.embedded and running(settings) is None:
        raise UsageError(
            "no workers run here, so nothing would become searchable; start them with: sigma up"
        )
    with services(settings) as found, ready(found, "ingest") as conn:
        log = found.open_log()
        with bar("publish", len(entries)) as progress:
            published = work.publish(found, conn, log, entries, options.version, progress.update)
        outcome = None
        if options.wait:
            serving = running(settings) is not None and repository.live(conn) is not None
            with bar("searchable", len(entries)) as progress:
                outcome = work.wait(
                    conn,
                    published,
                    serving=serving,
                    timeout_s=options.timeout,
                    tick=progress.update,
                )
        log.close()
    document = work.summary(published, outcome)
    text = f"published {document['published']:,} images"
    if outcome is not None:
        text += f", {outcome.indexed:,} are searchable, {len(document['rejected']):,} were rejected"
    text += "".join(f"\n  {one['path']}: {one['reason']}" for one in document["rejected"][:_SHOWN])
    if len(document["rejected"]) > _SHOWN:
        text += f"\n  … and {len(document['rejected']) - _SHOWN:,} more; all of them: sigma dead-letters list"
    emit(document, options.json, text)
    return 2 if document["rejected"] else 0


def query(options: Namespace, settings: Settings) -> int:
    """`sigma query`: asks the running query worker; without one, or for another generation, it loads the model itself."""
    from ops.query_client import ask

    document = ask(settings, options.text, options.k, options.generation, options.mode)
    lines = [
        f"{one['rank']:>3}  {one['score']:8.3f}  {one['image_id']}  {(one['captions'] or [''])[0]}"
        for one in document["results"]
    ]
    emit(document, options.json, "\n".join(lines) or "nothing found")
    return 0


def evaluate(options: Namespace, settings: Settings) -> int:
    """`sigma evaluate`"""
    from ops.cli.progress_bar import bar
    from ops.evaluation import evaluate as run
    from ops.evaluation import table
    from workers.query.searcher import Searcher, live_generation

    entries = entries_of(options.manifest, options.split)
    with services(settings) as found, ready(found, "evaluate") as conn:
        searcher = Searcher(found, live_generation(conn, options.generation))
        document = run(
            searcher,
            entries,
            limit=options.queries,
            seed=options.seed,
            ablate=options.ablate,
            progress=bar,
        )
        searcher.close()
    emit(document, options.json, table(document))
    return 0


def explain(options: Namespace, settings: Settings) -> int:
    """`sigma explain`"""
    from model.decoding.decoder import Decoder
    from model.decoding.explain import explain as run
    from workers.generations.appender import checkpoint_of
    from workers.query.searcher import live_generation

    with services(settings) as found, ready(found, "explain") as conn:
        generation = live_generation(conn, options.generation)
        image_id, codes = _identify(conn, generation, options.what)
        caption = run(Decoder(checkpoint_of(found, generation).sigma), codes)
    document = {
        "generation": generation.id,
        "image_id": image_id,
        "identifier": codes,
        "caption": caption,
    }
    emit(document, options.json, f"{codes} {f'({image_id}) ' if image_id else ''}→ {caption}")
    return 0


def _identify(
    conn: Connection, generation: repository.Generation, what: Sequence[str]
) -> tuple[str | None, list[int]]:
    """Image id (if one is meant) and codes of what the user named."""
    shape = generation.shape
    stored = images_by_id(conn, [" ".join(what)]).get(" ".join(what))
    if stored is not None:
        places = postings_of(conn, generation.id, [stored.image_key]).get(stored.image_key)
        if not places:
            raise UsageError(
                f"image {stored.image_id} is {stored.state} and has no identifier in generation {generation.id}"
            )
        return stored.image_id, shape.identifier(places[0].leaf, places[0].suffix or 0)
    try:
        codes = [int(part) for part in " ".join(what).replace(",", " ").strip("[] ").split()]
    except ValueError:
        raise UsageError(
            f"{' '.join(what)!r} is no image of this index and no identifier such as 3,1,4,2,0"
        ) from None
    limits = [*shape.codes, shape.suffixes]
    if not 1 <= len(codes) <= len(limits) or any(
        not 0 <= code < limit for code, limit in zip(codes, limits, strict=False)
    ):
        raise UsageError(
            f"{codes} is no identifier here: one to five numbers, below {', '.join(map(str, limits))}"
        )
    key = (
        image_at(conn, generation.id, shape.pack(codes[:4]), codes[4])
        if len(codes) == len(limits)
        else None
    )
    named = {one.image_key: one.image_id for one in images_by_key_of(conn, key)}
    return named.get(key or 0), codes


def images_by_key_of(conn: Connection, key: int | None) -> list[Any]:
    """The stored image of a key, if any."""
    from workers.repository.images import images_by_key

    return [] if key is None else list(images_by_key(conn, [key]).values())


def status(options: Namespace, settings: Settings) -> int:
    """`sigma status`"""
    from ops.embedded.supervisor import running
    from ops.status import status as run

    with services(settings) as found, ready(found, "status") as conn:
        log = found.open_log()
        document = run(conn, log)
        log.close()
    address = running(settings)
    document["url"] = address.url if address else None
    images, fresh = document["images"], document["freshness_s"]
    sizes = ", ".join(
        f"{images[name]:,} {word}"
        for name, word in (
            ("indexed", "indexed"),
            ("pending", "waiting"),
            ("rejected", "rejected"),
            ("deleted", "deleted"),
        )
    )
    lines = [
        f"generation   {document['generation'] or 'none live'} ({len(document['generations'])} in all)",
        f"images       {sizes}",
        f"trie         {document['trie']['leaves']:,} leaves, checksum {document['trie']['checksum']}",
        f"freshness    p50 {fresh['p50']} s, p95 {fresh['p95']} s from arrival to searchable",
        f"serving      {document['url'] or 'nothing runs; start it with: sigma up'}",
        *(f"ALARM        {alarm}" for alarm in document["alarms"]),
    ]
    emit(document, options.json, "\n".join(lines))
    return 0


def corpus(options: Namespace, settings: Settings) -> int:
    """`sigma corpus`"""
    from ops.cli.progress_bar import bar
    from ops.scenes.corpus import CorpusConfig, generate

    config = CorpusConfig(options.images, seed=options.seed, start=options.start)
    with bar("render", options.images) as progress:
        manifest = generate(config, options.out, options.split, progress.update)
    emit({"manifest": str(manifest), "images": options.images}, options.json, f"wrote {manifest}")
    return 0


def base(options: Namespace, settings: Settings) -> int:
    """`sigma base`"""
    from ops.cli.progress_bar import bar
    from ops.scenes.make_base import BaseConfig, build_base

    names = (
        "images",
        "captions",
        "seed",
        "contrastive_epochs",
        "teacher_epochs",
        "pretrain_epochs",
        "probe",
    )
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    about = build_base(replace(BaseConfig(), **chosen), options.out, bar)
    emit(about, options.json, json.dumps(about, indent=2))
    return 0


def worker(options: Namespace, settings: Settings) -> int:
    """`sigma worker`: one process; a missing schema is created, so workers may start in any order."""
    from workers.runtime.logs import configure
    from workers.runtime.metrics import DriftMetrics, IndexMetrics, IntakeMetrics, expose
    from workers.runtime.process import inherited, stop_on_signals
    from workers.runtime.relay import start_relay

    configure(settings.log_level)
    stop = stop_on_signals()
    with services(settings) as found:
        ready(found, options.role).close()
        if options.role in ("intake", "index"):
            start_relay(found, stop)
        if options.role == "intake":
            from workers import intake

            taken = IntakeMetrics()
            expose(settings, taken.registry)
            intake.run(found, stop, taken)
            return 0
        if options.role == "scheduler":
            from ops.jobs import drift_report as drift
            from ops.jobs import scheduler

            watched = DriftMetrics()
            expose(settings, watched.registry)
            drift.watch(found, watched, stop)
            scheduler.run(found, stop)
            return 0
        threads(settings)
        if options.role == "index":
            from workers.index import IndexWorker

            indexed = IndexMetrics()
            expose(settings, indexed.registry)
            IndexWorker(found, indexed).run(stop)
        else:
            from workers.query import http as serving

            serving.run(
                found,
                stop,
                listener=None if options.listener is None else inherited(options.listener),
            )
    return 0


def threads(settings: Settings) -> None:
    """CPU threads of a process with a model: one by default, for its neighbours need the others."""
    import torch

    torch.set_num_threads(settings.threads or 1)
