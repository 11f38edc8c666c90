"""The query worker: HTTP around `workers.query.server`."""

import asyncio
import os
import socket
import sys
import threading
import time
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from schemas.errors import RetryLaterError, SigmaError, WorkFailedError
from workers.query.residents import LoadSearcher, load_searcher
from workers.query.searcher import MAX_QUERY_LETTERS, MAX_RESULTS, checked_query
from workers.query.server import PendingQuery, Server
from workers.runtime.metrics import QueryMetrics
from workers.runtime.process import bind
from workers.runtime.services import Services

_PATIENCE_S, _SWITCH_S = 30.0, 0.0005


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


def application(server: Server, metrics: QueryMetrics) -> FastAPI:
    """The HTTP interface of one server."""
    app = FastAPI(
        title="sigma-stream",
        description="Generative text-to-image retrieval over a stream of images",
        version="1",
    )

    @app.post("/v1/query", response_model=QueryResponse, summary="Find images by text")
    async def query(request: QueryRequest) -> dict[str, Any]:
        started = time.monotonic()
        asked = PendingQuery(
            checked_query(request.query, request.k), request.k, request.mode, request.generation
        )
        server.ask(asked)
        try:
            result = await asyncio.wait_for(asyncio.wrap_future(asked.answer), _PATIENCE_S)
        except TimeoutError:
            raise RetryLaterError(
                f"no answer within {_PATIENCE_S:g} seconds; the worker is overloaded, try again"
            ) from None
        took_ms = (time.monotonic() - started) * 1000
        server.served(asked, result, took_ms)
        return result.to_dict(took_ms)

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
        return JSONResponse(
            {"error": str(error)}, status_code=503 if isinstance(error, RetryLaterError) else 400
        )

    return app


def run(
    services: Services,
    stop: threading.Event,
    load: LoadSearcher = load_searcher,
    listener: socket.socket | None = None,
) -> None:
    """Serve until stopped, on a socket that listens already, or on the configured address: loopback unless told otherwise.

    The port is taken before anything is loaded.
    """
    settings = services.settings
    # The decode thread gives the interpreter's lock away with every tensor operation; a loading thread must not keep it for 5 ms.
    sys.setswitchinterval(_SWITCH_S)
    listener = listener or bind(settings.http_host, settings.http_port)
    metrics = QueryMetrics()
    server = Server(services, f"{socket.gethostname()}-{os.getpid()}", stop, metrics, load)
    http = uvicorn.Server(
        uvicorn.Config(
            application(server, metrics), log_level="warning", access_log=False, lifespan="off"
        )
    )
    # Not in the main thread: there uvicorn would take over the signals, which set `stop` already.
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True)
    server.start()
    thread.start()
    while not stop.wait(0.2) and thread.is_alive():
        pass
    http.should_exit = True
    server.close()
    thread.join(10)
    if not stop.is_set():
        raise WorkFailedError("the HTTP server ended by itself; its log tells why, start it again")
