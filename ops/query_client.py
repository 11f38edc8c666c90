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


def ask(settings: Settings, query: CommandLineQuery) -> JsonObject:
    """Return the document of `sigma query`."""
    # Checked here too: a text that is no Unicode cannot be sent.
    query = replace(query, text=checked_query(query.text, query.k))
    supervisor = running(settings)
    if supervisor is not None:
        answer = _ask_worker(supervisor.url, query, settings.access.key_headers())
        if answer is not None:
            return answer
    return _ask_here(settings, query)


def _ask_worker(url: str, query: CommandLineQuery, headers: Mapping[str, str]) -> JsonObject | None:
    """Return the worker's answer, None when it has not loaded the generation that was named."""
    request = {
        "query": query.text,
        "k": query.k,
        "generation": query.generation,
        "mode": query.mode,
        "filter": query.filter,
    }
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
    if response.status_code == 200:
        return document
    if query.generation is not None and response.status_code == 400:
        return None
    reason = str(document.get("error", document))
    if response.status_code in (401, 403):
        raise UsageError(f"{reason}; sigma query sends the key of SIGMA_API_KEY")
    if response.status_code == 429 or response.status_code >= 500:
        raise RetryLaterError(reason)
    raise UsageError(reason)


def _ask_here(settings: Settings, query: CommandLineQuery) -> JsonObject:
    """Load the generation into this process and search it."""
    wanted = None if query.filter is None else parse_filter(query.filter)
    from workers.query.searcher import live_generation, open_searcher

    with open_services(settings) as services, services.connect("query") as conn:
        migrate(conn)
        searcher = open_searcher(services, live_generation(conn, query.generation))
        started = time.monotonic()
        result = searcher.search([query.text], query.k, query.mode, only=wanted)[0]
        took_ms = (time.monotonic() - started) * 1000
        searcher.close()
    return result.to_dict(took_ms)
