"""Who may ask the query API: keys, scopes and rates, and names against web pages that rebind.

Every refusal has the one shape; what is tested here is asked over real sockets.
"""

import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ops.api_maintenance import api_maintenance
from ops.bench.stub import stub_generation
from ops.bench.stub_query import stub_searcher_loader
from schemas.access_settings import AccessSettings
from schemas.api_keys import ApiKey, ApiScope, digest_of
from schemas.errors import RefuseToStartError
from schemas.settings import Settings
from stream.log.postgres import PostgresLog
from tests.serving import http_serving, until
from tests.stubs import accepted, leave_in, services_at
from workers.api import addresses
from workers.api.addresses import (
    DESCRIPTION_PATH,
    DOCUMENTATION_PATH,
    NEEDED_SCOPES,
    PAGE_FILE_PATH,
    PAGE_PATH,
)
from workers.api.application import application
from workers.api.context import ApiContext
from workers.query import http
from workers.query.key_ring import KeyRing
from workers.repository.connection import connect
from workers.runtime.metrics_server import exposed
from workers.runtime.process import bind
from workers.runtime.query_metrics import QueryMetrics
from workers.runtime.services import Services

QUERY = b'{"query": "red"}'

# As `sigma keys new` makes them, so that they can be looked for in logs and answers.
SECRETS = {scope: f"sigma_{scope}-key-of-this-test-and-long" for scope in ApiScope}
SLOW = "sigma_slow-key-of-this-test-and-long"
FOLLOWED = "sigma_followed-key-of-this-test-and-long"


def key(name: str, scope: ApiScope, secret: str, rate: float | None = None) -> ApiKey:
    return ApiKey(name, scope, digest_of(secret.encode()), rate)


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secrets") / "keys"
    file.write_text(key("followed", ApiScope.READ, FOLLOWED).entry(), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def open_services(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Services:
    """A live generation, and no keys: on loopback none are needed."""
    with connect(postgres.get_uri()) as conn:
        conn.execute("CREATE DATABASE query_access TEMPLATE template")
    database = postgres.get_uri(database="query_access")
    log = PostgresLog(database)
    log.ensure_topics()
    log.close()
    made = services_at(database, tmp_path_factory.mktemp("query-access"))
    with connect(database) as conn:
        leave_in(conn, stub_generation(conn), accepted(made.store, ["image 1", "image 2"]))
    return made


@pytest.fixture(scope="module")
def services(open_services: Services, keys_file: Path) -> Services:
    """The same with a key of every scope."""
    keys = [key(f"{scope}-key", scope, SECRETS[scope]) for scope in ApiScope]
    keys.append(key("slow", ApiScope.READ, SLOW, rate=0.01))
    access = AccessSettings(tuple(keys), keys_file)
    return replace(open_services, settings=replace(open_services.settings, access=access))


@pytest.fixture(scope="module")
def url(services: Services) -> Iterator[str]:
    """Beyond loopback, with keys."""
    with http_serving(services, host="0.0.0.0") as address:
        yield address


@pytest.fixture(scope="module")
def open_url(open_services: Services) -> Iterator[str]:
    """On loopback, without keys."""
    with http_serving(open_services) as address:
        yield address


def refused(response: httpx.Response, status: int) -> str:
    """The sentence of a refusal of the one shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == ["error"]
    assert 0 < len(document["error"]) <= 300
    shown = response.text + str(response.headers)
    assert not any(secret in shown for secret in [*SECRETS.values(), SLOW, FOLLOWED])
    return str(document["error"])


def ask(url: str, secret: str | None, path: str = "/v1/query") -> httpx.Response:
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    method = "POST" if path == "/v1/query" else "GET"
    content = QUERY if method == "POST" else None
    return httpx.request(method, f"{url}{path}", headers=headers, content=content, timeout=30)


def metric(url: str, line: str) -> float:
    text = ask(url, SECRETS[ApiScope.METRICS], "/metrics").text
    match = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(match[1]) if match else 0.0


def test_i_ask_without_a_key(url: str) -> None:
    line = 'sigma_query_responses_total{cause="no-key",status="401"}'
    before = metric(url, line)
    response = ask(url, None)
    assert "Authorization: Bearer" in refused(response, 401)
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert metric(url, line) == before + 1


UNKNOWN = {
    "a guess": "Bearer sigma_guess",
    "a key that is cut off": f"Bearer {SECRETS[ApiScope.ADMIN][:-1]}",
    "the hash that is configured": f"Bearer {digest_of(SECRETS[ApiScope.ADMIN].encode())}",
    "the name of a key": "Bearer admin-key",
    "a key with a key behind it": f"Bearer {SECRETS[ApiScope.ADMIN]} {SECRETS[ApiScope.READ]}",
    "letters that are not ASCII": "Bearer schlüssel",
    "kilobytes": f"Bearer {'x' * 8000}",
    "another scheme": f"Basic {SECRETS[ApiScope.ADMIN]}",
    "no scheme": SECRETS[ApiScope.ADMIN],
    "no key": "Bearer",
    "nothing": "",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_i_ask_with_something_that_is_no_key(url: str, name: str) -> None:
    headers = {"authorization": UNKNOWN[name].encode("latin-1")}
    for path in ("/v1/query", "/metrics"):
        response = httpx.request("POST", f"{url}{path}", headers=headers, content=QUERY)
        refused(response, 401)
        assert response.headers["www-authenticate"].startswith("Bearer")


def test_two_keys_in_one_request_are_none(url: str) -> None:
    pairs = [("authorization", f"Bearer {SECRETS[ApiScope.ADMIN]}")] * 2
    refused(httpx.post(f"{url}/v1/query", headers=pairs, content=QUERY), 401)


def test_a_key_in_the_address_is_none(url: str) -> None:
    secret = SECRETS[ApiScope.ADMIN]
    refused(httpx.post(f"{url}/v1/query?key={secret}&access_token={secret}", content=QUERY), 401)


@pytest.mark.parametrize("scope", ApiScope)
@pytest.mark.parametrize("path", ["/v1/query", "/metrics"])
def test_a_key_opens_what_its_scope_says(url: str, scope: ApiScope, path: str) -> None:
    (needed,) = NEEDED_SCOPES[path].values()
    assert needed is not None
    response = ask(url, SECRETS[scope], path)
    if key("any", scope, "any").may(needed):
        assert response.status_code == 200
        return
    assert f"must have the scope {needed} for this, got {scope}" in refused(response, 403)
    assert 'error="insufficient_scope"' in response.headers["www-authenticate"]


def test_the_scheme_may_be_written_in_any_case(url: str) -> None:
    headers = {"authorization": f"bEARER  {SECRETS[ApiScope.READ]}"}
    assert httpx.post(f"{url}/v1/query", headers=headers, content=QUERY).status_code == 200


def test_my_key_asks_too_often_and_the_others_do_not_wait_for_it(url: str) -> None:
    assert ask(url, SLOW).status_code == 200
    response = ask(url, SLOW)
    assert "0.01 requests a second" in refused(response, 429)
    assert 1 <= int(response.headers["retry-after"]) <= 100
    assert ask(url, SECRETS[ApiScope.READ]).status_code == 200
    assert metric(url, 'sigma_key_requests_total{key="slow",outcome="rate-limited"}') >= 1
    assert metric(url, 'sigma_query_responses_total{cause="rate-limited",status="429"}') >= 1


def test_requests_are_counted_by_the_name_of_their_key(url: str) -> None:
    line = 'sigma_key_requests_total{key="write-key",outcome="admitted"}'
    before = metric(url, line)
    ask(url, SECRETS[ApiScope.WRITE])
    assert metric(url, line) == before + 1


def test_requests_without_a_key_do_not_use_up_anybody_s_rate_nor_leave_anything_behind(
    url: str,
) -> None:
    series = len(ask(url, SECRETS[ApiScope.METRICS], "/metrics").text.splitlines())
    with ThreadPoolExecutor(4) as clients:
        guesses = [f"sigma_guess{number}" for number in range(200)]
        answers = list(clients.map(lambda guess: ask(url, guess), guesses))
    assert {answer.status_code for answer in answers} == {401}
    text = ask(url, SECRETS[ApiScope.METRICS], "/metrics").text
    assert len(text.splitlines()) <= series + 3
    assert "guess" not in text
    assert ask(url, SECRETS[ApiScope.READ]).status_code == 200


def test_a_load_balancer_needs_no_key_and_learns_nothing_of_the_images(url: str) -> None:
    assert ask(url, None, "/healthz").json() == {"alive": True}
    assert ask(url, None, "/readyz").json() == {"ready": True, "problem": ""}
    assert ask(url, "sigma_guess", "/healthz").status_code == 200


def test_why_a_generation_cannot_be_loaded_is_told_to_keys_only(services: Services) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("/secret/path is damaged")

    with http_serving(services, fail, host="0.0.0.0", ready="/healthz") as failing:
        until(
            lambda: "/secret" in ask(failing, SECRETS[ApiScope.READ], "/readyz").text,
            "the reason is told",
        )
        told = ask(failing, None, "/readyz")
    assert told.status_code == 503
    assert "/secret" not in told.text
    assert told.json()["problem"]


def test_a_key_that_is_taken_out_of_the_file_is_refused_without_a_restart(
    url: str, keys_file: Path
) -> None:
    assert ask(url, FOLLOWED).status_code == 200
    keys_file.write_text("# nobody\n", encoding="utf-8")
    until(lambda: ask(url, FOLLOWED).status_code == 401, "it is refused")
    assert metric(url, 'sigma_key_requests_total{key="followed",outcome="admitted"}') == 0
    assert ask(url, SECRETS[ApiScope.READ]).status_code == 200


def test_keys_appear_in_no_log(
    url: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for secret in [*SECRETS.values(), SLOW, "sigma_guess-of-this-test"]:
        ask(url, secret)
        httpx.post(f"{url}/v1/query", headers={"authorization": f"Bearer {secret}"}, content=b"{")
    shown = "".join(capfd.readouterr()) + caplog.text
    assert "-of-this-test" not in shown


def test_every_address_has_a_decision_about_its_scope() -> None:
    class Unasked:
        """A server that no request reaches."""

    server: Any = Unasked()
    settings = Settings()
    services = Services(settings, "")
    ring = KeyRing.open(settings.access)
    context = http.api_context(services, server, QueryMetrics(), api_maintenance(), ring)
    described = application(context).openapi()["paths"]
    methods = {path: {name.upper() for name in forms} for path, forms in described.items()}
    for path in (DOCUMENTATION_PATH, DESCRIPTION_PATH, PAGE_PATH, PAGE_FILE_PATH):
        methods[path] = {"GET"}
    assert methods == {path: set(scopes) for path, scopes in NEEDED_SCOPES.items()}


def test_an_address_without_a_decision_is_not_served(
    open_services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = http.application

    def with_new_address(context: ApiContext) -> Any:
        app = built(context)
        app.add_api_route("/v1/forgotten", lambda: "everything")
        return app

    monkeypatch.setattr(http, "application", with_new_address)
    with http_serving(open_services) as address:
        refused(httpx.get(f"{address}/v1/forgotten"), 404)
        decided = dict(NEEDED_SCOPES) | {"/v1/forgotten": {"GET": None}}
        monkeypatch.setattr(addresses, "NEEDED_SCOPES", decided)
        assert httpx.get(f"{address}/v1/forgotten").json() == "everything"


@dataclass(frozen=True)
class RawRequest:
    """A request as bytes, and the statuses that it may get."""

    head: bytes
    statuses: frozenset[int]


def raw(head: str, *statuses: int) -> RawRequest:
    return RawRequest(head.replace("\n", "\r\n").encode() + b"\r\n\r\n", frozenset(statuses))


RAW = {
    "a local name": raw("GET /metrics HTTP/1.1\nhost: localhost", 200),
    "IPv6": raw("GET /metrics HTTP/1.1\nhost: [::1]:8631", 200),
    "a web page": raw("GET /metrics HTTP/1.1\nhost: evil.example", 421),
    "a web page asks whether it is alive": raw("GET /healthz HTTP/1.1\nhost: evil.example", 421),
    "a web page reads the description": raw("GET /openapi.json HTTP/1.1\nhost: evil.example", 421),
    "an unknown address by another name": raw("GET /x HTTP/1.1\nhost: evil.example", 421),
    "HTTP/1.0 without a host": raw("GET /metrics HTTP/1.0", 421),
    "HTTP/1.0 with another host": raw("GET /metrics HTTP/1.0\nhost: evil.example", 421),
    "HTTP/1.0 with a local host": raw("GET /metrics HTTP/1.0\nhost: localhost", 200),
    "a load balancer without a host": raw("GET /healthz HTTP/1.0", 200),
    "HTTP/1.1 without a host": raw("GET /healthz HTTP/1.1", 400),
    "an empty host": raw("GET /metrics HTTP/1.1\nhost:", 421),
    "two hosts": raw("GET /metrics HTTP/1.1\nhost: localhost\nhost: evil.example", 400, 421),
    "two hosts by HTTP/1.0": raw("GET /metrics HTTP/1.0\nhost: localhost\nhost: evil", 400, 421),
    "a forwarded host": raw("GET /metrics HTTP/1.1\nhost: evil\nx-forwarded-host: localhost", 421),
    "an absolute address": raw("GET http://evil.example/metrics HTTP/1.1\nhost: localhost", 400),
    "an absolute local address": raw("GET http://localhost/metrics HTTP/1.1\nhost: localhost", 400),
    "an absolute address alone": raw("GET http://localhost/metrics HTTP/1.0", 421),
    "no address": raw("OPTIONS * HTTP/1.1\nhost: localhost", 400),
    "a tunnel": raw("CONNECT localhost:1 HTTP/1.1\nhost: localhost", 400),
    "an address of two slashes": raw("GET //metrics HTTP/1.1\nhost: localhost", 404),
    "a slash at the end": raw("GET /metrics/ HTTP/1.1\nhost: localhost", 404),
    "another case": raw("GET /Metrics HTTP/1.1\nhost: localhost", 404),
    "dots": raw("GET /docs/../metrics HTTP/1.1\nhost: localhost", 404),
    "another method": raw("DELETE /metrics HTTP/1.1\nhost: localhost", 405),
}


@pytest.mark.parametrize("name", RAW)
def test_what_a_browser_or_an_attacker_sends_gets_the_one_shape(open_url: str, name: str) -> None:
    port = urlsplit(open_url).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=20) as client:
        client.sendall(RAW[name].head)
        answer = b""
        while b"\r\n\r\n" not in answer:
            part = client.recv(65536)
            assert part
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status in RAW[name].statuses, answer
    assert status == 200 or list(json.loads(body)) == ["error"]


def test_without_keys_on_loopback_nothing_changes(open_url: str) -> None:
    assert ask(open_url, None).status_code == 200
    assert ask(open_url, "anything").status_code == 200
    assert ask(open_url, None, "/metrics").status_code == 200


def test_i_open_the_query_worker_to_everybody_without_keys(open_services: Services) -> None:
    load = stub_searcher_loader(open_services)
    stop = threading.Event()
    # A worker that does not refuse ends at once.
    stop.set()
    with pytest.raises(RefuseToStartError, match="SIGMA_API_KEYS must be set"):
        http.run(open_services, stop, load, api_maintenance(), bind("0.0.0.0", 0))


def test_the_metrics_port_needs_no_key_and_checks_the_host() -> None:
    with bind("127.0.0.1", 0) as probe:
        port = int(probe.getsockname()[1])
    metrics = QueryMetrics()
    settings = Settings(metrics_port=port, access=AccessSettings((), Path("unread")))
    with exposed(settings, metrics.registry):
        address = f"http://127.0.0.1:{port}"
        assert "sigma_generation 0.0" in httpx.get(f"{address}/metrics").text
        assert httpx.get(f"{address}/metrics", headers={"host": "evil.example"}).status_code == 421
        assert httpx.get(f"{address}/other").status_code == 404
        with bind("127.0.0.1", 0) as other:
            taken = Settings(metrics_port=int(other.getsockname()[1]))
            with (
                pytest.raises(RefuseToStartError, match="SIGMA_METRICS_PORT"),
                exposed(taken, metrics.registry),
            ):
                pass
    # It is free again.
    bind("127.0.0.1", port).close()
