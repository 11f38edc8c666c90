"""Asking: one query from the command line, to the running query worker or to a model loaded for it."""

import time
from typing import Any

import httpx

from ops.embedded.control import running
from ops.embedded.database import open_services
from schemas.errors import RetryLaterError, UsageError
from schemas.settings import Settings
from workers.repository.connection import migrate


def ask(
    settings: Settings, text: str, count: int, generation: int | None, mode: str
) -> dict[str, Any]:
    """The document of `sigma query`."""
    found = running(settings)
    if found is not None:
        answer = _ask_worker(
            found.url, {"query": text, "k": count, "generation": generation, "mode": mode}
        )
        if answer is not None:
            return answer
    return _ask_here(settings, text, count, generation, mode)


def _ask_worker(url: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """The worker's answer; None when it does not serve the generation asked for."""
    try:
        answer = httpx.post(f"{url}/v1/query", json=request, timeout=60)
        document: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise RetryLaterError(
            f"the query worker at {url} does not answer ({error}); see its log, or restart with sigma down and sigma up"
        ) from error
    if answer.status_code == 200:
        return document
    if request["generation"] is not None and answer.status_code == 400:
        return None
    if answer.status_code == 503:
        raise RetryLaterError(str(document.get("error", document)))
    raise UsageError(_readable(document))


def _readable(document: dict[str, Any]) -> str:
    """The reason of a refusal; FastAPI's own validation lists its problems under `detail`."""
    detail = document.get("detail")
    if isinstance(detail, list) and detail:
        return f"{'/'.join(str(part) for part in detail[0].get('loc', ())[1:])}: {detail[0].get('msg', 'is not allowed')}"
    return str(document.get("error", document))


def _ask_here(
    settings: Settings, text: str, count: int, generation: int | None, mode: str
) -> dict[str, Any]:
    from workers.query.searcher import checked_query, live_generation, open_searcher

    checked = checked_query(text, count)
    with open_services(settings) as found, found.connect("query") as conn:
        migrate(conn)
        searcher = open_searcher(found, live_generation(conn, generation))
        started = time.monotonic()
        result = searcher.search([checked], count, "paper" if mode == "paper" else "fused")[0]
        took_ms = (time.monotonic() - started) * 1000
        searcher.close()
    return result.to_dict(took_ms)
