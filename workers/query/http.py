"""The query API: HTTP around `workers.query.server`, and the process that serves it."""

import asyncio
import os
import socket
import sys
import threading
import time
from typing import Annotated, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from schemas.errors import RetryLaterError, SigmaError, WorkFailedError
from schemas.records import JsonObject
from workers.query.pending import PendingQuery
from workers.query.searcher import MAX_QUERY_LETTERS, MAX_RESULTS, checked_query
from workers.query.server import QueryServer
from workers.query.updates import LoadSearcher
from workers.runtime.metrics import QueryMetrics
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

# Seconds for which a stuck decode thread is given another chance.
_STUCK_CONFIRMED_S = 5.0

# Longest wait for open requests at the end.
_JOIN_S = 10.0


class QueryRequest(BaseModel):
    """A text query."""

    query: Annotated[
        str,
        Field(
            min_length=1, max_length=MAX_QUERY_LETTERS, examples=["two small red circles on navy"]
        ),
    ]
    k: Annotated[int, Field(ge=1, le=MAX_RESULTS, description="how many images")] = 10
    generation: Annotated[
        int | None,
        Field(description="answer from this generation or not at all; the live one without"),
    ] = None
    mode: Annotated[
        Literal["fused", "paper"],
        Field(description="paper: five tokens decoded, primary identifiers only"),
    ] = "fused"


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
    """Build the HTTP interface of one server."""
    app = FastAPI(
        title="sigma-stream",
        description="Generative text-to-image retrieval over a stream of images",
        version="1",
    )

    @app.post("/v1/query", response_model=QueryResponse, summary="Find images by text")
    async def query(request: QueryRequest) -> JsonObject:
        started_s = time.monotonic()
        pending = PendingQuery(
            checked_query(request.query, request.k), request.k, request.mode, request.generation
        )
        # From here on the decode thread may answer at any moment, in its own thread.
        server.submit(pending)
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(pending.answer), _ANSWER_S)
        except TimeoutError:
            raise RetryLaterError(
                f"no answer within {_ANSWER_S:g} seconds; the worker is overloaded, try again"
            ) from None
        took_ms = (time.monotonic() - started_s) * 1000
        server.report_served(pending, answer, took_ms)
        return answer.to_dict(took_ms)

    @app.get("/healthz", summary="Alive")
    async def healthz() -> Response:
        return JSONResponse({"alive": server.alive}, status_code=200 if server.alive else 503)

    @app.get("/readyz", summary="Model warm, trie loaded")
    async def readyz() -> Response:
        return JSONResponse(
            {"ready": not server.problem, "problem": server.problem},
            status_code=503 if server.problem else 200,
        )

    @app.get("/metrics", summary="Prometheus metrics")
    async def measured() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(SigmaError)
    async def refused(_: Request, error: SigmaError) -> Response:
        status = 503 if isinstance(error, RetryLaterError) else 400
        return JSONResponse({"error": str(error)}, status_code=status)

    return app


def run(
    services: Services,
    stop: threading.Event,
    load: LoadSearcher,
    listener: socket.socket | None = None,
) -> None:
    """Serve until stopped, on a socket that listens already, or on the configured address.

    The address is taken before anything is loaded, so a second worker fails at once.
    """
    settings = services.settings
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    listener = listener or bind(settings.http_host, settings.http_port)
    metrics = QueryMetrics()
    name = f"{socket.gethostname()}-{os.getpid()}"
    server = QueryServer(services, name, stop, metrics, load)
    config = uvicorn.Config(
        application(server, metrics), log_level="warning", access_log=False, lifespan="off"
    )
    http = uvicorn.Server(config)
    # Not in the main thread: there uvicorn would replace the signal handlers, which set `stop`.
    thread = VitalThread("http", lambda: http.run(sockets=[listener]))
    server.start()
    thread.start()
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
