"""HEAD is answered wherever GET is, with the same head and without a body."""

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pytest

from schemas.access_settings import AccessSettings
from schemas.api_keys import ApiKey, ApiScope, digest_of
from tests.api_client import good, opened, path_of, refused
from tests.serving import http_serving
from tests.stubs import services_at
from workers.api.addresses import NEEDED_SCOPES
from workers.runtime.metrics_server import METRICS_PATH

SECRET = "sigma_key-of-this-test-and-long"

IMAGE = "folder/image 3.png"


@pytest.fixture
def url(database: str, tmp_path: Path) -> Iterator[str]:
    opened(database, tmp_path)
    key = ApiKey("reader", ApiScope.ADMIN, digest_of(SECRET.encode()), None)
    keyed = services_at(database, tmp_path, access=AccessSettings((key,)))
    with http_serving(keyed) as address:
        yield address


def exchanged(
    url: str, method: str, path: str, key: str = SECRET
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and all bytes behind the head, as they come from the connection."""
    parts = urlsplit(url)
    with socket.create_connection(("127.0.0.1", parts.port or 0), timeout=60) as client:
        lines = [f"{method} {path} HTTP/1.1", f"host: {parts.netloc}", "connection: close"]
        if key:
            lines.append(f"authorization: Bearer {key}")
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    return int(status.split()[1]), headers, body


def get_paths(url: str) -> list[str]:
    """A path for each address that answers GET: those of the description, and those of people."""
    described = good(httpx.get(f"{url}/openapi.json"))["paths"]
    templates = [path for path, operations in described.items() if "get" in operations]
    undescribed = [path for path, scopes in NEEDED_SCOPES.items() if "GET" in scopes]
    values = {"image_id": quote(IMAGE, safe=""), "prefix": "0", "report": "drift", "name": "app.js"}
    return [path.format(**values) for path in dict.fromkeys([*templates, *undescribed])]


def test_head_is_answered_as_get_without_a_body_at_every_address(url: str) -> None:
    paths = get_paths(url)
    assert len(paths) == sum("GET" in scopes for scopes in NEEDED_SCOPES.values())
    assert path_of(IMAGE, "/picture") in paths
    for path in paths:
        status, headers, body = exchanged(url, "GET", path)
        assert (status, len(body)) == (200, int(headers["content-length"])), path
        assert len(body) > 0, path
        head_status, head_headers, head_body = exchanged(url, "HEAD", path)
        assert (head_status, head_body) == (200, b""), path
        if path == METRICS_PATH:
            # They count what was asked meanwhile.
            head_headers["content-length"] = headers["content-length"]
        head_headers["date"] = headers["date"]
        assert head_headers == headers, path


def test_head_needs_what_get_needs_and_is_refused_without_a_body(url: str) -> None:
    for path in (path_of(IMAGE), path_of(IMAGE, "/picture"), "/v1/images", "/v1/dead-letters"):
        assert exchanged(url, "HEAD", path, key="")[::2] == (401, b"")
    status, headers, body = exchanged(url, "HEAD", path_of("unknown"))
    assert (status, body) == (404, b"")
    assert headers["content-type"] == "application/json"


def test_head_is_not_answered_where_get_is_not(url: str) -> None:
    status, headers, body = exchanged(url, "HEAD", "/v1/query")
    assert (status, headers["allow"], body) == (405, "POST", b"")
    keyed = {"authorization": f"Bearer {SECRET}"}
    other = httpx.patch(f"{url}{path_of(IMAGE)}", headers=keyed)
    assert "Method Not Allowed" in refused(other, 405)
    assert other.headers["allow"] == "GET, PUT, DELETE, HEAD"
