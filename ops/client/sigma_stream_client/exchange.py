"""The exchange: one call with all its tries, without a connection.

A generator yields requests and pauses, is sent what came of each, and returns the reply.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass

import httpx

from sigma_stream_client.errors import RefusedError, UnavailableError, error_of
from sigma_stream_client.operations import Call, Reply
from sigma_stream_client.retries import RETRIED, RetryPolicy, seconds

_REFUSED_FROM = 400


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so long before the next try."""

    seconds: float


Outcome = httpx.Response | httpx.TransportError | None
"""Of a request: an answer, or why there is none. Of a pause: nothing."""

# Failures that no further try mends: an address without a scheme, a header with a line break.
_NEVER_SENT = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)

Exchange = Generator[Call | Pause, Outcome, Reply]


def exchange(call: Call, retry: RetryPolicy) -> Exchange:
    """Try a call until it is answered, refused, or patience ends with `UnavailableError`."""
    deadline = time.monotonic() + retry.total_s
    tries = 0
    while True:
        tries += 1
        outcome = yield call
        assert outcome is not None
        if isinstance(outcome, _NEVER_SENT):
            raise RefusedError(f"the request cannot be sent: {outcome} Correct the address or key")
        if isinstance(outcome, httpx.Response):
            if outcome.status_code in call.replies:
                return _read(outcome)
            if outcome.status_code not in RETRIED:
                return _reply(outcome)
        retry_after_s = None
        if isinstance(outcome, httpx.Response):
            retry_after_s = seconds(outcome.headers.get("retry-after"))
        pause_s = retry.pause(tries, retry_after_s)
        if time.monotonic() + pause_s > deadline:
            raise _given_up(outcome, tries)
        yield Pause(pause_s)


def request_of(call: Call, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
    """A call as a request of a client of httpx; `RefusedError` for what JSON cannot hold."""
    try:
        return _built(call, http)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"the request cannot be written: {error}; correct it") from error


def key_headers(key: str | None) -> dict[str, str]:
    """The headers that show a key; `RefusedError` for one that no header can hold."""
    if key is None:
        return {}
    if not key.isascii() or not key.isprintable():
        raise RefusedError("the key must be as sigma keys new printed it, got other characters")
    return {"authorization": f"Bearer {key}"}


def _built(call: Call, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
    parameters = httpx.QueryParams(list(call.parameters)) if call.parameters else None
    if call.content_type is None:
        return http.build_request(call.method, call.path, params=parameters, json=call.body)
    headers = {"content-type": call.content_type}
    return http.build_request(
        call.method, call.path, params=parameters, content=call.body, headers=headers
    )


def _reply(response: httpx.Response) -> Reply:
    if response.status_code >= _REFUSED_FROM:
        raise error_of(response.status_code, _sentence(response))
    return _read(response)


def _read(response: httpx.Response) -> Reply:
    try:
        return Reply(response.status_code, response.json())
    except ValueError as error:
        raise UnavailableError(
            "the answer is not of this service, it must be JSON", response.status_code
        ) from error


def _sentence(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the service answers with status {response.status_code} and no reason"


def _given_up(outcome: Outcome, tries: int) -> UnavailableError:
    if isinstance(outcome, httpx.Response):
        return UnavailableError(f"{_sentence(outcome)} ({tries} tries)", outcome.status_code)
    return UnavailableError(f"the service does not answer: {outcome!r} ({tries} tries)")
