"""The query API: HTTP around `workers.query.server`, and the process that serves it."""

import asyncio
import os
import socket
import sys
import threading
import time
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from schemas.access_settings import AccessSettings
from schemas.errors import WorkFailedError
from schemas.records import JsonObject
from workers.query.access_gate import HEALTH_PATH, READINESS_PATH, AccessGate
from workers.query.early_refusal import EarlyRefusal
from workers.query.key_rates import KeyRates
from workers.query.key_ring import KeyRing
from workers.query.pending import PendingQuery
from workers.query.query_request import MAX_BODY_BYTES, QueryRequest, parse_request
from workers.query.query_text import checked_query
from workers.query.refusals import (
    QUERY_PATH,
    AnswerTimeoutError,
    ClientLeftError,
    QueryGate,
    add_refusals,
    count_overloaded,
    read_body,
)
from workers.query.searcher import AnsweredQuery
from workers.query.server import QueryServer
from workers.query.updates import LoadSearcher
from workers.runtime.connection_guard import ConnectionGuard, GuardedConfig, connection_limit
from workers.runtime.host_check import HostCheck, listening_address, require_keys
from workers.runtime.metrics import QueryMetrics
from workers.runtime.metrics_server import METRICS_PATH, exposed
from workers.runtime.process import bind
from workers.runtime.services import Services
from workers.runtime.vital_thread import VitalThread

# Longest wait for an answer. The line is short, so only a worker that is stuck takes so long.
_ANSWER_S = 10.0

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

# What `/readyz` tells somebody without a key, where keys are configured.
_NOT_TOLD = "not ready; the reason is told to whoever sends a key"

# Only for the description of the API: the access gate has judged the key before.
_KEYED = [Security(HTTPBearer(auto_error=False, description="where keys are configured"))]


class QueryResult(BaseModel):
    """One image."""

    rank: int
    image_id: str
    uri: str
    link: Annotated[
        str, Field(description="where the normalised picture can be fetched, for a while")
    ]
    identifier: list[int]
    score: float
    captions: list[str]


class QueryResponse(BaseModel):
    """Images, best first."""

    query: str
    generation: int
    took_ms: float
    candidates: int
    results: list[QueryResult]


def application(server: QueryServer, metrics: QueryMetrics) -> FastAPI:
    """Build the HTTP interface of one server; `workers.query.access_gate` says who may ask it."""
    app = FastAPI(
        title="sigma-stream",
        description="Generative text-to-image retrieval over a stream of images",
        version="1",
        # A redirection would repeat the host that the client named.
        redirect_slashes=False,
        swagger_ui_oauth2_redirect_url=None,
    )

    # The body is read by hand, strictly and within limits; the description says what it is.
    @app.post(
        QUERY_PATH,
        response_model=QueryResponse,
        summary="Find images by text",
        dependencies=_KEYED,
        openapi_extra={"requestBody": _body_description()},
    )
    async def query(request: Request) -> JsonObject:
        started_s = time.monotonic()
        body = await read_body(request, MAX_BODY_BYTES)
        wanted = parse_request(request.headers.get("content-type"), body)
        text = checked_query(wanted.query, wanted.k)
        pending = PendingQuery(text, wanted.k, wanted.mode, wanted.generation)
        # From here on the decode thread may answer at any moment, in its own thread.
        server.submit(pending)
        answer = await _answer_of(pending, request, server)
        took_ms = (time.monotonic() - started_s) * 1000
        server.report_served(pending, answer, took_ms)
        return answer.to_dict(took_ms)

    @app.get(HEALTH_PATH, summary="Alive")
    async def healthz() -> Response:
        alive = server.alive
        return JSONResponse({"alive": alive}, status_code=200 if alive else 503)

    @app.get(READINESS_PATH, summary="Model warm, trie loaded, queries answered")
    async def readyz(request: Request) -> Response:
        problem = server.problem
        if problem and not (request.state.trusted or server.problem_is_public):
            problem = _NOT_TOLD
        return JSONResponse(
            {"ready": not problem, "problem": problem}, status_code=503 if problem else 200
        )

    @app.get(METRICS_PATH, summary="Prometheus metrics", dependencies=_KEYED)
    async def measured() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    add_refusals(app)
    return app


def guarded(
    server: QueryServer, metrics: QueryMetrics, access: AccessSettings, address: str
) -> AccessGate:
    """Build the application with its gates, for a port that listens on an address."""
    return AccessGate(
        QueryGate(application(server, metrics), server, metrics),
        HostCheck.of_listener(address, access.allowed_hosts),
        KeyRing.open(access),
        KeyRates(),
        access,
        metrics,
    )


def _body_description() -> JsonObject:
    """Describe the body of a query for OpenAPI."""
    schema = QueryRequest.model_json_schema()
    return {"required": True, "content": {"application/json": {"schema": schema}}}


async def _answer_of(pending: PendingQuery, request: Request, server: QueryServer) -> AnsweredQuery:
    """Wait for the answer, but not longer than the client does."""
    answered = asyncio.wrap_future(pending.answer)
    leaving = asyncio.ensure_future(_until_left(request))
    try:
        waited_for: set[asyncio.Future[Any]] = {answered, leaving}
        await asyncio.wait(waited_for, timeout=_ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        if answered.done():
            return answered.result()
        if leaving.done():
            raise ClientLeftError("the client left before it was answered")
        raise AnswerTimeoutError(
            f"no answer within {_ANSWER_S:g} seconds; the worker is overloaded, try again"
        )
    finally:
        leaving.cancel()
        answered.cancel()
        # Frees its place in the line; without effect on a query that was answered.
        server.withdraw(pending)


async def _until_left(request: Request) -> None:
    """Wait until the client closes the connection; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def run(
    services: Services,
    stop: threading.Event,
    load: LoadSearcher,
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
            _serve(services, stop, load, own_listener, metrics)


def _serve(
    services: Services,
    stop: threading.Event,
    load: LoadSearcher,
    listener: socket.socket,
    metrics: QueryMetrics,
) -> None:
    settings = services.settings
    name = f"{socket.gethostname()}-{os.getpid()}"
    server = QueryServer(services, name, stop, metrics, load)
    app = guarded(server, metrics, settings.access, listening_address(listener))
    guard = ConnectionGuard(connection_limit(settings.http_connections), metrics.count_response)
    early = EarlyRefusal(
        lambda: server.is_full,
        lambda: server.most_under_way,
        app.may_ask,
        app.refusal,
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
    # First no further requests; then those that wait are answered or refused.
    http.should_exit = True
    server.close()
    thread.join(_JOIN_S)
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
