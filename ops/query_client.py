"""The query client of the command line: asks the running query worker, or a model loaded for it."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from sigma_stream_client import (
    AccessError,
    Answer,
    Client,
    ClientError,
    RefusedError,
    RetryPolicy,
    UnavailableError,
)

from ops.embedded.control import running
from ops.embedded.database import open_services
from schemas.errors import RetryLaterError, UsageError
from schemas.filters import parse_filter
from schemas.records import JsonObject
from schemas.settings import Settings
from workers.query.query_text import checked_query
from workers.repository.connection import migrate

# Longest wait for an answer: more than the worker itself waits before it says that it is busy.
TIMEOUT_S = 60.0

# How long a query is tried again: a worker that was killed is replaced by another behind its port,
# and whoever types does not wait for one that has no generation.
PATIENCE = RetryPolicy(total_s=2.0)

# What a worker answers that has not loaded the generation which was asked for.
_NOT_LOADED = 400


@dataclass(frozen=True, slots=True)
class CommandLineQuery:
    """What `sigma query` asks; the live generation answers when none is named."""

    text: str
    k: int
    generation: int | None
    mode: Literal["fused", "paper"]
    filter: JsonObject | None = None
    min_relevance: float | None = None


def ask(settings: Settings, query: CommandLineQuery) -> JsonObject:
    """Return the document of `sigma query`."""
    # Checked here too: a text that is no Unicode cannot be sent.
    query = replace(query, text=checked_query(query.text, query.k))
    supervisor = running(settings)
    if supervisor is not None:
        answer = ask_worker(supervisor.url, query, settings.access.api_key)
        if answer is not None:
            return answer
    return _ask_here(settings, query)


def ask_worker(url: str, query: CommandLineQuery, key: str | None) -> JsonObject | None:
    """Return the worker's answer with all its pages.

    None when it has not loaded the generation that was named.
    """
    with Client(url, key, retry=PATIENCE, timeout_s=TIMEOUT_S) as client:
        try:
            first = client.search(
                query.text,
                query.k,
                filter=query.filter,
                generation=query.generation,
                mode=query.mode,
                min_relevance=query.min_relevance,
            )
            return _document(query.text, client.pages(first))
        except RefusedError as error:
            if query.generation is not None and error.status == _NOT_LOADED:
                return None
            raise UsageError(str(error)) from error
        except ClientError as error:
            raise _explained(error, url) from error


def _document(text: str, pages: Iterable[Answer]) -> JsonObject:
    first, *others = pages
    results = [asdict(result) for page in (first, *others) for result in page.results]
    return {
        "query": text,
        "generation": first.generation,
        "took_ms": first.took_ms,
        "candidates": first.candidates,
        "results": results,
    }


def _explained(error: ClientError, url: str) -> UsageError | RetryLaterError:
    """The error of the command line, with what to do."""
    if isinstance(error, AccessError):
        return UsageError(f"{error}; sigma query sends the key of SIGMA_API_KEY")
    if not isinstance(error, UnavailableError):
        return UsageError(str(error))
    if error.status is None:
        return RetryLaterError(
            f"the query worker at {url} does not answer ({error}); see its log, or restart with"
            " sigma down and sigma up"
        )
    return RetryLaterError(str(error))


def _ask_here(settings: Settings, query: CommandLineQuery) -> JsonObject:
    """Load the generation into this process and search it."""
    wanted = None if query.filter is None else parse_filter(query.filter)
    from workers.query.loading import live_generation, open_searcher

    with open_services(settings) as services, services.connect("query") as conn:
        migrate(conn)
        searcher = open_searcher(services, live_generation(conn, query.generation))
        started = time.monotonic()
        result = searcher.search(
            [query.text], query.k, query.mode, only=wanted, least=query.min_relevance
        )[0]
        took_ms = (time.monotonic() - started) * 1000
        searcher.close()
    return result.to_dict(took_ms)
