"""The code blocks of the docs run as they are printed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from ops.embedded.isolation import python_module
from schemas.events import ARRIVED, ImageArrived, decode
from schemas.service_settings import KafkaSettings, S3Settings
from stream.manifest import read_manifest
from tests.acceptance.conftest import RARE_JOBS, Home, MakeHome, settled
from tests.doc_blocks import blocks
from tests.services.servers import jvm

SEARCHABLE_WITHIN_S = 60.0

PATIENCE_S = 600

KEPT_HOME = "export SIGMA_HOME="
"""The pages talk about homes of their own; the test about a smaller one."""


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A working folder with modules named like our packages, which end whoever imports them."""
    folder = tmp_path / "crowded"
    for name in ("schemas", "model", "stream"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('{name} of the user')\n")
    for name in ("workers", "ops"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} of the user')\n")
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for the PATH with `sigma`, as an installation has it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_program(folder / "sigma", python_module("ops.cli"))
    return folder


def write_program(file: Path, command: list[str]) -> None:
    """A program of that name which runs the command."""
    file.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
    file.chmod(0o755)


def shell(line: str, folder: Path, tools: Path, environment: Mapping[str, str]) -> str:
    """Run a line or a block as a person would, and return what it prints."""
    path = f"{tools}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=folder,
        env=dict(environment) | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
    return done.stdout


def typed(blocks: list[str]) -> list[str]:
    """The commands of console blocks, without what they print."""
    lines = re.findall(r"^\$ (.*)$", "\n".join(blocks), re.MULTILINE)
    return [line for line in lines if not line.startswith(KEPT_HOME)]


@pytest.mark.timeout(900)
def test_the_readme_and_the_quickstart_run_as_they_are_printed_whatever_lies_in_the_folder(
    home: Home, crowded: Path, tools: Path
) -> None:
    # As people have it, the recall probe that runs by itself included.
    environment = home.environment(SIGMA_SCHEDULE=RARE_JOBS)
    readme, quickstart = blocks("README.md", "console"), blocks("docs/quickstart.md", "console")
    assert len(typed(quickstart)) >= 12
    for block in (readme, quickstart):
        for command in typed(block):
            assert shell(command, crowded, tools, environment).strip(), f"{command} prints nothing"
        shutil.rmtree(crowded / "new")
    assert (crowded / "recall.html").is_file()
    (line,) = blocks("docs/quickstart.md", "json")
    manifest = crowded / "manifest.jsonl"
    manifest.write_text(line)
    (crowded / "beach-1.jpg").touch()
    (entry,) = read_manifest(manifest)
    assert (entry.captions, len(entry.test_captions)) == (("a dog on a beach",), 1)


@pytest.mark.timeout(600)
def test_commands_and_filters_of_the_other_pages_run_as_they_are_printed(
    home: Home, tmp_path: Path, tools: Path
) -> None:
    picture = next((home.folder / "images").rglob("*.png"))
    shutil.copy(picture, tmp_path / "beach.jpg")
    (tmp_path / "broken.jpg").write_text("words\n")
    home.ok("up")
    assert home.sigma("ingest", tmp_path / "broken.jpg", "--wait").code == 2
    url = home.ok("status")["url"]
    environment = home.environment(SIGMA_URL=url)
    pages = [blocks("docs/http.md", "console"), blocks("docs/delivery.md", "console")]
    for command in typed([code for page in pages for code in page]):
        # Which partition an event is in, its key decides.
        (place,) = {letter["place"] for letter in home.ok("dead-letters", "list")["dead_letters"]}
        assert shell(command.replace("0:0", place), tmp_path, tools, environment).strip()
    (ask,) = blocks("docs/http.md", "bash")
    assert len(json.loads(shell(ask, tmp_path, tools, environment))["results"]) == 5
    (body,) = blocks("docs/http.md", "json")
    answer = httpx.post(f"{url}/v1/query", json=json.loads(body), timeout=60)
    assert answer.json()["results"] == []
    (event,) = blocks("docs/producing-events.md", "json")
    told = decode(ARRIVED, event.encode())
    assert isinstance(told, ImageArrived)
    assert sorted(told.metadata) == ["by", "price", "sold", "tags", "taken", "year"]
    backups = typed(blocks("docs/operations.md", "console"))
    *saving, checking, restoring = [line.replace("/backups", str(tmp_path)) for line in backups]
    for command in [*saving, checking]:
        assert shell(command, tmp_path, tools, environment).strip()
    home.ok("down")
    elsewhere = home.environment(SIGMA_HOME=str(tmp_path / "restored"))
    assert shell(restoring, tmp_path, tools, elsewhere).strip()


def run_python(code: str, **environment: str) -> str:
    """Run a block as a program of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(600)
def test_every_way_to_produce_makes_an_image_searchable_and_the_http_example_prints_images(
    make_home: MakeHome,
    full: dict[str, str],
    kafka: KafkaSettings,
    s3: S3Settings,
    tmp_path: Path,
    tools: Path,
) -> None:
    (code,) = blocks("docs/producing-events.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    home = make_home(full)
    picture = next((home.folder / "images").rglob("*.png"))
    shutil.copy(picture, tmp_path / "beach.jpg")
    home.ok("up", SIGMA_SOURCE_ROOTS=str(home.folder))
    before = home.ok("status")["images"]["indexed"]
    url = home.ok("status")["url"]
    environment = home.environment(
        SIGMA_KAFKA_BOOTSTRAP=",".join(kafka.bootstrap), IMAGE_URI=picture.as_uri(), SIGMA_URL=url
    )
    run_python(code, **environment)
    settled(home, before + 1, SEARCHABLE_WITHIN_S)
    # The tool of Kafka is a class of its jars.
    tool = [*jvm("kafka", tmp_path, memory="256m"), "org.apache.kafka.tools.ConsoleProducer"]
    write_program(tools / "kafka-console-producer.sh", tool)
    by_console, by_curl = blocks("docs/producing-events.md", "bash")
    shell(by_console, tmp_path, tools, environment)
    settled(home, before + 2, SEARCHABLE_WITHIN_S)
    shell(by_curl, tmp_path, tools, environment)
    settled(home, before + 3, SEARCHABLE_WITHIN_S)
    ask, put = blocks("docs/http.md", "python")
    lines = run_python(ask, SIGMA_URL=url).splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    searchable, *similar = run_python(put, SIGMA_URL=url, PICTURE=str(picture)).splitlines()
    assert searchable == "searchable"
    assert len(similar) == 3
    for line in similar:
        shown = httpx.get(line.split()[-1])
        assert shown.headers["content-type"] == "image/png"
