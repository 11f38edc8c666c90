"""The metrics server: a worker's Prometheus metrics on a port of their own, without a key.

It has the limits of the query API: nobody keeps a connection, or all of them.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.errors import WorkFailedError
from schemas.settings import Settings
from workers.runtime.connection_guard import ConnectionGuard, GuardedConfig
from workers.runtime.host_check import HostCheck, listening_address
from workers.runtime.process import bind
from workers.runtime.refusal import Refusal
from workers.runtime.vital_thread import VitalThread

METRICS_PATH = "/metrics"

# Connections: one or two Prometheus servers, a health check and somebody who looks.
_CONNECTIONS = 32

# Seconds between looks whether the server has started.
_START_POLL_S = 0.01

# Longest wait for the start, and for open requests at the end.
_PATIENCE_S = 10.0

_NOT_FOUND = Refusal(404, f"there is only {METRICS_PATH} here; ask for it")


class MetricsGate:
    """The ASGI application in front of prometheus_client's, which answers to every address."""

    def __init__(self, app: ASGIApp, hosts: HostCheck) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        refusal = self._hosts.refusal(scope["headers"])
        if refusal is None and scope["path"] != METRICS_PATH:
            refusal = _NOT_FOUND
        if refusal is not None:
            await refusal.send(send)
            return
        await self._app(scope, receive, send)


@contextmanager
def exposed(settings: Settings, registry: CollectorRegistry) -> Iterator[None]:
    """Serve a registry on `SIGMA_METRICS_PORT` for the time of the block, if that is set."""
    if settings.metrics_port is None:
        yield
        return
    listener = bind(
        settings.metrics_host, settings.metrics_port, "SIGMA_METRICS_HOST and SIGMA_METRICS_PORT"
    )
    hosts = HostCheck.of_listener(listening_address(listener), settings.access.allowed_hosts)
    app = MetricsGate(make_asgi_app(registry), hosts)
    server = uvicorn.Server(GuardedConfig(app, ConnectionGuard(_CONNECTIONS, _leave_uncounted)))
    thread = VitalThread("metrics", lambda: server.run(sockets=[listener]))
    thread.start()
    try:
        _wait_until_started(server, thread)
        yield
    finally:
        server.should_exit = True
        thread.join(_PATIENCE_S)
        listener.close()


def _leave_uncounted(status: int, cause: str) -> None:
    """Not every registry has a counter of refusals, and nobody is refused a query here."""


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise WorkFailedError("the metrics port does not open; see the log, start it again")
        time.sleep(_START_POLL_S)
