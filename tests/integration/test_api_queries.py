"""Queries by pictures, several at once, and answers of many pages, over real sockets."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sigma_stream_client import Client

from ops.bench.stub import StubAssigner, shadow_generation
from ops.query_client import CommandLineQuery, ask_worker
from schemas.errors import RetryLaterError, UsageError
from schemas.relevance import RelevanceCalibration
from schemas.training_record import TrainingRecord
from tests.api_client import good, opened, path_of, png, refused
from tests.serving import http_serving
from tests.stubs import accepted, leave_in
from workers.api import query_cursors
from workers.generations.catch_up import CatchUp
from workers.repository import generations
from workers.repository.connection import Connection, connect
from workers.runtime.services import Services

IMAGES = 1500
"""Enough for fifteen pages."""


@pytest.fixture(scope="module")
def services(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Services:
    """A database for all tests of this module that change nothing others look at."""
    with connect(postgres.get_uri()) as conn:
        conn.execute("CREATE DATABASE api_queries TEMPLATE template")
    return opened(postgres.get_uri(database="api_queries"), tmp_path_factory.mktemp("api_queries"))


@pytest.fixture(scope="module")
def client(services: Services) -> Iterator[httpx.Client]:
    with http_serving(services) as url, httpx.Client(base_url=url, timeout=30) as asked:
        yield asked


def test_a_stored_image_finds_others_and_not_itself(client: httpx.Client) -> None:
    answer = good(client.post("/v1/query", json={"image_id": "folder/image 3.png", "k": 20}))
    found = [result["image_id"] for result in answer["results"]]
    assert len(found) > 5
    assert "folder/image 3.png" not in found
    assert answer["query"] is None


def test_an_uploaded_picture_is_a_query(client: httpx.Client) -> None:
    answer = good(
        client.post("/v1/query?k=3", content=png(), headers={"content-type": "image/png"})
    )
    assert len(answer["results"]) == 3


HOSTILE_PICTURES = {
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "nothing": b"",
    "half a PNG": png()[:100],
    "PDF": b"%PDF-1.7",
    "rubbish": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_what_is_no_picture_is_refused_as_intake_does(client: httpx.Client, name: str) -> None:
    headers = {"content-type": "image/png"}
    refused(client.post("/v1/query", content=HOSTILE_PICTURES[name], headers=headers), 400)
    refused(client.put(path_of("hostile"), content=HOSTILE_PICTURES[name], headers=headers), 400)
    refused(client.get(path_of("hostile")), 404)


def test_an_explained_answer_says_which_leaves_were_reached_and_how_near_each_image_is(
    client: httpx.Client,
) -> None:
    answer = good(client.post("/v1/query", json={"query": "red", "k": 5, "explain": True}))
    leaves = answer["explanation"]["leaves"]
    assert [leaf["log_probability"] for leaf in leaves] == sorted(
        (leaf["log_probability"] for leaf in leaves), reverse=True
    )
    reached = {tuple(leaf["codes"]) for leaf in leaves}
    for result in answer["results"]:
        assert -1 <= result["cosine"] <= 1
        record = good(client.get(path_of(result["image_id"])))
        assert reached & {tuple(leaf) for leaf in record["generations"][0]["leaves"]}
    plain = good(client.post("/v1/query", json={"query": "red", "k": 5}))
    assert plain["explanation"] is None
    assert plain["results"][0]["cosine"] is None


def test_a_batch_answers_each_query_or_says_why_not(client: httpx.Client) -> None:
    queries = [
        {"query": "red", "k": 2},
        {"query": " "},
        {"image_id": "unknown"},
        {"query": "red", "generation": 99},
        {"image_id": "folder/image 3.png"},
    ]
    answers = good(client.post("/v1/query/batch", json={"queries": queries}))["answers"]
    assert [answer["status"] for answer in answers] == [200, 400, 404, 400, 200]
    alone = good(client.post("/v1/query", json=queries[0]))
    assert answers[0]["answer"]["results"] == alone["results"]
    assert all((answer["error"] is None) == (answer["status"] == 200) for answer in answers)


def test_a_body_of_another_kind_is_refused_for_that(client: httpx.Client) -> None:
    headers = {"content-type": "text/plain"}
    assert "text/plain" in refused(client.post("/v1/query?k=2", content=b"a", headers=headers), 415)
    for content_type in ("application/json", "image/png"):
        packed = {"content-type": content_type, "content-encoding": "gzip"}
        sentence = refused(client.post("/v1/query", content=b"\x1f\x8b", headers=packed), 415)
        assert 'content encoding "gzip"' in sentence
    assert "got a list" in refused(client.post("/v1/query", json={"query": ["red"]}), 422)
    # No library sends these of itself.
    for target in ("/v1/images?limit=1%", "/v1/images/100%", "/v1/images?%ff=1"):
        url = client.base_url.copy_with(raw_path=target.encode())
        refused(client.send(httpx.Request("GET", url)), 400)
    upload = {"content-type": "image/png"}
    wrong = client.put(path_of("a", "?caption=a%00b"), content=png(), headers=upload)
    assert "the parameter caption" in refused(wrong, 422)
    large = client.get("/v1/images", headers={"x": "a" * 20_000})
    assert "at most 16,384 bytes" in refused(large, 400)


@pytest.mark.parametrize(
    "body",
    [
        {"queries": []},
        {"queries": [{"query": "red"}] * 17},
        {"queries": [{"query": "red", "image_id": "a"}]},
        {"queries": [{"query": "red", "top_k": 3}]},
        {"queries": ["red"]},
        {"queries": {"query": "red"}},
        {"query": "red"},
    ],
)
def test_a_batch_that_is_none_is_refused_as_a_whole(client: httpx.Client, body: Any) -> None:
    refused(client.post("/v1/query/batch", json=body), 422)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"query": "red", "image_id": "folder/image 3.png"}, 422),
        ({"image_id": "folder/image 3.png", "mode": "paper"}, 400),
        ({"image_id": "unknown"}, 404),
        ({"image_id": "a\nb"}, 422),
        ({"cursor": "AAAA"}, 400),
        ({"cursor": "A" * 60_000}, 400),
        ({"cursor": "not a cursor"}, 422),
        ({"query": "red", "min_relevance": 1.5}, 422),
        ({"query": "red", "min_relevance": "high"}, 422),
        ({"query": "red", "min_relevance": 0.5}, 400),
        ({"query": "red", "min_relevance": 0.5, "mode": "paper"}, 400),
        ({"image_id": "folder/image 3.png", "min_relevance": 0.5}, 400),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(
    client: httpx.Client, body: Any, status: int
) -> None:
    refused(client.post("/v1/query", json=body), status)


def test_without_a_calibration_relevance_is_null_and_none_can_be_asked_for(
    client: httpx.Client,
) -> None:
    answer = good(client.post("/v1/query", json={"query": "red", "k": 3}))
    assert [result["relevance"] for result in answer["results"]] == [None] * 3
    sentence = refused(client.post("/v1/query", json={"query": "red", "min_relevance": 0}), 400)
    assert "generation 1 has no calibrated relevance" in sentence


def test_relevance_is_the_calibrated_cosine_on_every_page_and_leaves_out_what_is_below_it(
    database: str, tmp_path: Path
) -> None:
    services = opened(database, tmp_path, 300)
    steep = RelevanceCalibration(8.0, -1.0, 100, 150, 0.95, 0.97)
    with connect(database) as conn:
        live = generations.live(conn)
        assert live is not None
        generations.update(conn, live.id, training=TrainingRecord(relevance=steep))
    with http_serving(services) as url, httpx.Client(base_url=url, timeout=30) as client:
        asked = {"query": "red", "k": 250, "explain": True}
        pages = list(all_pages(client, asked))
        assert len(pages) == 3
        found = [result for page in pages for result in page["results"]]
        for result in found:
            expected = 1 / (1 + math.exp(1.0 - 8.0 * result["cosine"]))
            assert result["relevance"] == pytest.approx(expected, abs=1e-3)
        bound = sorted(result["relevance"] for result in found)[125]
        kept = [result["image_id"] for result in found if result["relevance"] >= bound]
        narrowed = list(all_pages(client, asked | {"min_relevance": bound - 1e-4}))
        shown = [result["image_id"] for page in narrowed for result in page["results"]]
        # Images beyond the first 250 may be as relevant: a score is not the cosine alone.
        assert len(narrowed) > 1
        assert set(kept) <= set(shown)
        assert all(
            result["relevance"] >= bound - 1e-3 for page in narrowed for result in page["results"]
        )
        assert (
            good(client.post("/v1/query", json={"query": "red", "min_relevance": 1}))["results"]
            == []
        )
        # Neither pictures nor the paper's mode have one, on their further pages neither.
        for other in (
            {"image_id": "folder/image 3.png", "k": 250},
            {"query": "red", "mode": "paper"},
        ):
            for page in all_pages(client, other):
                assert {result["relevance"] for result in page["results"]} == {None}
        for other in ({"image_id": "folder/image 3.png"}, {"query": "red", "mode": "paper"}):
            refused(client.post("/v1/query", json=other | {"min_relevance": 0.1}), 400)
        cursor = pages[0]["cursor"]
        sentence = refused(
            client.post("/v1/query", json={"cursor": cursor, "min_relevance": 0.1}), 400
        )
        assert "beside a cursor" in sentence
        typed = CommandLineQuery("red", 300, None, "fused", min_relevance=bound - 1e-4)
        told = ask_worker(url, typed, None)
        assert told is not None
        assert set(kept) <= {result["image_id"] for result in told["results"]}
        assert all(result["relevance"] >= bound - 1e-3 for result in told["results"])
        with Client(url) as own:
            answer = own.search("red", k=100, min_relevance=bound - 1e-4)
            assert {result.image_id for result in answer.results} <= set(shown)
            assert answer.results[0].relevance is not None
            assert not own.search("red", min_relevance=1).results


def all_pages(client: httpx.Client, body: Any) -> Iterator[Any]:
    """Answers, one page after the other, as long as there are more."""
    answer = good(client.post("/v1/query", json=body))
    yield answer
    while answer["cursor"]:
        answer = good(client.post("/v1/query", json={"cursor": answer["cursor"]}))
        yield answer


def test_a_thousand_images_come_in_ten_pages_while_others_arrive_go_and_a_generation_is_switched(
    database: str, tmp_path: Path
) -> None:
    services = opened(database, tmp_path, IMAGES)
    with (
        http_serving(services) as url,
        httpx.Client(base_url=url, timeout=60) as client,
        connect(database) as conn,
    ):
        first = generations.live(conn)
        assert first is not None
        found: list[str] = []
        gone: set[str] = set()
        for number, page in enumerate(all_pages(client, {"query": "red", "k": 1000})):
            assert page["generation"] == first.id
            assert [result["rank"] for result in page["results"]] == list(
                range(len(found) + 1, len(found) + len(page["results"]) + 1)
            )
            shown = [result["image_id"] for result in page["results"]]
            assert not gone & set(shown)
            found += shown
            turmoil(conn, services, client, number, found, gone)
        live = generations.live(conn)
        assert live is not None
        assert live.id != first.id
    assert len(found) == len(set(found))
    assert 1000 - len(gone) <= len(found) <= 1000
    assert len(gone) > 50


def turmoil(
    conn: Connection,
    services: Services,
    client: httpx.Client,
    number: int,
    found: list[str],
    gone: set[str],
) -> None:
    """Delete some that are still to come, let others arrive, and once switch generations."""
    live = generations.live(conn)
    assert live is not None
    fresh = [f"fresh {number}-{row}" for row in range(20)]
    leave_in(conn, live.id, accepted(services.store, fresh))
    to_come = [f"folder/image {row}.png" for row in range(IMAGES)]
    for image_id in [name for name in to_come if name not in found and name not in gone][:10]:
        assert good(client.delete(path_of(image_id)))["deleted"]
        gone.add(image_id)
    if number == 4:
        second = shadow_generation(conn)
        CatchUp(conn, generations.get(conn, second), services.store, StubAssigner.of).run()
        generations.promote(conn, second)


def test_the_command_line_gets_all_that_it_asks_for(database: str, tmp_path: Path) -> None:
    with http_serving(opened(database, tmp_path, IMAGES)) as url:
        for k in (3, 250):
            answer = ask_worker(url, CommandLineQuery("red", k, None, "fused"), None)
            assert answer is not None
            assert [result["rank"] for result in answer["results"]] == list(range(1, k + 1))
            assert len({result["image_id"] for result in answer["results"]}) == k
            assert "cursor" not in answer
            assert answer["query"] == "red"
        assert ask_worker(url, CommandLineQuery("red", 3, 99, "fused"), None) is None
        with pytest.raises(UsageError, match=r"2,000"):
            ask_worker(url, CommandLineQuery("red", 5000, None, "fused"), None)
    # Nobody listens there any more.
    with pytest.raises(RetryLaterError, match=r"does not answer .*; see its log, or restart"):
        ask_worker(url, CommandLineQuery("red", 3, None, "fused"), None)


def test_scores_fall_from_page_to_page_as_those_of_one_answer(client: httpx.Client) -> None:
    pages = list(all_pages(client, {"query": "red", "k": 2000, "explain": True}))
    results = [result for page in pages for result in page["results"]]
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert len(results) == 40
    # All there are, though the usual beams reach a few of them only.
    assert {result["image_id"] for result in results} == {
        f"folder/image {number}.png" for number in range(40)
    }


def test_a_cursor_that_is_too_old_or_not_ours_is_refused(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = opened(database, tmp_path, 150)
    with http_serving(services) as url, httpx.Client(base_url=url, timeout=30) as client:
        cursor = good(client.post("/v1/query", json={"query": "red", "k": 150}))["cursor"]
        good(client.post("/v1/query", json={"cursor": cursor, "k": 5}))
        refused(client.post("/v1/query", json={"cursor": cursor, "mode": "paper"}), 400)
        changed = cursor[:-4] + ("AAAA" if cursor[-4:] != "AAAA" else "BBBB")
        refused(client.post("/v1/query", json={"cursor": changed}), 400)
        monkeypatch.setattr(query_cursors, "LIFETIME_S", -1)
        old = good(client.post("/v1/query", json={"query": "red", "k": 150}))["cursor"]
        assert "time is over" in refused(client.post("/v1/query", json={"cursor": old}), 410)
        with connect(database) as conn:
            conn.execute(
                "UPDATE generation SET config = config || jsonb_build_object('dropped_at', now())"
            )
        assert "dropped" in refused(client.post("/v1/query", json={"cursor": cursor}), 410)
