"""A running installation is saved while images arrive, and comes back in a new home, also on S3."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.service_settings import S3Settings
from stream.manifest import read_manifest
from tests.acceptance.conftest import TRAINED, Home, settled

ARRIVING = 60

CAPTIONS = 2


@pytest.fixture
def part(corpus: Path) -> Path:
    """A manifest of some of the images that arrive later."""
    whole = corpus / "stream" / "manifest.jsonl"
    chosen = corpus / "stream" / "arriving.jsonl"
    chosen.write_text("".join(whole.read_text().splitlines(keepends=True)[:ARRIVING]))
    return chosen


@pytest.fixture
def others(tmp_path: Path) -> Iterator[list[Home]]:
    """Homes to restore into; what runs in them is stopped at the end."""
    homes = [Home(tmp_path / f"restored{number}") for number in range(2)]
    yield homes
    for home in homes:
        home.sigma("down")
        shutil.rmtree(home.folder, ignore_errors=True)


def answers(home: Home, part: Path) -> list[list[str]]:
    found = []
    for entry in read_manifest(part)[:CAPTIONS]:
        answer: Any = home.ok("query", entry.test_captions[0])
        found.append([result["image_id"] for result in answer["results"]])
    return found


@pytest.mark.timeout(600)
def test_a_running_home_is_saved_while_images_arrive_and_comes_back_elsewhere(
    running: Home, others: list[Home], part: Path, corpus: Path, tmp_path: Path, s3: S3Settings
) -> None:
    saved = tmp_path / "saved"
    assert running.ok("ingest", "--manifest", part)["published"] == ARRIVING
    # The workers have not read all of them yet.
    made = running.ok("backup", saved)
    assert made["generations"] == ["g1"]
    assert (made["damaged"], made["erased"], made["left_out"]) == ([], 0, [])
    assert made["images"] >= TRAINED
    assert made["images"] + made["waiting"] >= TRAINED + ARRIVING
    again = running.sigma("backup", saved)
    assert again.code == 2
    assert "holds a backup already" in again.err
    old = settled(running, TRAINED + ARRIVING)
    expected = answers(running, part)
    # Only where images come from is of the old place; nothing points into the old home.
    document = json.loads((saved / "manifest.json").read_text())
    assert str(running.folder) not in json.dumps(document)
    for table in (saved / "tables").iterdir():
        assert str(running.folder).encode() not in table.read_bytes(), table
    running.ok("down")

    assert others[0].ok("restore", saved, "--check")["whole"]
    assert not others[0].folder.exists()
    done = others[0].ok("restore", saved)
    assert (done["carried_over"], done["deleted"], done["given_up"]) == (0, 0, [])
    refused = others[0].sigma("restore", saved)
    assert refused.code == 2
    assert refused.err.splitlines()[-1].startswith("sigma: the database of the home")
    others[0].ok("up")
    new = settled(others[0], TRAINED + ARRIVING)
    assert new["trie"]["checksum"] == old["trie"]["checksum"]
    assert answers(others[0], part) == expected
    late = corpus / "stream" / read_manifest(corpus / "stream" / "manifest.jsonl")[-1].path
    assert others[0].ok("ingest", late, "--wait")["indexed"] == 1
    others[0].ok("down")

    bucket = replace(s3, bucket="restored-backup")
    services = {
        "SIGMA_S3_ENDPOINT": f"{'https' if s3.secure else 'http'}://{s3.endpoint}",
        "SIGMA_S3_ACCESS_KEY": s3.access_key,
        "SIGMA_S3_SECRET_KEY": s3.secret_key,
        "SIGMA_S3_BUCKET": bucket.bucket,
    }
    on_s3 = Home(others[1].folder, services)
    on_s3.ok("restore", saved)
    on_s3.ok("up")
    assert settled(on_s3, TRAINED + ARRIVING)["trie"]["checksum"] == old["trie"]["checksum"]
    assert not (on_s3.folder / "images").exists()
