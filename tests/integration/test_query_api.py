"""The query API under bad requests, too many of them, and clients that do not go on.

Every refusal is short and of one shape; a good client beside the bad ones is answered.
"""

import json
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ops.bench.load import measure_phase
from ops.bench.load_tally import LoadPhase
from ops.bench.stub import stub_generation
from ops.bench.stub_query import stub_searcher_loader
from schemas.errors import RetryLaterError
from stream.log.postgres import PostgresLog
from tests.serving import http_serving, until
from tests.stubs import accepted, leave_in, services_at
from workers.api import queries
from workers.query import refusals
from workers.query.engine import QueryEngine, RankedImages
from workers.query.query_request import MAX_BODY_BYTES
from workers.query.searcher import Searcher
from workers.query.server import QueryServer
from workers.query.updates import LoadSearcher
from workers.repository.connection import connect
from workers.repository.generations import Generation
from workers.runtime import connection_guard
from workers.runtime.services import Services

SHORT = 300
"""Letters of a refusal; a sentence and a quotation."""


@pytest.fixture(scope="module")
def services(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Services:
    """A database with a live generation, for all tests of this module: none changes it."""
    url = postgres.get_uri()
    with connect(url) as conn:
        conn.execute("CREATE DATABASE query_api TEMPLATE template")
    database = postgres.get_uri(database="query_api")
    log = PostgresLog(database)
    log.ensure_topics()
    log.close()
    made = services_at(database, tmp_path_factory.mktemp("query-api"))
    with connect(database) as conn:
        names = [f"image {number}" for number in range(20)]
        leave_in(conn, stub_generation(conn), accepted(made.store, names))
    return made


@pytest.fixture(scope="module")
def url(services: Services) -> Iterator[str]:
    with http_serving(services) as address:
        yield address


def post(url: str, body: bytes, content_type: str | None = "application/json") -> httpx.Response:
    headers = {} if content_type is None else {"content-type": content_type}
    return httpx.post(f"{url}/v1/query", content=body, headers=headers, timeout=30)


def refused(response: httpx.Response) -> str:
    """The sentence of a refusal, which has the one shape and is short."""
    assert 400 <= response.status_code < 500, response.text
    document = response.json()
    assert list(document) == ["error"]
    sentence = document["error"]
    assert 0 < len(sentence) <= SHORT
    assert sentence.isprintable()
    return str(sentence)


def metric(url: str, line: str) -> float:
    """A metric's value, 0 where it is not there."""
    match = re.search(rf"^{re.escape(line)} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(match[1]) if match else 0.0


def numbers() -> dict[str, str]:
    """JSON texts that are no whole number from 1 to 2,000."""
    return {
        "NaN": "NaN",
        "infinity": "Infinity",
        "minus infinity": "-Infinity",
        "float": "1.5",
        "huge float": "1e400",
        "zero": "0",
        "minus zero": "-0",
        "negative": "-3",
        "too many": "2001",
        "huge": "9" * 60,
        "thousands of digits": "9" * 10_000,
        "true": "true",
        "false": "false",
        "null": "null",
        "text": '"3"',
        "list": "[3]",
        "object": '{"k": 3}',
    }


def bad_bodies() -> dict[str, bytes]:
    """Bodies that are no query."""
    good = '"query": "red circle"'
    bodies = {f"k {name}": f'{{{good}, "k": {text}}}'.encode() for name, text in numbers().items()}
    for name in ("float", "negative", "huge", "true", "text", "NaN", "zero", "list"):
        bodies[f"generation {name}"] = f'{{{good}, "generation": {numbers()[name]}}}'.encode()
    for name in ("null", "negative", "true", "list", "object", "NaN"):
        bodies[f"query {name}"] = f'{{"query": {numbers()[name]}}}'.encode()
    for name, text in {
        "lone high surrogate": "red \\ud800",
        "lone low surrogate": "\\udfff red",
        "swapped surrogates": "\\ude00\\ud83d",
        "empty": "",
        "spaces": "   ",
        "zero width": "\\u200b\\u200d\\ufeff",
        "controls": "\\u0000\\u0007\\u001b",
        "no-break spaces": "\\u00a0\\u2003\\u3000",
        "bidi marks": "\\u202e\\u2066",
        "unassigned": "\\u0378\\ud83f\\udffe",
        "Hangul fillers": "\\u3164\\uffa0",
        "too long": "x" * 2001,
        "five megabytes": "x" * 5_000_000,
    }.items():
        bodies[f"text {name}"] = f'{{"query": "{text}"}}'.encode()
    nested = '{"a":' * 5000 + "1" + "}" * 5000
    bodies |= {
        "no body": b"",
        "no JSON": b"query=red",
        "cut off": b'{"query": "red',
        "trailing comma": b'{"query": "red",}',
        "two documents": b'{"query": "red"}{"query": "red"}',
        "single quotes": b"{'query': 'red'}",
        "a list": b'["red"]',
        "a string": b'"red"',
        "a number": b"7",
        "null": b"null",
        "no field": b"{}",
        "unknown field": f'{{{good}, "top_k": 1}}'.encode(),
        "field with a line end": f'{{{good}, "a\\nb\\u001b[2J": 1}}'.encode(),
        "field of a lone surrogate": f'{{{good}, "\\ud800": 1}}'.encode(),
        "long field": f'{{{good}, "{"f" * 20_000}": 1}}'.encode(),
        "query twice": b'{"query": "red", "query": "blue"}',
        "k twice": f'{{{good}, "k": 1, "k": 2}}'.encode(),
        "other letter case": b'{"Query": "red"}',
        "unknown mode": f'{{{good}, "mode": "exact"}}'.encode(),
        "mode null": f'{{{good}, "mode": null}}'.encode(),
        "nested lists": b"[" * 30_000,
        "nested objects": nested.encode(),
        "nested in a field": f'{{{good}, "k": {"[" * 20_000}}}'.encode(),
        "latin-1": '{"query": "café"}'.encode("latin-1"),
        "UTF-16": '{"query": "red"}'.encode("utf-16"),
        "UTF-8 with a mark": b"\xef\xbb\xbf" + b'{"query": "red"}',
        "overlong UTF-8": b'{"query": "\xc0\xaf"}',
        "surrogate in UTF-8": b'{"query": "\xed\xa0\x80"}',
        "zero bytes": bytes(100),
        "zero byte in JSON": b'{"query": "red\0"}',
        "gzip": b"\x1f\x8b\x08\x00rubbish",
    }
    return bodies


@pytest.mark.parametrize("name", bad_bodies())
def test_any_bad_request_gets_a_short_refusal_of_one_shape(url: str, name: str) -> None:
    body = bad_bodies()[name]
    sentence = refused(post(url, body))
    assert "xxxxxxxxxx" not in sentence


def test_there_are_at_least_thirty_kinds_of_bad_requests() -> None:
    assert len(bad_bodies()) > 60


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"query": "red", "k": 2500}', "k must be a whole number from 1 to 2,000, got 2500"),
        (b'{"query": "red", "k": "ten"}', 'k must be a whole number from 1 to 2,000, got "ten"'),
        (
            b'{"query": "red", "top_k": 1}',
            'cursor, k, generation, mode, filter, min_relevance, explain, got "top_k"',
        ),
        (b'{"k": 3}', "one of the fields query, image_id and cursor, got 0"),
        (b'{"query": "red", "k": NaN}', "no NaN"),
        (b'{"query": "red \\ud800"}', "query must be a text"),
    ],
)
def test_a_refusal_names_the_field_what_is_allowed_and_what_it_got(
    url: str, body: bytes, told: str
) -> None:
    response = post(url, body)
    assert response.status_code == 422
    assert told in refused(response)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/vnd.api+json", 200),
        (None, 200),
    ],
)
def test_only_json_is_taken(url: str, content_type: str | None, status: int) -> None:
    response = post(url, b'{"query": "red"}', content_type)
    assert response.status_code == status
    if status != 200:
        assert "application/json" in refused(response)


def test_a_whole_number_may_have_a_point(url: str) -> None:
    response = post(url, b'{"query": "red", "k": 3.0}')
    assert len(response.json()["results"]) == 3


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/query"), ("POST", "/v2"), ("PUT", "/")])
def test_other_addresses_and_methods_are_refused_in_the_same_shape(
    url: str, method: str, path: str
) -> None:
    refused(httpx.request(method, f"{url}{path}"))


def counted(url: str, status: int, cause: str) -> float:
    """How many answers of a kind were counted."""
    return metric(url, f'sigma_query_responses_total{{cause="{cause}",status="{status}"}}')


REFUSED_REQUESTS: dict[int, Callable[[str], httpx.Response]] = {
    400: lambda url: post(url, b'{"query": "red", "generation": 99}'),
    404: lambda url: httpx.get(f"{url}/v1/queries"),
    405: lambda url: httpx.get(f"{url}/v1/query"),
    413: lambda url: post(url, b"x" * 100_000),
    415: lambda url: post(url, b"red", "text/plain"),
    422: lambda url: post(url, b"{}"),
}


@pytest.mark.parametrize("status", REFUSED_REQUESTS)
def test_every_refusal_is_counted_by_status_and_cause(url: str, status: int) -> None:
    before = counted(url, status, "invalid")
    assert REFUSED_REQUESTS[status](url).status_code == status
    assert counted(url, status, "invalid") == before + 1


def test_a_body_that_does_not_come_is_counted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "BODY_S", 0.2)
    with socket.create_connection(address(url), timeout=20) as client:
        client.sendall(BEGINNINGS["half a body"])
        assert b" 408 " in received(client)
    assert counted(url, 408, "invalid") == 1


def test_mistakes_and_want_of_an_answer_are_counted_apart(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"query": "red"}'
    for error, status, cause in (
        (ValueError("a mistake in the program"), 500, "failed"),
        (RetryLaterError("the database is away"), 503, "unavailable"),
        (refusals.AnswerTimeoutError("no answer"), 503, "timeout"),
    ):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        before = counted(url, status, cause)
        with monkeypatch.context() as patched:
            patched.setattr(queries, "checked_query", fail)
            assert post(url, body).status_code == status
        assert counted(url, status, cause) == before + 1


def test_a_worker_that_is_asked_whether_it_is_ready_and_is_not_counts_no_failed_query(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed() -> list[float]:
        return [counted(url, 503, cause) for cause in ("connections", "timeout", "unavailable")]

    before = failed()
    with monkeypatch.context() as patched:
        patched.setattr(QueryServer, "problem", "it is stuck")
        assert httpx.get(f"{url}/readyz").status_code == 503
        assert metric(url, "sigma_query_ready") == 0
    assert metric(url, "sigma_query_ready") == 1
    assert failed() == before
    # Exported from the start, so that the first failure is an increase.
    assert len(re.findall(r'status="503"', httpx.get(f"{url}/metrics").text)) >= len(before)


def test_connections_that_are_refused_are_counted(services: Services) -> None:
    released = threading.Event()
    limited = services_at(services.database_url, services.home, http_connections=1)
    body = b'{"query": "red"}'
    with http_serving(limited, loader_that_waits(limited, lambda: released.wait(60))) as full:
        with ThreadPoolExecutor(1) as executor:
            asked = executor.submit(post, full, body)
            # Its connection is in use, so it cannot make room for another one.
            until(lambda: refused_connection(full), "there is no room", within_s=20)
            released.set()
            assert asked.result(30).status_code == 200
        with socket.create_connection(address(full), timeout=20) as client:
            client.sendall(b"rubbish\r\n\r\n")
            assert b" 400 " in received(client)
        assert counted(full, 503, "connections") > 0
        assert counted(full, 400, "not-http") == 1


def refused_connection(url: str) -> bool:
    """Whether the server has no room for one more connection."""
    with socket.create_connection(address(url), timeout=20) as client:
        client.settimeout(1)
        try:
            return b" 503 " in client.recv(65536)
        except OSError:
            return False


def test_the_description_of_the_api_names_the_fields(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    body = paths["/v1/query"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    subjects = {"query", "image_id", "cursor"}
    options = {"k", "generation", "mode", "filter", "min_relevance", "explain"}
    assert set(body["properties"]) == subjects | options


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def received(client: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    client.settimeout(20)
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def memory_bytes() -> int:
    """Resident memory of this process, which the server is a part of."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


HEAD = b"POST /v1/query HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def test_a_body_without_end_is_refused_and_not_kept_in_memory(url: str) -> None:
    megabyte = b"x" * (1 << 20)
    before = memory_bytes()
    sent = 0
    with socket.create_connection(address(url), timeout=20) as client:
        client.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        try:
            while sent < 200:
                client.sendall(b"%x\r\n%b\r\n" % (len(megabyte), megabyte))
                sent += 1
        except OSError:
            pass
        answer = received(client)
    assert sent < 200
    assert b" 413 " in answer or not answer
    assert memory_bytes() - before < 64 << 20


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 1_000_000, 5_000_000])
def test_a_body_that_is_too_long_is_refused_so_that_its_client_sees_it(url: str, size: int) -> None:
    response = post(url, b"x" * size)
    assert response.status_code == 413
    assert "65,536 bytes" in refused(response)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_guard, "HEAD_S", 1.0)
    monkeypatch.setattr(connection_guard, "BODY_S", 1.0)


BEGINNINGS = {
    "nothing": b"",
    "half a line": b"POST /v1/qu",
    "half a head": HEAD,
    "half a body": HEAD + b"content-length: 20\r\n\r\n{",
    "half a chunked body": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    "an unwanted body": b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n",
}


@pytest.mark.parametrize("name", BEGINNINGS)
@pytest.mark.usefixtures("impatient")
def test_a_request_that_is_begun_and_not_finished_is_closed_after_seconds(
    url: str, name: str
) -> None:
    with socket.create_connection(address(url), timeout=20) as client:
        client.sendall(BEGINNINGS[name])
        began_s = time.monotonic()
        received(client)
        assert time.monotonic() - began_s < 15


@pytest.mark.usefixtures("impatient")
def test_a_request_that_trickles_in_is_closed_after_seconds(url: str) -> None:
    began_s = time.monotonic()
    with socket.create_connection(address(url), timeout=20) as client, suppress(OSError):
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        while time.monotonic() - began_s < 20:
            client.sendall(b"x: y\r\n")
            time.sleep(0.1)
    assert time.monotonic() - began_s < 15


def test_a_head_that_is_too_long_is_refused(url: str) -> None:
    with socket.create_connection(address(url), timeout=20) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n" + b"x: " + b"y" * 40_000)
        answer = received(client)
    assert b" 400 " in answer
    assert b'{"error": ' in answer


@pytest.mark.parametrize(
    "rubbish", [b"\x16\x03\x01\x02", b"HELLO\r\n\r\n", b"\0" * 100 + b"\r\n\r\n"]
)
def test_what_is_no_http_gets_the_same_shape(url: str, rubbish: bytes) -> None:
    with socket.create_connection(address(url), timeout=20) as client:
        client.sendall(rubbish)
        answer = received(client)
    assert b'{"error": ' in answer or not answer


def test_half_open_connections_beyond_the_limit_leave_room_for_a_client(
    services: Services, database: str
) -> None:
    limited = services_at(services.database_url, services.home, http_connections=50)
    with http_serving(limited) as limited_url, ExitStack() as open_sockets:
        for _ in range(300):
            client = socket.create_connection(address(limited_url), timeout=20)
            open_sockets.callback(client.close)
            client.sendall(b"POST /v1/query HTTP/1.1\r\n")
        began_s = time.monotonic()
        assert post(limited_url, b'{"query": "red"}').status_code == 200
        assert time.monotonic() - began_s < 20
        assert len(os.listdir("/proc/self/fd")) < 300 + 150


def loader_that_waits(services: Services, wait: Callable[[], object]) -> LoadSearcher:
    """The stub model, which waits before each batch."""
    load_stub = stub_searcher_loader(services)

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        searcher = load_stub(generation, previous, live)
        answer = searcher.engine.answer

        def slow(*arguments: Any) -> list[RankedImages]:
            wait()
            return answer(*arguments)

        searcher.engine.__dict__["answer"] = slow
        return searcher

    return load


@pytest.mark.parametrize(
    "phase",
    [
        # At most 16 queries in 0.2 s: 80 a second.
        LoadPhase("ten times the capacity, whoever is answered", 3.0, clients=500, rate=800.0),
        LoadPhase("clients that come back when they were answered", 3.0, clients=160),
    ],
    ids=["open loop", "closed loop"],
)
def test_under_load_every_query_is_answered_or_refused_and_server_and_clients_count_the_same(
    services: Services, phase: LoadPhase
) -> None:
    with http_serving(services, loader_that_waits(services, lambda: time.sleep(0.2))) as slow_url:
        result = measure_phase(slow_url, os.getpid(), phase)
    tally = result.tally
    assert tally.failures == {}
    assert len(tally.answered_ms) + len(tally.refused_ms) == tally.begun
    assert len(tally.answered_ms) > 30
    assert len(tally.refused_ms) > 30
    assert result.counted == {"200": len(tally.answered_ms), "429": len(tally.refused_ms)}
    assert result.answers_afterwards


def refused_in_pieces(url: str, request: bytes) -> None:
    """Three queries one after the other on one connection, however their bytes are cut."""
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n10\r\n" + request[-16:] + b"\r\n0\r\n\r\n"
    with socket.create_connection(address(url), timeout=20) as client:
        for query in (request, chunked, request):
            for piece in (query[:-10], query[-10:-3], query[-3:]):
                client.sendall(piece)
                # Most likely the server reads it before the next one comes; if not, the answer
                # must be the same.
                time.sleep(0.02)
            answer = b""
            while not answer.endswith(b"}"):
                answer += client.recv(65536)
            assert answer.count(b"HTTP/1.1 429 ") == 1
            assert b"retry-after: 1" in answer


def test_a_refused_client_is_told_when_to_come_again_and_one_that_leaves_frees_its_place(
    services: Services,
) -> None:
    released = threading.Event()
    body = b'{"query": "red"}'
    request = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    limited = services_at(services.database_url, services.home, query_backlog=20)
    with http_serving(limited, loader_that_waits(limited, lambda: released.wait(60))) as blocked:

        def waiting() -> float:
            return metric(blocked, "sigma_query_waiting")

        with ExitStack() as clients:
            while waiting() < 20:
                client = clients.enter_context(
                    socket.create_connection(address(blocked), timeout=20)
                )
                client.sendall(request)
            busy = post(blocked, body)
            assert busy.status_code == 429
            assert counted(blocked, 429, "overloaded") == 1
            assert busy.headers["retry-after"] == "1"
            refused(busy)
            refused_in_pieces(blocked, request)
        until(lambda: waiting() == 0, "the places are free", within_s=20)
        # Another query takes a free place, and is answered as soon as the batch is.
        with ThreadPoolExecutor(1) as executor:
            answer = executor.submit(post, blocked, body)
            until(lambda: waiting() == 1, "it waits", within_s=20)
            released.set()
            assert answer.result(30).status_code == 200
        left = metric(blocked, 'sigma_query_responses_total{cause="client-left",status="499"}')
        assert left >= 20


def test_refusals_of_connections_and_bodies_are_json(url: str) -> None:
    assert json.loads(connection_guard.error_body('a "quoted" sentence')) == {
        "error": 'a "quoted" sentence'
    }
