"""The tree, generations, reports and documentation over HTTP, and who may ask for what."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from schemas.access_settings import AccessSettings
from schemas.api_keys import ApiKey, ApiScope, digest_of
from schemas.errors import RetryLaterError, UsageError, WorkFailedError
from schemas.settings import Settings
from tests.api_client import good, opened, path_of, refused
from tests.serving import http_serving
from tests.stubs import services_at
from workers.api import call_pool
from workers.api.addresses import NEEDED_SCOPES
from workers.api.maintenance import Maintenance
from workers.repository.connection import connect
from workers.runtime.services import Services


@pytest.fixture(scope="module")
def services(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Services:
    """A database for all tests of this module that change nothing others look at."""
    with connect(postgres.get_uri()) as conn:
        conn.execute("CREATE DATABASE api_resources TEMPLATE template")
    return opened(
        postgres.get_uri(database="api_resources"), tmp_path_factory.mktemp("api_resources")
    )


@pytest.fixture(scope="module")
def client(services: Services) -> Iterator[httpx.Client]:
    with http_serving(services) as url, httpx.Client(base_url=url, timeout=30) as asked:
        yield asked


SECRETS = {scope: f"sigma_{scope}-key-of-these-tests" for scope in ApiScope}


@pytest.fixture(scope="module")
def keyed_url(services: Services) -> Iterator[str]:
    keys = tuple(
        ApiKey(scope.value, scope, digest_of(secret.encode()), 10 if scope == "admin" else None)
        for scope, secret in SECRETS.items()
    )
    keyed = services_at(services.database_url, services.home, access=AccessSettings(keys))
    with http_serving(keyed) as url:
        yield url


def bearer(scope: ApiScope) -> dict[str, str]:
    return {"authorization": f"Bearer {SECRETS[scope]}"}


def test_a_link_opens_in_a_browser_which_sends_no_key_and_opens_nothing_else(
    keyed_url: str,
) -> None:
    answer = good(
        httpx.post(
            f"{keyed_url}/v1/query",
            json={"query": "red"},
            headers=bearer(ApiScope.READ),
            timeout=30,
        )
    )
    link = answer["results"][0]["link"]
    assert link.startswith(keyed_url)
    assert httpx.get(link).headers["content-type"] == "image/png"
    bare = urlsplit(link)
    query = bare.query
    other = path_of("folder/image 1.png", "/picture")
    if other in link:
        other = path_of("folder/image 2.png", "/picture")
    refused(httpx.get(f"{keyed_url}{other}?{query}"), 401)
    refused(httpx.get(f"{keyed_url}{bare.path}"), 401)
    refused(httpx.get(f"{keyed_url}{bare.path}?{query[:-2]}"), 401)
    refused(httpx.get(f"{keyed_url}{bare.path.removesuffix('/picture')}?{query}"), 401)
    later = query.replace("until=", "until=9")
    refused(httpx.get(f"{keyed_url}{bare.path}?{later}"), 401)


ASKED = {
    "/v1/images/{image_id}": "/v1/images/unknown",
    "/v1/images/{image_id}/picture": "/v1/images/unknown/picture",
    "/v1/identifiers/{prefix}": "/v1/identifiers/0",
    "/v1/generations/{generation}/promote": "/v1/generations/99/promote",
    "/v1/reports/{report}": "/v1/reports/drift",
}


@pytest.mark.parametrize("scope", ApiScope)
def test_each_address_asks_for_the_scope_that_the_table_says(
    keyed_url: str, scope: ApiScope
) -> None:
    key = ApiKey("any", scope, "0" * 64)
    for path, methods in NEEDED_SCOPES.items():
        for method, needed in methods.items():
            if needed is None or key.may(needed):
                continue
            asked = ASKED.get(path, path)
            response = httpx.request(method, keyed_url + asked, headers=bearer(scope))
            assert f"must have the scope {needed}" in refused(response, 403)


def test_a_batch_is_charged_as_its_queries(keyed_url: str) -> None:
    queries = {"queries": [{"query": "red", "k": 1}] * 10}
    statuses = []
    for _ in range(2):
        response = httpx.post(
            f"{keyed_url}/v1/query/batch", json=queries, headers=bearer(ApiScope.ADMIN), timeout=30
        )
        statuses.append(response.status_code)
    assert statuses[-1] == 429


def test_a_web_page_of_another_origin_changes_nothing(client: httpx.Client) -> None:
    own = {"origin": str(client.base_url).rstrip("/")}
    good(client.post("/v1/dead-letters/replay", headers=own))
    for origin in ("http://evil.example", "null", "http://localhost", "http://[", "https://a b"):
        for path in ("/v1/dead-letters/replay", "/v1/generations/rollback"):
            refused(client.post(path, headers={"origin": origin}), 403)
    # To read is harmless: the browser shows the page nothing.
    good(client.get("/v1/generations", headers={"origin": "http://evil.example"}))


def test_the_tree_leads_to_every_image_once(client: httpx.Client) -> None:
    found: list[str] = []
    prefixes = [""]
    while prefixes:
        prefix = prefixes.pop()
        path = "/v1/identifiers" + (f"/{prefix}" if prefix else "")
        node = good(client.get(path))
        assert node["images"] == sum(branch["images"] for branch in node["branches"]) + len(
            node["leaf"]
        )
        for branch in node["branches"]:
            assert 1 <= len(branch["examples"]) <= branch["images"]
        prefixes += [branch["prefix"] for branch in node["branches"]]
        for image in node["leaf"]:
            record = good(client.get(path_of(image["image_id"])))
            assert record["identifier"] == image["identifier"]
        found += [image["image_id"] for image in node["leaf"]]
    assert len(found) == len(set(found)) == 40


@pytest.mark.parametrize(
    ("prefix", "status"),
    [
        ("99", 404),
        ("0.0.0.9", 404),
        ("1.2.3.4.5", 422),
        ("01", 422),
        ("-1", 422),
        ("a", 422),
        ("1.", 422),
        ("1%2e2%2e", 422),
        ("9" * 40, 422),
    ],
)
def test_a_prefix_that_is_none_is_refused(client: httpx.Client, prefix: str, status: int) -> None:
    refused(client.get(f"/v1/identifiers/{prefix}"), status)


def test_a_promotion_is_done_or_says_why_it_was_not(services: Services) -> None:
    began, go_on = threading.Event(), threading.Event()

    def promote(number: int, force: bool) -> None:
        if number == 98:
            began.set()
            go_on.wait(60)
        if number == 99:
            raise UsageError("there is no generation 99")
        if not force:
            raise WorkFailedError("the gate refuses it")

    maintenance = Maintenance(promote, lambda: None, lambda _: {"a": 1}, lambda _: {"b": 2})
    with (
        http_serving(services, maintenance=maintenance) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        refused(client.post("/v1/generations/99/promote"), 400)
        assert "the gate refuses it" in refused(client.post("/v1/generations/1/promote"), 409)
        assert good(client.get("/v1/generations"))["change"]["state"] == "failed"
        assert good(client.post("/v1/generations/rollback"))["change"]["kind"] == "rollback"
        forced = client.post("/v1/generations/1/promote", params={"force": True})
        assert good(forced)["change"]["state"] == "done"
        with ThreadPoolExecutor(1) as executor:
            slow = executor.submit(client.post, "/v1/generations/98/promote?force=true")
            assert began.wait(30)
            refused(client.post("/v1/generations/rollback"), 409)
            go_on.set()
            good(slow.result(30))
        assert good(client.get("/v1/reports/drift")) == {"a": 1}
        assert good(client.get("/v1/reports/recall")) == {"b": 2}
        refused(client.get("/v1/reports/other"), 422)


def test_the_documentation_names_every_operation_and_loads_nothing(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    for word in ("<script", "<link", "<img", "src=", "@import", "url(", "//"):
        assert word not in page.text.replace("https://", "").replace("http://", "")
    described = good(client.get("/openapi.json"))
    operations = [
        operation["operationId"]
        for forms in described["paths"].values()
        for operation in forms.values()
    ]
    assert len(operations) == len(set(operations)) >= 18
    for operation in operations:
        assert operation in page.text
    assert client.get("/redoc").status_code == 404
    # No key is needed here, so none is described.
    assert "securitySchemes" not in described["components"]
    assert "security" not in described["paths"]["/v1/query"]["post"]


def test_unknown_and_repeated_parameters_are_refused(client: httpx.Client) -> None:
    for path in ("/v1/images?x=1", "/v1/images?limit=1&limit=2", "/v1/generations?a=b"):
        refused(client.get(path), 422)


def test_without_the_database_there_is_one_sentence(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http_serving(services) as url, httpx.Client(base_url=url, timeout=30) as client:

        def away(*_: Any) -> Any:
            raise RetryLaterError("the database does not answer; check that it runs, try again")

        monkeypatch.setattr(call_pool.CallPool, "_connection", away)
        monkeypatch.setattr(call_pool.CallPool, "write", lambda self, _: self.run(lambda: away()))
        for path in ("/v1/images", "/v1/images/a", "/v1/images/a/picture", "/v1/identifiers"):
            response = client.get(path)
            refused(response, 503)
            assert response.headers["retry-after"] == "1"
        refused(client.put("/v1/images/a", json={"uri": "file:///a.png"}), 503)
        refused(client.delete("/v1/images/a"), 503)
        good(client.post("/v1/query", json={"query": "red"}))


def test_the_settings_may_say_where_clients_reach_it() -> None:
    access = AccessSettings.__dataclass_fields__["public_url"]
    assert access.default is None
    settings = Settings.from_environment({"SIGMA_PUBLIC_URL": "https://search.example.org/sigma"})
    assert settings.access.public_url == "https://search.example.org/sigma"
    for wrong in ("javascript:alert(1)", "https://a b", "https://a/x/", "ftp://a"):
        with pytest.raises(UsageError):
            Settings.from_environment({"SIGMA_PUBLIC_URL": wrong})


def test_json_answers_are_json(client: httpx.Client) -> None:
    assert json.loads(client.get("/openapi.json").text)["openapi"].startswith("3.1")
