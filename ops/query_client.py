"""The query client of the command line: asks the running query worker, or a model loaded for it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import httpx

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
        answer = ask_worker(supervisor.url, query, settings.access.key_headers())
        if answer is not None:
            return answer
    return _ask_here(settings, query)


def ask_worker(url: str, query: CommandLineQuery, headers: Mapping[str, str]) -> JsonObject | None:
    """Return the worker's answer with all its pages.

    None when it has not loaded the generation that was named.
    """
    request: JsonObject = {
        "query": query.text,
        "k": query.k,
        "generation": query.generation,
        "mode": query.mode,
        "filter": query.filter,
    }
    if query.min_relevance is not None:
        # Else left out: workers of earlier versions refuse what they do not know.
        request["min_relevance"] = query.min_relevance
    status, document = _posted(url, request, headers)
    if query.generation is not None and status == 400:
        return None
    answer = _good(status, document)
    cursor = answer.pop("cursor", None)
    while cursor:
        page = _good(*_posted(url, {"cursor": cursor}, headers))
        answer["results"] += page["results"]
        cursor = page["cursor"]
    return answer


def _posted(url: str, request: JsonObject, headers: Mapping[str, str]) -> tuple[int, JsonObject]:
    """The status and the document that the worker answers a request with."""
    try:
        # Not by the proxy of the environment, which would see the key: it is on this machine.
        response = httpx.post(
            f"{url}/v1/query", json=request, headers=headers, timeout=TIMEOUT_S, trust_env=False
        )
        document: JsonObject = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise RetryLaterError(
            f"the query worker at {url} does not answer ({error}); see its log, or restart with"
            " sigma down and sigma up"
        ) from error
    return response.status_code, document


def _good(status: int, document: JsonObject) -> JsonObject:
    """The document of a good answer; others are errors."""
    if status == 200:
        return document
    reason = str(document.get("error", document))
    if status in (401, 403):
        raise UsageError(f"{reason}; sigma query sends the key of SIGMA_API_KEY")
    if status == 429 or status >= 500:
        raise RetryLaterError(reason)
    raise UsageError(reason)


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
