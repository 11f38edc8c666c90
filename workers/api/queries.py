"""Queries: images for a text or a picture, further pages of an answer, and several at once."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import RejectInputError, SigmaError, UsageError
from schemas.filters import Filter, FilterError, parse_filter
from schemas.records import ByteArray, JsonObject
from stream.images.decode_protocol import LONGEST_SIDE
from workers.api.addresses import BATCH_PATH, QUERY_PATH
from workers.api.answers import KEYED, NOT_FOUND, links_to, only, refusals
from workers.api.context import ApiContext
from workers.api.json_body import BodyForm, RequestRefusedError
from workers.api.parts import FILTER, json_of, json_parameter
from workers.api.query_answers import BatchResponse, QueryResponse
from workers.api.query_cursors import QueryCursor, expired, seal, unseal
from workers.api.query_pages import next_page
from workers.api.uploads import PICTURE_TYPES, Uploads, decoded, is_picture, require_body_type
from workers.query.engine import QueryPicture
from workers.query.pending import PendingQuery
from workers.query.query_request import (
    MAX_BODY_BYTES,
    MAX_GENERATION,
    QUERY_FORM,
    QueryRequest,
)
from workers.query.query_text import MAX_RESULTS, PAGE_RESULTS, checked_query
from workers.query.refusals import (
    AnswerTimeoutError,
    ClientLeftError,
    error_status,
    read_body,
    too_often,
)
from workers.query.searcher import NO_COSINES, AnsweredQuery, Mode
from workers.query.server import QueryServer
from workers.repository.connection import Connection
from workers.repository.stored_images import images_by_id
from workers.runtime.pictures import read_picture

# Longest wait for an answer. The line is short, so only a worker that is stuck takes so long.
ANSWER_S = 10.0

# Queries of a batch: as many as are decoded together.
MOST_QUERIES = 16

# Bytes of a batch.
_BATCH_BYTES = MOST_QUERIES * MAX_BODY_BYTES

# Images of an answer that names no number.
DEFAULT_RESULTS = 10

_GOOD = 200

_FILTER: Final = json_parameter("filter", FILTER, "of an uploaded picture; else in the body")
_FILTER_EXAMPLE: Final = '{"field": "year", "gte": 2020}'

# What can be asked of the best image of an answer.
_LINKS: Final = links_to(
    "getImage", "getPicture", "deleteImage", image_id="$response.body#/results/0/image_id"
)


class BatchRequest(BaseModel):
    """Several queries."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queries: Annotated[list[QueryRequest], Field(min_length=1, max_length=MOST_QUERIES)]


_BATCH_FORM: Final = BodyForm(
    BatchRequest,
    {"queries": f"a list of 1 to {MOST_QUERIES} queries"},
    '{"queries": [{"query": "two small red circles on navy"}]}',
)


@dataclass(frozen=True, slots=True)
class QuerySubject:
    """What is asked for: a text, or a picture."""

    text: str
    picture: QueryPicture | None = None


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """How it is asked for."""

    k: int
    generation: int | None
    mode: Mode
    explain: bool
    wanted: Filter | None = None
    least: float | None = None


class QueryDesk:
    """Answers queries that were read."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def answer(self, wanted: QueryRequest, request: Request) -> JsonObject:
        """Answer one query for whoever sent the request."""
        if wanted.cursor is not None:
            return await self._next_page(wanted, request)
        options = QueryOptions(
            wanted.k,
            wanted.generation,
            wanted.mode,
            wanted.explain,
            wanted.wanted,
            wanted.min_relevance,
        )
        if wanted.min_relevance is not None:
            require_comparable(wanted)
        if wanted.image_id is None:
            text = checked_query(wanted.query or "", wanted.k)
            return await self.answer_subject(QuerySubject(text), options, request)
        if wanted.mode == "paper":
            raise UsageError("the mode paper reads texts only; leave mode out for a picture")
        picture = await self._stored_picture(wanted.image_id)
        return await self.answer_subject(QuerySubject("", picture), options, request)

    async def answer_subject(
        self, subject: QuerySubject, options: QueryOptions, request: Request
    ) -> JsonObject:
        """Answer a text that passed `checked_query`, or a picture."""
        started_s = time.monotonic()
        pending = PendingQuery(
            subject.text,
            min(options.k, PAGE_RESULTS),
            options.mode,
            options.generation,
            subject.picture,
            depth=options.k,
            wanted=options.wanted,
            least=options.least,
        )
        server = self._context.server
        if subject.picture is not None:
            await self._context.calls.run(server.prepare_pictures)
        # From here on the decode thread may answer at any moment, in its own thread.
        server.submit(pending)
        answer = await _answer_of(pending, request, server)
        took_ms = (time.monotonic() - started_s) * 1000
        server.report_served(pending, answer, took_ms)
        return self._document(answer, took_ms, options.explain, request)

    def _document(
        self, answer: AnsweredQuery, took_ms: float, explained: bool, request: Request
    ) -> JsonObject:
        document = answer.to_dict(took_ms)
        document["query"] = answer.query or None
        cursor = None
        if answer.rest is not None and len(answer.rest.image_keys):
            cursor = QueryCursor(
                answer.generation,
                len(answer.hits) + 1,
                answer.candidates,
                explained,
                bool(answer.query),
                answer.rest,
            )
        document["cursor"] = cursor and seal(self._context.signer, cursor)
        leaves = []
        for leaf in answer.leaves:
            leaves.append({"codes": list(leaf.codes), "log_probability": leaf.log_probability})
        document["explanation"] = {"leaves": leaves} if explained else None
        for result, cosine in zip(document["results"], answer.cosines, strict=True):
            result["cosine"] = cosine if explained else None
            result["link"] = self._context.links.link(result["image_id"], request)
        return document

    async def _next_page(self, wanted: QueryRequest, request: Request) -> JsonObject:
        started_s = time.monotonic()
        beside = wanted.model_fields_set - {"cursor", "k"}
        if beside:
            raise UsageError(
                f"beside a cursor there must be nothing but k, got {', '.join(sorted(beside))};"
                " the cursor knows it"
            )
        cursor = unseal(self._context.signer, wanted.cursor or "")
        count = min(PAGE_RESULTS, wanted.k if "k" in wanted.model_fields_set else PAGE_RESULTS)
        store = self._context.services.store
        page = await self._context.calls.read(lambda conn: next_page(conn, cursor, count, store))
        if page is None:
            raise expired(f"generation {cursor.generation} has been dropped")
        took_ms = (time.monotonic() - started_s) * 1000
        document = self._document(page.answer, took_ms, cursor.explained, request)
        document["cursor"] = page.cursor and seal(self._context.signer, page.cursor)
        # The leaves were told with the first page.
        document["explanation"] = None
        return document

    async def _stored_picture(self, image_id: str) -> QueryPicture:
        store = self._context.services.store

        def found(conn: Connection) -> tuple[int, str]:
            image = images_by_id(conn, [image_id]).get(image_id)
            if image is None or image.state == "deleted":
                raise RequestRefusedError(
                    "there is no image of this id, or it was deleted; list them at /v1/images",
                    NOT_FOUND,
                )
            return image.image_key, image.normalized_uri

        def pixels(uri: str) -> ByteArray | None:
            try:
                return read_picture(store, uri)
            except RejectInputError:
                # Lost by the store. A generation that reads vectors needs none.
                return None

        key, uri = await self._context.calls.read(found)
        return QueryPicture(key, await self._context.calls.run(lambda: pixels(uri)))


def require_comparable(wanted: QueryRequest) -> None:
    """`UsageError` where a least relevance is asked of what has none."""
    if wanted.mode == "paper":
        raise UsageError(NO_COSINES)
    if wanted.image_id is not None:
        raise UsageError(
            "min_relevance is of texts alone, got image_id; leave min_relevance out for a picture"
        )


async def _answer_of(pending: PendingQuery, request: Request, server: QueryServer) -> AnsweredQuery:
    """Wait for the answer, but not longer than the client does."""
    answered = asyncio.wrap_future(pending.answer)
    leaving = asyncio.ensure_future(_until_left(request))
    try:
        waited_for: set[asyncio.Future[Any]] = {answered, leaving}
        await asyncio.wait(waited_for, timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        if answered.done():
            return answered.result()
        if leaving.done():
            raise ClientLeftError("the client left before it was answered")
        raise AnswerTimeoutError(
            f"no answer within {ANSWER_S:g} seconds; the worker is overloaded, try again"
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


def _bodies() -> JsonObject:
    """Describe the bodies of a query for OpenAPI."""
    content = QUERY_FORM.description()
    for media_type in PICTURE_TYPES:
        content[media_type] = {"schema": {"type": "string", "format": "binary"}}
    return {"required": True, "content": content}


def require_filters(queries: Sequence[QueryRequest]) -> None:
    """`FilterError` for a filter that is not of the grammar, whatever else is with its query."""
    for number, query in enumerate(queries):
        try:
            _ = query.wanted
        except FilterError as error:
            raise FilterError(f"queries/{number}: {error}") from None


def query_router(context: ApiContext) -> APIRouter:
    """The addresses of queries."""
    router = APIRouter(tags=["queries"])
    desk = QueryDesk(context)
    _add_query(router, context, desk)
    _add_batch(router, desk)
    return router


def _add_query(router: APIRouter, context: ApiContext, desk: QueryDesk) -> None:
    uploads = Uploads(context.services.settings.max_image_bytes)

    # The body is read by hand, strictly and within limits; the description says what it is.
    @router.post(
        QUERY_PATH,
        operation_id="query",
        response_model=QueryResponse,
        summary="Find images by a text, a stored image or an uploaded picture",
        dependencies=[KEYED, only("k", "generation", "explain", "filter")],
        responses={_GOOD: {"links": _LINKS}, **refusals(404, 410, body=True)},
        openapi_extra={"requestBody": _bodies(), "parameters": [_FILTER]},
    )
    async def query(
        request: Request,
        k: Annotated[
            int | None,
            Query(ge=1, le=MAX_RESULTS, description="of an uploaded picture; else in the body"),
        ] = None,
        generation: Annotated[
            int | None, Query(ge=1, le=MAX_GENERATION, description="likewise")
        ] = None,
        explain: Annotated[bool, Query(description="likewise")] = False,
    ) -> JsonObject:
        content_type = request.headers.get("content-type")
        if not is_picture(content_type):
            require_body_type(content_type)
            body = await read_body(request, MAX_BODY_BYTES)
            if request.query_params:
                raise UsageError("the parameters of a query in JSON must be in its body; move them")
            return await desk.answer(QUERY_FORM.parse(content_type, body), request)
        told = json_of(request, "filter", _FILTER_EXAMPLE)
        wanted = None if told is None else parse_filter(told)
        async with uploads.place():
            data = await uploads.read(request)
            pixels = await context.calls.run(lambda: decoded(context.decoder, data, LONGEST_SIDE))
        subject = QuerySubject("", QueryPicture(None, pixels))
        options = QueryOptions(k or DEFAULT_RESULTS, generation, "fused", explain, wanted)
        return await desk.answer_subject(subject, options, request)


def _add_batch(router: APIRouter, desk: QueryDesk) -> None:
    @router.post(
        BATCH_PATH,
        operation_id="queryBatch",
        response_model=BatchResponse,
        summary="Answer several queries at once, each with an answer or an error of its own",
        dependencies=[KEYED, only()],
        responses=refusals(body=True),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": _BATCH_FORM.description(),
            }
        },
    )
    async def batch(request: Request) -> JsonObject:
        body = await read_body(request, _BATCH_BYTES)
        wanted = _BATCH_FORM.parse(request.headers.get("content-type"), body).queries
        require_filters(wanted)
        # The first is counted with the request.
        wait_s = request.state.charge(len(wanted) - 1)
        if wait_s:
            raise too_often(wait_s)

        async def item(query: QueryRequest) -> JsonObject:
            try:
                answer = await desk.answer(query, request)
            except SigmaError as error:
                return {"status": error_status(error), "answer": None, "error": str(error)}
            return {"status": _GOOD, "answer": answer, "error": None}

        return {"answers": await asyncio.gather(*[item(query) for query in wanted])}
