"""Filters from arrival to answer: over HTTP, while images come, change and go."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api_client import good, png, refused
from tests.line import Line, open_line
from tests.serving import http_serving, until
from workers.repository.connection import Connection

RED = {"field": "colour", "equals": "red"}


@pytest.fixture
def line(database: str, tmp_path: Path, conn: Connection) -> Iterator[Line]:
    with open_line(database, tmp_path, conn) as made:
        yield made


def ask(url: str, wanted: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
    """The metadata of all images in an answer, by id."""
    body = {"query": "something", "k": 50, "filter": wanted, **more}
    answer = httpx.post(f"{url}/v1/query", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return {result["image_id"]: result["metadata"] for result in answer.json()["results"]}


@pytest.mark.parametrize("mode", ["fused", "paper"])
def test_a_filter_follows_arrivals_versions_and_deletions(line: Line, mode: str) -> None:
    for number in range(30):
        colour = "red" if number % 10 == 0 else "blue"
        line.arrive(f"i{number}", metadata={"colour": colour, "n": number, "tags": [colour, "x"]})
    line.arrive("plain")
    line.run()
    with http_serving(line.services) as url:
        red = {"i0", "i10", "i20"}
        found = ask(url, RED, mode=mode)
        assert set(found) == red
        assert found["i10"] == {"colour": "red", "n": 10, "tags": ["red", "x"]}
        assert set(ask(url, {"field": "tags", "any": ["red"]}, mode=mode)) == red
        assert set(ask(url, {"not": {"field": "n", "lt": 29}}, mode=mode)) == {"i29"}
        assert set(ask(url, {"field": "n", "exists": False}, mode=mode)) == {"plain"}
        assert len(ask(url, {"not": RED}, mode=mode)) == 27
        assert ask(url, {"field": "colour", "equals": "green"}, mode=mode) == {}

        line.arrive("i1", version=2, metadata={"colour": "red"})
        line.arrive("i0", version=2, metadata={"colour": "blue"})
        line.arrive("new", metadata={"colour": "red"})
        line.delete("i10")
        line.run()
        red = {"i1", "i20", "new"}
        until(lambda: set(ask(url, RED, mode=mode)) == red, "the changes are followed")
        assert ask(url, RED, mode=mode)["i1"] == {"colour": "red"}
        # A page of k is full although most of what beams reach is not allowed.
        assert len(ask(url, RED, mode=mode, k=2)) == 2
    # A new worker reads it all anew.
    with http_serving(line.services) as url:
        assert set(ask(url, RED, mode=mode)) == red


def test_a_filter_that_is_wrong_is_one_sentence(line: Line) -> None:
    line.arrive("a")
    line.run()
    with http_serving(line.services) as url:
        for wanted, status, message in (
            ({"field": "year", "eq": 1}, 400, "filter, field year, must have one of equals, any"),
            ([], 422, "filter must be an object, or null for all images, got a list"),
            ({"and": [RED, {}]}, 400, "filter/and/1 must have and, or, not, or a field"),
        ):
            body = {"query": "a", "filter": wanted}
            answer = httpx.post(f"{url}/v1/query", json=body, timeout=30)
            assert answer.status_code == status
            assert message in answer.text.replace("\\", "")
        batch = {"queries": [{"query": "a"}, {"cursor": "AA", "filter": {"not": {}}}]}
        answer = httpx.post(f"{url}/v1/query/batch", json=batch, timeout=30)
        assert answer.status_code == 400
        assert "queries/1: filter/not must have and, or, not, or a field" in answer.text


def test_uploads_carry_metadata_and_ask_with_filters(line: Line) -> None:
    line.arrive("blue", metadata={"colour": "blue"})
    line.run()
    picture = {"content": png(), "headers": {"content-type": "image/png"}}
    with http_serving(line.services) as url, httpx.Client(base_url=url, timeout=30) as client:
        red = {"metadata": json.dumps({"colour": "red"})}
        assert client.put("/v1/images/red", params=red, **picture).status_code == 202
        line.run()
        body = {"query": "a", "filter": RED}

        def found() -> list[dict[str, Any]]:
            return list(good(client.post("/v1/query", json=body))["results"])

        until(lambda: found(), "the upload is followed")
        answer = good(client.post("/v1/query", params={"filter": json.dumps(RED)}, **picture))
        assert [result["image_id"] for result in answer["results"]] == ["red"]
        assert answer["results"][0]["metadata"] == {"colour": "red"}
        for params, status in (
            ({"filter": "{"}, 422),
            ({"filter": '{"field": "colour"}'}, 400),
        ):
            refused(client.post("/v1/query", params=params, **picture), status)
        for metadata, status in (("{", 422), ("[]", 400), ('{"a": {}}', 400)):
            params = {"metadata": metadata}
            refused(client.put("/v1/images/red", params=params, **picture), status)
        told = client.put("/v1/images/red", params=red, json={"uri": "file:///a.png"})
        assert "must be in its body" in refused(told, 400)
