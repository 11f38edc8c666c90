"""The code blocks of the docs run as they are printed."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ops.embedded.isolation import python_module
from schemas.settings import KafkaSettings, S3Settings
from tests.acceptance.conftest import RARE_JOBS, Home, MakeHome

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SEARCHABLE_WITHIN_S = 60.0


def blocks(page: str, kind: str) -> list[str]:
    """Code blocks of one kind, in the order of the page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [code for language, code in BLOCK.findall(text) if language == kind]


def test_the_quickstart_runs_from_its_first_command_to_its_last(home: Home, tmp_path: Path) -> None:
    commands = []
    for block in blocks("quickstart.md", "console"):
        commands += re.findall(r"^\$ sigma (.*)$", block, re.MULTILINE)
    assert len(commands) >= 12
    # The page talks about the demo's home; the test about a smaller one.
    for command in commands:
        done = subprocess.run(
            python_module("ops.cli", *shlex.split(command)),
            cwd=tmp_path,
            # As people have it, the recall probe that runs by itself included.
            env=home.environment(SIGMA_SCHEDULE=RARE_JOBS),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"sigma {command}: {done.stderr[-2000:]}"
        assert done.stdout.strip(), f"sigma {command} prints nothing"
    assert (tmp_path / "recall.html").is_file()


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


def test_the_http_example_prints_ranked_images(running: Home) -> None:
    (code,) = blocks("http.md", "python")
    url = running.ok("status")["url"]
    lines = run_python(code, SIGMA_URL=url).splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]


@pytest.mark.timeout(600)
def test_the_producer_in_ten_lines_makes_an_image_searchable(
    make_home: MakeHome, full: dict[str, str], kafka: KafkaSettings, s3: S3Settings
) -> None:
    (code,) = blocks("producing-events.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    home = make_home(full)
    picture = next((home.folder / "images").rglob("*.png"))
    home.ok("up", SIGMA_SOURCE_ROOTS=str(home.folder))
    before = home.ok("status")["images"]["indexed"]
    run_python(code, SIGMA_KAFKA_BOOTSTRAP=",".join(kafka.bootstrap), IMAGE_URI=picture.as_uri())
    deadline = time.monotonic() + SEARCHABLE_WITHIN_S
    while home.ok("status")["images"]["indexed"] == before and time.monotonic() < deadline:
        time.sleep(0.2)
    status = home.ok("status")
    assert status["images"]["indexed"] == before + 1, json.dumps(status)
