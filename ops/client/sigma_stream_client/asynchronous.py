"""The asynchronous client, for asyncio: the same calls, each awaited."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar

import httpx

from sigma_stream_client import operations
from sigma_stream_client.exchange import Pause, exchange, key_headers, request_of
from sigma_stream_client.operations import Call, Filter, Metadata, Operation, Picture, Reply
from sigma_stream_client.records import Answer, DeadLetter, Result, StoredImage, WrittenImage
from sigma_stream_client.retries import RetryPolicy

T = TypeVar("T")

# Longest wait for one answer: more than the service waits itself.
TIMEOUT_S = 30.0

# Images of one page of a list.
_PAGE = 100

# Longest wait until something that was put can be found.
WAIT_S = 60.0


class AsyncClient:
    """Asks one installation. Tasks may share one.

    A call is tried again while the service restarts, is full or away, for as long as `retry`
    says; what can never be answered is an error at once (`sigma_stream_client.errors`).
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        retry: RetryPolicy | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`url`: such as http://127.0.0.1:8631; `key`: where the service needs one."""
        headers = key_headers(key)
        self._retry = retry or RetryPolicy()
        # Without redirections and proxies of the environment: both would see the key.
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=timeout_s, trust_env=False
        )

    async def search(
        self,
        text: str,
        k: int = 10,
        *,
        filter: Filter | None = None,
        min_relevance: float | None = None,
        generation: int | None = None,
        mode: Literal["fused", "paper"] = "fused",
        explain: bool = False,
    ) -> Answer:
        """The best images for a text; beyond the first 100 by `pages` or `results`.

        `min_relevance`, from 0 to 1, leaves out images that fit it less.
        """
        operation = operations.query(
            {"query": text}, k, filter, generation, explain, mode, min_relevance
        )
        return await self._run(operation)

    async def similar(
        self,
        image_id: str,
        k: int = 10,
        *,
        filter: Filter | None = None,
        generation: int | None = None,
        explain: bool = False,
    ) -> Answer:
        """The best images for a stored one, which is not among them."""
        operation = operations.query({"image_id": image_id}, k, filter, generation, explain)
        return await self._run(operation)

    async def search_picture(
        self,
        picture: Picture,
        k: int = 10,
        *,
        filter: Filter | None = None,
        generation: int | None = None,
        explain: bool = False,
    ) -> Answer:
        """The best images for a picture: its bytes, or the path of its file."""
        operation = operations.query_by_picture(picture, k, filter, generation, explain)
        return await self._run(operation)

    async def pages(self, answer: Answer) -> AsyncIterator[Answer]:
        """An answer and all further pages of it: of one generation, nothing twice."""
        yield answer
        while answer.cursor is not None:
            answer = await self._run(operations.next_page(answer.cursor))
            yield answer

    async def results(
        self,
        text: str,
        k: int = 1000,
        *,
        filter: Filter | None = None,
        min_relevance: float | None = None,
    ) -> AsyncIterator[Result]:
        """Up to `k` images for a text, at most 2,000, a page at a time."""
        first = await self.search(text, k, filter=filter, min_relevance=min_relevance)
        async for page in self.pages(first):
            for result in page.results:
                yield result

    async def put(
        self,
        image_id: str,
        picture: Picture,
        *,
        captions: Sequence[str] = (),
        metadata: Metadata | None = None,
        version: int | None = None,
        wait_s: float = WAIT_S,
    ) -> WrittenImage:
        """Publish an image with its bytes, and wait until it can be found; 0 does not wait.

        `RefusedError` when it cannot become an image.
        """
        return await self._run(
            operations.put_picture(image_id, picture, captions, metadata, version, wait_s)
        )

    async def put_address(
        self,
        image_id: str,
        uri: str,
        *,
        captions: Sequence[str] = (),
        metadata: Metadata | None = None,
        version: int | None = None,
        wait_s: float = WAIT_S,
    ) -> WrittenImage:
        """Publish an image that the service fetches from an address; else as `put`."""
        return await self._run(
            operations.put_address(image_id, uri, captions, metadata, version, wait_s)
        )

    async def wait_searchable(self, written: WrittenImage, wait_s: float = WAIT_S) -> WrittenImage:
        """Wait until answers contain what was put without waiting."""
        return await self._run(operations.wait_searchable(written, wait_s))

    async def get(self, image_id: str) -> StoredImage:
        """What is stored of an image; `NotFoundError` for one that is unknown or deleted."""
        return await self._run(operations.get(image_id))

    async def delete(self, image_id: str) -> bool:
        """Delete an image; whether there was one. Answers that come later do not contain it."""
        return await self._run(operations.delete(image_id))

    async def images(self, *, newest: bool = False) -> AsyncIterator[StoredImage]:
        """All images in the order of their ids, or the newest first, a page at a time."""
        cursor = None
        while True:
            page = await self._run(operations.images(cursor, _PAGE, newest))
            for image in page.images:
                yield image
            cursor = page.cursor
            if cursor is None:
                return

    async def dead_letters(self, limit: int = 100) -> tuple[DeadLetter, ...]:
        """Events that could not be used, newest first; for a key of scope admin."""
        return await self._run(operations.dead_letters(limit))

    async def replay_dead_letters(self) -> int:
        """Publish again what is still refused; how many events that were."""
        return await self._run(operations.replay())

    async def problem(self) -> str | None:
        """Why queries cannot be answered now; None when they can."""
        return await self._run(operations.problem())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, operation: Operation[T]) -> T:
        try:
            call = next(operation)
            while True:
                call = operation.send(await self._reply(call))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _reply(self, call: Call) -> Reply:
        tries = exchange(call, self._retry)
        try:
            step = next(tries)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = tries.send(None)
                else:
                    step = tries.send(await self._outcome(step))
        except StopIteration as end:
            reply: Reply = end.value
            return reply

    async def _outcome(self, call: Call) -> httpx.Response | httpx.TransportError:
        try:
            return await self._http.send(request_of(call, self._http))
        except httpx.TransportError as error:
            # Refused, reset or cut off in the middle: killed, restarting, or not there yet.
            return error
