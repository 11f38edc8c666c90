"""Images over HTTP: put, waited for, shown, listed, deleted; and ids that mean harm."""

import io
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from sigma_stream_client import Client

from ops.bench.stub import StubAssigner
from ops.jobs.erasing import erase
from schemas.events import ARRIVED, DELETED, ImageArrived, ImageDeleted
from stream.log.event_log import record_of
from tests.api_client import good, opened, path_of, png, refused
from tests.serving import http_serving
from tests.stubs import accepted, leave_in
from workers.api import arrival_waits
from workers.index import IndexWorker
from workers.intake import run as run_intake
from workers.repository import generations
from workers.repository.connection import connect
from workers.runtime.metrics import IndexMetrics, IntakeMetrics
from workers.runtime.services import Services


@pytest.fixture(scope="module")
def services(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Services:
    """A database for all tests of this module that change nothing others look at."""
    with connect(postgres.get_uri()) as conn:
        conn.execute("CREATE DATABASE api_images TEMPLATE template")
    return opened(postgres.get_uri(database="api_images"), tmp_path_factory.mktemp("api_images"))


@pytest.fixture(scope="module")
def client(services: Services) -> Iterator[httpx.Client]:
    with http_serving(services) as url, httpx.Client(base_url=url, timeout=30) as asked:
        yield asked


@contextmanager
def working(services: Services) -> Iterator[None]:
    """Intake and index workers, with the stub model."""
    stop = threading.Event()
    index = IndexWorker(services.store, StubAssigner.of, IndexMetrics())
    threads = [
        threading.Thread(target=lambda: run_intake(services, stop, IntakeMetrics())),
        threading.Thread(target=lambda: index.run(services.connect, services.open_log, stop)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


@dataclass(frozen=True)
class Installation:
    client: httpx.Client
    services: Services


@pytest.fixture
def running(database: str, tmp_path: Path) -> Iterator[Installation]:
    """An installation in which what is published becomes searchable."""
    services = opened(database, tmp_path)
    with (
        working(services),
        http_serving(services) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield Installation(client, services)


def test_bytes_are_put_found_shown_replaced_and_deleted(running: Installation) -> None:
    client = running.client
    path = path_of("my/new picture")
    picture = {"content-type": "image/png"}
    put = client.put(f"{path}?caption=a+red+circle&wait=searchable", content=png(), headers=picture)
    assert good(put)["state"] == "searchable"
    record = good(client.get(path))
    assert (record["state"], record["version"]) == ("indexed", 1)
    assert record["captions"] == ["a red circle"]
    assert len(record["identifier"]) == 5
    similar = client.post("/v1/query", json={"image_id": "my/new picture", "k": 5})
    assert len(good(similar)["results"]) == 5
    shown = httpx.get(record["link"])
    assert shown.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(shown.content)).size == (32, 32)
    # The same again changes nothing; other bytes are the next version.
    again = client.put(f"{path}?caption=a+red+circle", content=png(), headers=picture)
    assert good(again, 202)["version"] == 1
    other = client.put(f"{path}?wait=searchable", content=png(2), headers=picture)
    assert good(other)["version"] == 2
    assert httpx.get(record["link"]).content != shown.content
    assert good(client.delete(path)) == {"image_id": "my/new picture", "deleted": True}
    refused(client.get(path), 404)
    refused(client.get(f"{path}/picture"), 404)
    refused(client.post("/v1/query", json={"image_id": "my/new picture"}), 404)
    assert good(client.delete(path))["deleted"] is False
    # It may come back, as any image that was deleted.
    back = client.put(f"{path}?wait=searchable", content=png(3), headers=picture)
    assert good(back)["version"] == 3


def test_an_address_is_put_and_what_intake_refuses_is_told_to_who_waits(
    running: Installation, tmp_path: Path
) -> None:
    client = running.client
    file = tmp_path / "picture.png"
    file.write_bytes(png(4))
    body = {"uri": file.as_uri(), "captions": ["four"], "split": "train"}
    put = good(client.put(path_of("four"), json=body), 202)
    waited = client.get(path_of("four"), params={"wait": "searchable", "token": put["token"]})
    assert good(waited)["captions"] == ["four"]
    missing = client.put(
        path_of("five"), json={"uri": "file:///nowhere.png"}, params={"wait": "searchable"}
    )
    assert "nowhere.png cannot be read" in refused(missing, 400)
    letters = good(client.get("/v1/dead-letters"))["dead_letters"]
    assert [letter["image_id"] for letter in letters] == ["five"]
    assert good(client.post("/v1/dead-letters/replay")) == {"replayed": 1, "lost": 0}


def test_a_put_and_a_delete_are_events_as_those_of_any_producer(
    database: str, tmp_path: Path
) -> None:
    services = opened(database, tmp_path)
    with http_serving(services) as url, httpx.Client(base_url=url, timeout=30) as client:
        good(
            client.put(path_of("a"), json={"uri": "https://example.org/a.jpg", "captions": ["x"]}),
            202,
        )
        good(client.delete(path_of("folder/image 1.png")))
    with closing(services.open_log()) as log:
        arrived = [
            record_of(event)
            for (topic, partition) in log.end_offsets([ARRIVED])
            for event in log.read(topic, partition)
        ]
        deleted = [
            record_of(event)
            for (topic, partition) in log.end_offsets([DELETED])
            for event in log.read(topic, partition)
        ]
    assert [
        (event.image_id, event.uri) for event in arrived if isinstance(event, ImageArrived)
    ] == [("a", "https://example.org/a.jpg")]
    assert deleted == [ImageDeleted("folder/image 1.png", 1)]


def test_who_waits_for_what_nobody_indexes_is_told_after_a_while(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival_waits, "WAIT_S", 0.3)
    services = opened(database, tmp_path)
    with http_serving(services) as url, httpx.Client(base_url=url, timeout=30) as client:
        put = client.put(
            path_of("slow"),
            content=png(),
            headers={"content-type": "image/png"},
            params={"wait": "searchable"},
        )
        assert good(put, 202)["state"] == "waiting"
        token = put.json()["token"]
        params = {"wait": "searchable", "token": token}
        assert good(client.get(path_of("slow"), params=params), 202)["version"] == 1
        refused(client.get(path_of("slow"), params={"wait": "searchable"}), 404)


def test_an_upload_is_erased_with_its_image(database: str, tmp_path: Path) -> None:
    services = opened(database, tmp_path)
    with working(services), http_serving(services) as url, httpx.Client(base_url=url) as client:
        put = client.put(
            path_of("mine"),
            content=png(),
            headers={"content-type": "image/png"},
            params={"wait": "searchable"},
            timeout=60,
        )
        good(put)
        uploads = list((tmp_path / "images").rglob("*.upload"))
        assert len(uploads) == 1
        good(client.delete(path_of("mine")))
    with connect(database) as conn, closing(services.open_log()) as log:
        erase(conn, services.store, log, embedded_log=True, grace=timedelta(0))
    assert not uploads[0].exists()


def test_images_are_listed_newest_first_each_once_while_others_arrive(
    database: str, tmp_path: Path
) -> None:
    services = opened(database, tmp_path, 45)
    with connect(database) as conn:
        # Those that are accepted together have no order but that of their keys.
        rows = conn.execute("SELECT image_id FROM image ORDER BY image_key DESC").fetchall()
    everything = [image_id for (image_id,) in rows]
    assert len(everything) == 45
    with http_serving(services) as url, httpx.Client(base_url=url, timeout=30) as client:
        newest = {"order": "newest", "limit": "20"}
        page = good(client.get("/v1/images", params=newest))
        found = [image["image_id"] for image in page["images"]]
        assert found == everything[:20]
        # One that arrives does not move the pages of those before.
        with connect(database) as conn:
            live = generations.live(conn)
            assert live is not None
            leave_in(conn, live.id, accepted(services.store, ["fresh"]))
        while page["cursor"]:
            page = good(client.get("/v1/images", params=newest | {"cursor": page["cursor"]}))
            found += [image["image_id"] for image in page["images"]]
        assert found == everything
        with Client(url) as own:
            listed = [image.image_id for image in own.images(newest=True)]
        assert listed == ["fresh", *everything]
        by_id = good(client.get("/v1/images", params={"limit": "1"}))["cursor"]
        first = good(client.get("/v1/images", params=newest))["cursor"]
        for order, cursor in (("newest", by_id), ("id", first), ("newest", "AAAA")):
            response = client.get("/v1/images", params={"order": order, "cursor": cursor})
            assert "in this order" in refused(response, 400)


def test_images_are_listed_in_the_order_of_their_ids_each_once(client: httpx.Client) -> None:
    found: list[str] = []
    params: dict[str, Any] = {"limit": 7}
    while True:
        page = good(client.get("/v1/images", params=params))
        found += [image["image_id"] for image in page["images"]]
        if page["cursor"] is None:
            break
        params["cursor"] = page["cursor"]
    assert len(found) == len(set(found)) == 40


HOSTILE_IDS = [
    "../../etc/passwd",
    "..%2f..%2fetc",
    "a/picture",
    "a?b#c",
    "'; DROP TABLE image; --",
    '"><script>alert(1)</script>',
    "a\u202egnp",
    "%00",
    "a b",
    "ä" * 512,
    "\\..\\x",
    "picture",
    "http://evil.example/",
    "a;b=c",
    "\u007f",
]


@pytest.mark.parametrize("image_id", HOSTILE_IDS)
def test_an_id_stays_an_id_whatever_it_looks_like(
    services: Services, client: httpx.Client, image_id: str
) -> None:
    refused(client.get(path_of(image_id)), 404)
    refused(client.get(path_of(image_id, "/picture")), 404)
    put = client.put(path_of(image_id), json={"uri": "file:///x.png"})
    assert good(put, 202)["image_id"] == image_id


@pytest.mark.parametrize(
    "raw",
    ["%00", "a%0d%0aset-cookie:%20x", "%ff%fe", "%2e%2e", "%ed%a0%80", "%61%0a", "a" * 3000],
)
def test_what_no_event_may_have_as_id_is_refused(client: httpx.Client, raw: str) -> None:
    url = httpx.URL(str(client.base_url)).copy_with(raw_path=f"/v1/images/{raw}".encode())
    for method in ("GET", "DELETE", "PUT"):
        response = client.request(
            method, url, json={"uri": "file:///x"} if method == "PUT" else None
        )
        refused(response, 422)
        assert "set-cookie" not in response.headers


def test_a_picture_comes_smaller_and_only_once(client: httpx.Client) -> None:
    path = path_of("folder/image 2.png", "/picture")
    whole = client.get(path)
    assert whole.headers["content-type"] == "image/png"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["cache-control"].startswith("private")
    small = client.get(path, params={"size": 16})
    assert small.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(small.content)).size) <= 16
    assert small.headers["etag"] != whole.headers["etag"]
    again = client.get(path, headers={"if-none-match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for size in ("0", "15", "99999", "-1", "x", "1e3"):
        refused(client.get(path, params={"size": size}), 422)


def test_a_picture_that_the_store_has_lost_is_told(database: str, tmp_path: Path) -> None:
    services = opened(database, tmp_path, 3)
    for file in (tmp_path / "images").rglob("*.png"):
        file.write_bytes(b"<svg onload=alert(1)>")
    with http_serving(services) as url, httpx.Client(base_url=url, timeout=30) as client:
        response = client.get(path_of("folder/image 1.png", "/picture"))
        assert "damaged-store" in refused(response, 404)
