"""The query worker's process: HTTP around `workers.query.server`."""

import os
import socket
import sys
import threading

import uvicorn
from starlette.types import ASGIApp

from schemas.errors import WorkFailedError
from stream.images.decode_pool import DecodePool
from workers.api.application import application
from workers.api.call_pool import CallPool
from workers.api.context import ApiContext
from workers.api.explanation_memory import ExplanationMemory
from workers.api.maintenance import Maintenance
from workers.api.picture_links import PictureLinks
from workers.api.signatures import Signer
from workers.query.access_gate import AccessGate
from workers.query.early_refusal import EarlyRefusal
from workers.query.key_rates import KeyRates
from workers.query.key_ring import KeyRing
from workers.query.refusals import QueryGate, count_overloaded
from workers.query.server import QueryServer
from workers.query.updates import LoadSearcher
from workers.runtime.connection_guard import ConnectionGuard, GuardedConfig, connection_limit
from workers.runtime.host_check import HostCheck, listening_address, require_keys
from workers.runtime.metrics_server import exposed
from workers.runtime.process import bind
from workers.runtime.query_metrics import QueryMetrics
from workers.runtime.services import Services
from workers.runtime.vital_thread import VitalThread

# How long a Python thread keeps the interpreter's lock when another one waits. The decode thread
# releases it with every tensor operation; at the default of 5 ms a loading thread would stall it.
_SWITCH_INTERVAL_S = 0.0005

# Seconds between looks whether the HTTP server still runs.
_POLL_S = 0.2

# Seconds between looks whether the HTTP server has started.
_START_POLL_S = 0.01

# Seconds for which a stuck decode thread is given another chance.
_STUCK_CONFIRMED_S = 5.0

# Longest wait for open requests at the end.
_JOIN_S = 10.0


def guarded(app: ASGIApp, context: ApiContext, address: str, ring: KeyRing) -> AccessGate:
    """Put the application behind its gates, for a port that listens on an address."""
    access = context.services.settings.access
    return AccessGate(
        QueryGate(app, context.server, context.metrics),
        HostCheck.of_listener(address, access.allowed_hosts),
        ring,
        KeyRates(),
        access,
        context.metrics,
        context.links.admits,
    )


def api_context(
    services: Services,
    server: QueryServer,
    metrics: QueryMetrics,
    maintenance: Maintenance,
    ring: KeyRing,
) -> ApiContext:
    """Put together what answers requests. Its pools start nothing before they are used."""
    signer = Signer(lambda: ring.signing_secret)
    access = services.settings.access
    return ApiContext(
        services,
        server,
        metrics,
        CallPool(services.connect),
        DecodePool(services.limits),
        signer,
        PictureLinks(signer, access.public_url, signed=ring.is_required),
        maintenance,
        ExplanationMemory(),
    )


def run(
    services: Services,
    stop: threading.Event,
    load: LoadSearcher,
    maintenance: Maintenance,
    listener: socket.socket | None = None,
) -> None:
    """Serve until stopped, on a socket that listens already, or on the configured address.

    The address is taken before anything is loaded, so a second worker fails at once. So does one
    that would listen beyond loopback without keys: `RefuseToStartError`.
    """
    settings = services.settings
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with listener or bind(settings.http_host, settings.http_port) as own_listener:
        require_keys(settings, own_listener)
        metrics = QueryMetrics()
        with exposed(settings, metrics.registry):
            _serve(services, stop, load, maintenance, own_listener, metrics)


def _serve(
    services: Services,
    stop: threading.Event,
    load: LoadSearcher,
    maintenance: Maintenance,
    listener: socket.socket,
    metrics: QueryMetrics,
) -> None:
    settings = services.settings
    name = f"{socket.gethostname()}-{os.getpid()}"
    server = QueryServer(services, name, metrics, load)
    ring = KeyRing.open(settings.access)
    context = api_context(services, server, metrics, maintenance, ring)
    app = guarded(application(context), context, listening_address(listener), ring)
    guard = ConnectionGuard(connection_limit(settings.http_connections), metrics.count_response)
    early = EarlyRefusal(
        lambda: server.is_full,
        lambda: server.most_under_way,
        app.may_ask,
        app.query_refusal,
        lambda: count_overloaded(metrics),
    )
    http = uvicorn.Server(GuardedConfig(app, guard, early))
    # Not in the main thread: there uvicorn would replace the signal handlers, which set `stop`.
    thread = VitalThread("http", lambda: http.run(sockets=[listener]))
    server.start()
    thread.start()
    while not http.started and thread.is_alive() and not stop.wait(_START_POLL_S):
        pass
    problem = _watch(stop, thread, server)
    # First no further requests, while those under way are answered; then what still waits is
    # refused. A request that came at the last moment would else be refused, though others answer.
    http.should_exit = True
    thread.join(_JOIN_S)
    server.close()
    thread.join(_JOIN_S)
    context.calls.close()
    context.decoder.close()
    if problem:
        raise WorkFailedError(f"{problem}; read its log, then start it again")


def _watch(stop: threading.Event, http: threading.Thread, server: QueryServer) -> str:
    """Wait until stopped, or until the worker is of no use; returns why, empty when stopped."""
    stuck = 0
    while not stop.wait(_POLL_S):
        if not http.is_alive():
            return "the HTTP server ended by itself"
        # Counted, not only timed: after the whole process was paused its clock has jumped, and
        # the decode thread needs a moment.
        stuck = stuck + 1 if server.is_stuck else 0
        if stuck * _POLL_S > _STUCK_CONFIRMED_S:
            return "the query worker does not get on with a batch"
    return ""
