"""Commands for the processes of one installation: `up`, `down`, `init`, `status`, `worker`."""

import threading
from argparse import Namespace
from functools import partial

from ops.cli.context import AddCommand, emit, limit_threads, open_database
from ops.embedded.database import open_services
from schemas.records import JsonObject
from schemas.settings import Settings
from workers.generations.none_live import why_none_is_live
from workers.repository import generations
from workers.repository.connection import MEMBER_LIMITS, migrate
from workers.runtime.services import Services

ROLES = ("intake", "index", "query", "scheduler")

# Longest time that a worker which failed may take to end.
_EXIT_S = 15.0


def add_commands(add: AddCommand) -> None:
    """Declare the commands of this group."""
    up_command = add("up", up, "start all processes in the background and return when ready")
    up_command.add_argument(
        "--foreground", action="store_true", help="stay, and stop the processes on Ctrl-C"
    )
    add("down", down, "stop all processes of this home")
    add("init", init, "create or upgrade the database and the topics")
    status_command = add("status", status, "lag, freshness, generation, sizes, alarms")
    status_command.add_argument(
        "--check", action="store_true", help="exit with 1 when anything is wrong, for monitoring"
    )
    worker_command = add(
        "worker", worker, "run one worker process in the foreground", has_json=False
    )
    worker_command.add_argument("role", choices=ROLES)
    worker_command.add_argument(
        "--listener",
        type=int,
        metavar="FD",
        help="query: serve on this inherited socket, which listens already",
    )
    worker_command.add_argument(
        "--stop-with-parent",
        action="store_true",
        help="end when standard input does; for those who start it and may be killed",
    )


def up(options: Namespace, settings: Settings) -> int:
    """`sigma up`"""
    from ops.embedded import control, supervisor

    if options.foreground:
        supervisor.supervise(settings)
        return 0
    running = control.up(settings)
    problem = control.readiness(running, settings.access).problem or None
    if problem is not None:
        problem = _why_none_is_live(settings) or problem
    logs = settings.home.absolute() / "logs"
    state = f"running, but {problem}\n" if problem else "running: "
    text = (
        f"{state}POST {running.url}/v1/query · documentation {running.url}/docs · logs {logs}"
        " · stop with: sigma down"
    )
    emit({"url": running.url, "pid": running.pid, "problem": problem}, options.json, text)
    return 0


def _why_none_is_live(settings: Settings) -> str:
    """What the query worker must not tell everybody, such as why a training failed; else empty."""
    with open_services(settings) as services, services.connect("up") as conn:
        every = generations.generations(conn)
    if any(generation.state == "live" for generation in every):
        return ""
    return why_none_is_live(every)


def down(options: Namespace, settings: Settings) -> int:
    """`sigma down`"""
    from ops.embedded import control

    stopped = control.down(settings)
    emit({"stopped": stopped}, options.json, "stopped" if stopped else "nothing was running")
    return 0


def init(options: Namespace, settings: Settings) -> int:
    """`sigma init`"""
    with open_services(settings) as services, open_database(services, "init") as conn:
        version = migrate(conn)
    text = f"database at schema {version}, topics and image store ready"
    emit({"schema": version}, options.json, text)
    return 0


def status(options: Namespace, settings: Settings) -> int:
    """`sigma status`"""
    from ops.embedded.control import running
    from ops.embedded.process_alarms import process_alarms
    from ops.status import read_status

    with open_services(settings) as services, open_database(services, "status") as conn:
        log = services.open_log()
        found = read_status(conn, log, lambda is_live: process_alarms(settings, is_live=is_live))
        document = found.to_json()
        log.close()
    address = running(settings)
    document["url"] = address.url if address else None
    emit(document, options.json, _status_text(document))
    return 1 if options.check and document["alarms"] else 0


def _status_text(document: JsonObject) -> str:
    images = document["images"]
    trie = document["trie"]
    freshness = document["freshness_s"]
    generations = len(document["generations"])
    lines = [
        f"generation   {document['generation'] or 'none live'} ({generations} in all)",
        f"images       {images['indexed']:,} indexed, {images['pending']:,} waiting,"
        f" {images['rejected']:,} rejected, {images['deleted']:,} deleted",
        *_letter_lines(document["dead_letters"]),
        f"trie         {trie['leaves']:,} leaves, checksum {trie['checksum']}",
        *_room_lines(document["room"]),
        f"freshness    {_freshness_words(freshness)}",
        f"serving      {document['url'] or 'nothing runs; start it with: sigma up'}",
    ]
    for alarm in document["alarms"]:
        lines.append(f"ALARM        {alarm}")
    return "\n".join(lines)


def _letter_lines(count: int) -> list[str]:
    if not count:
        return []
    # Beside the images that are rejected now: one image may have several, a broken event has none.
    return [f"dead letters {count:,} events that could not be used: sigma dead-letters list"]


def _freshness_words(freshness: JsonObject) -> str:
    if freshness["p50"] is None or freshness["p95"] is None:
        return "nothing became searchable in the last hour"
    return f"p50 {freshness['p50']} s, p95 {freshness['p95']} s from arrival to searchable"


def _room_lines(room: JsonObject | None) -> list[str]:
    if room is None:
        return []
    return [
        f"room         {room['share']:.0%} of the {room['comfortable']:,} images that it is meant"
        f" for, {room['beyond']:,} in full leaves",
    ]


def worker(options: Namespace, settings: Settings) -> int:
    """`sigma worker`: run one process.

    It creates a missing schema, so workers may start in any order.
    """
    from workers.runtime.logs import configure
    from workers.runtime.process import stop_on_signals, stop_with_parent
    from workers.runtime.vital_thread import exit_within

    configure(settings.log_level)
    stop = stop_on_signals()
    if options.stop_with_parent:
        stop_with_parent()
    try:
        with open_services(settings) as services:
            open_database(services, options.role).close()
            if options.role == "intake":
                _run_intake(services, stop)
            elif options.role == "index":
                _run_index(services, stop)
            elif options.role == "scheduler":
                _run_scheduler(services, stop)
            else:
                _run_query(services, stop, options.listener)
    except Exception:
        # Whoever starts it again waits for its end, which a stuck thread must not hold up.
        exit_within(_EXIT_S)
        raise
    return 0


def _run_intake(services: Services, stop: threading.Event) -> None:
    # Needs no model: PyTorch is not imported here.
    from workers import intake
    from workers.runtime.metrics import IntakeMetrics
    from workers.runtime.metrics_server import exposed
    from workers.runtime.relay import start_relay

    metrics = IntakeMetrics()
    with exposed(services.settings, metrics.registry):
        start_relay(services.settings.kafka, services.database_url, stop)
        intake.run(services, stop, metrics)


def _run_index(services: Services, stop: threading.Event) -> None:
    from workers.generations.image_assigner import assigner_loader
    from workers.index import IndexWorker
    from workers.runtime.metrics import IndexMetrics
    from workers.runtime.metrics_server import exposed
    from workers.runtime.relay import start_relay

    limit_threads(services.settings)
    metrics = IndexMetrics()
    load = assigner_loader(services.checkpoints, services.settings.retrieval)
    worker = IndexWorker(services.store, load, metrics)
    with exposed(services.settings, metrics.registry):
        start_relay(services.settings.kafka, services.database_url, stop)
        worker.run(partial(services.connect, limits=MEMBER_LIMITS), services.open_log, stop)


def _run_scheduler(services: Services, stop: threading.Event) -> None:
    from ops.jobs.drift_watcher import DriftWatcher
    from ops.jobs.scheduler import Scheduler
    from workers.runtime.metrics import DriftMetrics
    from workers.runtime.metrics_server import exposed

    metrics = DriftMetrics()
    scheduler = Scheduler(services)
    watcher = DriftWatcher(services.connect, metrics)
    with exposed(services.settings, metrics.registry):
        watcher.start()
        try:
            scheduler.run(stop)
        finally:
            watcher.close()


def _run_query(services: Services, stop: threading.Event, listener: int | None) -> None:
    from ops.api_maintenance import api_maintenance
    from workers.query import http
    from workers.query.residents import import_model, searcher_loader
    from workers.repository.generations import live_number
    from workers.runtime.process import inherited

    limit_threads(services.settings)
    with services.connect("query") as conn:
        if live_number(conn) is not None:
            # At full priority, which the thread that loads generations does not have.
            import_model()
    http.run(
        services,
        stop,
        searcher_loader(services),
        api_maintenance(),
        listener=None if listener is None else inherited(listener),
    )
