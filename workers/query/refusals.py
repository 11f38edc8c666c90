"""The refusals of the query API: every answer but a good one is `{"error": "one sentence"}`."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.errors import RejectInputError, RetryLaterError, SigmaError, UsageError
from stream.images.redaction import printable
from workers.api.addresses import BATCH_PATH, HEALTH_PATH, QUERY_PATH, READINESS_PATH, find_address
from workers.api.json_body import UNSUPPORTED_MEDIA_TYPE, RequestRefusedError
from workers.query.query_line import RETRY_AFTER_S, OverloadedError
from workers.query.server import QueryServer
from workers.runtime.connection_guard import BODY_S
from workers.runtime.query_metrics import QueryMetrics
from workers.runtime.refusal import Refusal

BAD_REQUEST = 400
TOO_LARGE = 413
REQUEST_TIMEOUT = 408
TOO_MANY_REQUESTS = 429
# The lowest HTTP status of a refusal.
_REFUSED_FROM = 400
# No client sees it: it has left. nginx's number for that.
CLIENT_LEFT = 499
UNAVAILABLE = 503

# Bytes beyond its limit that are read of a body and thrown away before it is refused. A client that
# is still sending when the connection closes would not see the answer.
_DISCARDED_BYTES = 16 << 20

OVERLOADED = Refusal(
    TOO_MANY_REQUESTS,
    "as many queries wait as can be answered in time; try again in a second",
    (("retry-after", str(RETRY_AFTER_S)),),
)


class AnswerTimeoutError(RetryLaterError):
    """No answer came in time."""


class ClientLeftError(SigmaError):
    """The client closed its connection before it was answered."""


# Addresses whose refusals are no refused queries: they say whether this worker can answer.
_PROBED = (READINESS_PATH, HEALTH_PATH)


class QueryGate:
    """The ASGI application in front: counts answers, and refuses at once what cannot be answered.

    In time of overload most queries do not come so far (`workers.query.early_refusal`). Of other
    addresses than that of queries only refusals are counted.
    """

    def __init__(self, app: ASGIApp, server: QueryServer, metrics: QueryMetrics) -> None:
        self._app = app
        self._server = server
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] in _PROBED:
            await self._app(scope, receive, send)
            return
        is_query = scope["path"] in (QUERY_PATH, BATCH_PATH)
        if is_query and self._server.is_full:
            count_overloaded(self._metrics)
            await OVERLOADED.send(send)
            return

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = int(message["status"])
                if is_query or status >= _REFUSED_FROM:
                    self._metrics.count_response(status, scope["state"].get("cause", "answered"))
            await send(message)

        scope.setdefault("state", {})
        await self._app(scope, receive, counted_send)


def count_overloaded(metrics: QueryMetrics) -> None:
    """Count a query that found the line full."""
    metrics.count_response(TOO_MANY_REQUESTS, "overloaded")


async def read_body(request: Request, limit: int, seconds: float | None = None) -> bytes:
    """Read a request's body; `RequestRefusedError` when it is too long or takes too long.

    Of a body that is too long no more than `limit` bytes are kept. It may take `BODY_S` by default.
    """
    allowed_s = BODY_S if seconds is None else seconds
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise RequestRefusedError(
            f'the body must be sent as it is, got the content encoding "{printable(coding[:40])}";'
            " do not compress it",
            UNSUPPORTED_MEDIA_TYPE,
        )
    try:
        return await asyncio.wait_for(_read(request, limit), allowed_s)
    except TimeoutError:
        raise RequestRefusedError(
            f"the body must be complete within {allowed_s:g} seconds; send it faster",
            REQUEST_TIMEOUT,
        ) from None


async def _read(request: Request, limit: int) -> bytes:
    body = bytearray()
    length = 0
    try:
        async for part in request.stream():
            length += len(part)
            if length <= limit:
                body += part
            elif length > limit + _DISCARDED_BYTES:
                break
    except ClientDisconnect:
        raise ClientLeftError("the client left before its request was complete") from None
    if length > limit:
        raise RequestRefusedError(
            f"the body must have at most {limit:,} bytes, got more; shorten it", TOO_LARGE
        )
    return bytes(body)


def add_refusals(app: FastAPI) -> None:
    """Let every error of an application become a refusal."""

    @app.exception_handler(SigmaError)
    async def refused(request: Request, error: SigmaError) -> Response:
        status, cause = _verdict(error)
        return _refusal(request, status, cause, str(error))

    @app.exception_handler(HTTPException)
    async def not_ours(request: Request, error: HTTPException) -> Response:
        sentence = f"{error.detail}; the API is described at /docs"
        headers = dict(error.headers or {})
        address = find_address(request.url.path)
        if "allow" in {name.lower() for name in headers} and address is not None:
            # The router names the methods of one of the routes of an address only.
            headers = {"allow": ", ".join(address.methods)}
        return _refusal(request, error.status_code, "invalid", sentence, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _refusal(request, 422, "invalid", _parameter_sentence(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, _: Exception) -> Response:
        # The server logs the error with its traceback.
        return _refusal(request, 500, "failed", "the query worker made a mistake; see its log")


def _parameter_sentence(error: RequestValidationError) -> str:
    """Say what the first problem with a parameter of the address is; values are not quoted."""
    problem = error.errors()[0]
    # The place where it was, the name, and of a parameter that is there twice its number.
    name = printable(str(problem["loc"][min(1, len(problem["loc"]) - 1)]))
    return f"the parameter {name} does not fit: {problem['msg']}; /docs says what it must be"


def _verdict(error: SigmaError) -> tuple[int, str]:
    """Return the HTTP status of an error, and the cause that is counted."""
    match error:
        case RequestRefusedError():
            return error.status, "invalid"
        case UsageError() | RejectInputError():
            return BAD_REQUEST, "invalid"
        case ClientLeftError():
            return CLIENT_LEFT, "client-left"
        case OverloadedError():
            return TOO_MANY_REQUESTS, "overloaded"
        case AnswerTimeoutError():
            return UNAVAILABLE, "timeout"
        case _:
            return UNAVAILABLE, "unavailable"


def error_status(error: SigmaError) -> int:
    """Return the HTTP status of an error."""
    return _verdict(error)[0]


def too_often(wait_s: int) -> OverloadedError:
    """The error of a batch with more queries than its key may send."""
    return OverloadedError(
        f"the key may not send so many queries at once; try again after {wait_s} s, or send fewer"
    )


def _refusal(
    request: Request, status: int, cause: str, sentence: str, extra: Any = None
) -> Response:
    request.state.cause = cause
    headers = dict(extra or {})
    if status in (TOO_MANY_REQUESTS, UNAVAILABLE):
        headers["retry-after"] = str(RETRY_AFTER_S)
    if status in (TOO_LARGE, REQUEST_TIMEOUT):
        # The rest of the body is not read.
        headers["connection"] = "close"
    return JSONResponse({"error": sentence}, status_code=status, headers=headers)
