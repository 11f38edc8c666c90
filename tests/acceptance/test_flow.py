"""Whole flows through the command line and the real processes.

Arrival to answer, deletion, hostile folders, kills, replays.
"""

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ops.bench.generation_copy import copy_generation
from ops.embedded.database import open_services
from schemas.records import JsonObject
from schemas.settings import Settings
from stream.manifest import read_manifest
from tests.acceptance.conftest import STREAMED, TRAINED, Home, copied, settled
from tests.acceptance.test_supervisor import workers_of
from tests.doc_blocks import blocks
from tests.hostile import write_folder
from workers.repository import generations


def peak_bytes(pid: int) -> int:
    """The most memory that a process and its children ever held."""
    total = 0
    for one in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        (line,) = [
            line
            for line in Path(f"/proc/{one}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        ]
        total += int(line.split()[1]) * 1024
    return total


@dataclass(frozen=True)
class Streamed:
    """A home whose processes are up and took the whole stream with nothing in their way."""

    home: Home
    ingested: JsonObject
    """What `sigma ingest --wait` said."""
    status: JsonObject
    """Directly afterwards."""


@pytest.fixture(scope="module")
def streamed(
    tmp_path_factory: pytest.TempPathFactory, trained: Path, corpus: Path
) -> Iterator[Streamed]:
    home = copied(trained, tmp_path_factory.mktemp("streamed") / "home", {})
    home.ok("up")
    done = home.ok("ingest", "--manifest", corpus / "stream" / "manifest.jsonl", "--wait")
    yield Streamed(home, done, home.ok("status"))
    home.sigma("down")
    shutil.rmtree(home.folder, ignore_errors=True)


def test_images_that_arrive_are_found_by_their_captions_and_gone_when_deleted(
    streamed: Streamed, corpus: Path
) -> None:
    assert streamed.ingested == {
        "published": STREAMED,
        "indexed": STREAMED,
        "rejected": [],
        "hidden": 0,
    }
    fresh = streamed.status["freshness_s"]
    # How soon is a benchmark's question; that it is measured at all, and sane, is this test's.
    assert 0 < fresh["p50"] <= fresh["p95"] < 120
    require_found_and_deleted(streamed.home, corpus)


def require_found_and_deleted(home: Home, corpus: Path) -> None:
    """Ask for images that arrived, delete one of them, and ask again."""
    stream = corpus / "stream" / "manifest.jsonl"
    entries = read_manifest(stream)
    gallery = home.ok("status")["images"]["indexed"]
    found = home.ok("evaluate", "--manifest", stream)
    assert found["invalid_identifiers"] == 0
    assert found["gallery"] == gallery
    unseen = found["splits"]["unseen"]
    # Trained on 240 images only; the demo, with 3,000, is held to more (docs/experiments/).
    assert unseen["ours"]["R@10"] >= 0.7 * unseen["exact_dense"]["R@10"]
    answer = home.ok("query", entries[0].test_captions[0], "-k", "100")
    assert {"query", "generation", "took_ms", "results"} <= answer.keys()
    assert [one["rank"] for one in answer["results"]] == list(range(1, len(answer["results"]) + 1))
    assert all(len(one["identifier"]) == 5 for one in answer["results"])
    victim = answer["results"][0]["image_id"]
    assert home.ok("delete", victim) == {"deleted": [victim], "untouched": []}
    again = home.ok("query", entries[0].test_captions[0], "-k", "100")
    assert victim not in [one["image_id"] for one in again["results"]]
    back = home.sigma("delete", victim, "--json")
    assert (back.code, back.json["untouched"]) == (2, [victim])


def test_the_api_says_what_it_is_and_refuses_bad_queries_clearly(
    streamed: Streamed,
) -> None:
    status = streamed.home.ok("status")
    url = status["url"]
    assert httpx.get(f"{url}/healthz").json() == {"alive": True}
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert "/v1/query" in httpx.get(f"{url}/openapi.json").json()["paths"]
    good = httpx.post(f"{url}/v1/query", json={"query": "a red circle", "k": 3})
    assert good.status_code == 200
    assert len(good.json()["results"]) == 3
    paper = httpx.post(f"{url}/v1/query", json={"query": "a red circle", "k": 3, "mode": "paper"})
    assert len(paper.json()["results"]) == 3
    for bad in (
        {},
        {"query": ""},
        {"query": "   "},
        {"query": "x" * 3000},
        {"query": "a", "k": 0},
        {"query": "a", "k": 2001},
        {"query": "a", "generation": 9},
    ):
        assert httpx.post(f"{url}/v1/query", json=bad).status_code in (400, 422), bad
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
        for sample in family.samples
    }
    assert values["sigma_trie_images"] == status["images"]["indexed"]
    assert values["sigma_queries_total"] >= 2


def test_a_folder_full_of_surprises(streamed: Streamed, tmp_path: Path) -> None:
    running = streamed.home
    before = running.ok("status")["images"]["indexed"]
    good, codes = write_folder(tmp_path / "folder", 20)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder" / ".DS_Store").write_bytes(b"x")
    done = running.sigma("ingest", tmp_path / "folder", "--wait", "--json")
    assert done.code == 2
    document = done.json
    assert document["published"] == good + len(codes)
    assert document["indexed"] == good
    told = {Path(one["path"]).name: one["code"] for one in document["rejected"]}
    assert told == codes | {"linked": "linked-folder"}
    assert document["hidden"] == 1
    assert all(len(one["reason"]) > 20 for one in document["rejected"])
    (intake,) = workers_of(running)["intake"]
    assert peak_bytes(intake) < 1 << 30
    letters = running.ok("dead-letters")["dead_letters"]
    assert {Path(one["image_id"]).name for one in letters} == set(codes)
    assert running.ok("status")["images"]["rejected"] == len(codes)
    # Mended and replayed, an image goes in; the others are refused again.
    (tmp_path / "folder" / "empty.jpg").write_bytes(
        (tmp_path / "folder" / "plain.jpg").read_bytes()
    )
    running.ok("dead-letters", "replay")
    assert settled(running, before + good + 1)["images"]["rejected"] == len(codes) - 1


@pytest.mark.timeout(600)
def test_killing_workers_in_the_middle_loses_and_doubles_nothing_and_replays_change_nothing(
    anywhere: Home, corpus: Path, streamed: Streamed
) -> None:
    anywhere.ok("ingest", "--manifest", corpus / "stream" / "manifest.jsonl")
    for role in ("index", "intake", "index"):
        time.sleep(0.7)
        os.kill(workers_of(anywhere)[role][0], signal.SIGKILL)
        time.sleep(2.5)
    before = settled(anywhere, TRAINED + STREAMED)
    assert before["trie"]["images"] == TRAINED + STREAMED
    assert before["trie"]["checksum"] == streamed.status["trie"]["checksum"]
    for _ in range(2):
        anywhere.ok("ingest", "--manifest", corpus / "stream" / "manifest.jsonl")
    assert settled(anywhere, TRAINED + STREAMED)["trie"] == before["trie"]
    if anywhere.services:
        # On Kafka and S3 too; on embedded defaults the home of the undisturbed stream is asked.
        require_found_and_deleted(anywhere, corpus)


def test_explaining_an_image_gives_its_identifier_and_a_caption(idle: Home, corpus: Path) -> None:
    entry = read_manifest(corpus / "train" / "manifest.jsonl")[0]
    found = idle.ok("explain", entry.image_id)
    assert len(found["identifier"]) == 5
    assert found["caption"]
    assert idle.ok("explain", ",".join(map(str, found["identifier"])))["image_id"] == entry.image_id
    for wrong in ("99,0,0,0", "nothing such"):
        done = idle.sigma("explain", wrong)
        assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("query", "  "), "the query must not be empty"),
        (("query", "a circle", "-k", "0"), "k must be between 1 and 2,000, got 0"),
        (("query", "a circle", "--generation", "7"), "no generation 7"),
        (("ingest",), "give either"),
        (("ingest", "nowhere.jpg"), "does not exist"),
        (("ingest", ".", "--wait"), "sigma up"),
        (("train", "--manifest", "nowhere.jsonl"), "cannot be read"),
        (("train", "--manifest", ".", "--profile", "huge"), "profile must be one of"),
        (("generations", "promote", "9"), "no generation 9"),
        (("generations", "drop"), "name the generation"),
        (("generations", "drop", "1"), "make another one live first"),
        (("demo", "--images", "3"), "at least 64"),
    ],
)
def test_bad_usage_is_one_clear_line_and_exit_code_2(
    idle: Home, arguments: tuple[str, ...], found: str
) -> None:
    done = idle.sigma(*arguments)
    assert done.code == 2
    assert found in done.err
    assert "Traceback" not in done.err
    assert done.err.strip().splitlines()[-1].startswith("sigma: ")


def test_a_second_generation_waits_in_shadow_takes_over_and_rolls_back(home: Home) -> None:
    with open_services(Settings(home=home.folder)) as found, found.connect("test") as conn:
        first = generations.live(conn)
        assert first is not None
        assert copy_generation(found.connect, conn, first) == 2
        generations.set_state(conn, 2, "shadow")
    (page,) = blocks("docs/generations.md", "console")
    commands = re.findall(r"^\$ sigma (.*)$", page, re.MULTILINE)
    listing, promotion, going_back = [command.split() for command in commands]
    assert states_of(home.ok(*listing)) == {1: "live", 2: "shadow"}
    assert states_of(home.ok(*promotion)) == {1: "retired", 2: "live"}
    assert home.ok("query", "a red circle")["generation"] == 2
    assert states_of(home.ok(*going_back)) == {1: "live", 2: "retired"}


def states_of(answer: Any) -> dict[int, str]:
    """The state of each generation, by its number."""
    return {one["id"]: one["state"] for one in answer["generations"]}
