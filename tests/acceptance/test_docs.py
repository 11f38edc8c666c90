"""The code blocks of the docs run as they are printed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ops.embedded.isolation import python_module
from schemas.settings import KafkaSettings, S3Settings
from tests.acceptance.conftest import RARE_JOBS, Home, MakeHome, settled

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SEARCHABLE_WITHIN_S = 60.0


def blocks(page: str, kind: str) -> list[str]:
    """Code blocks of one kind, in the order of the page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [code for language, code in BLOCK.findall(text) if language == kind]


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


def test_the_quickstart_runs_from_its_first_command_to_its_last_whatever_lies_in_the_folder(
    home: Home, crowded: Path
) -> None:
    commands = []
    for block in blocks("quickstart.md", "console"):
        commands += re.findall(r"^\$ sigma (.*)$", block, re.MULTILINE)
    assert len(commands) >= 12
    # The page talks about the demo's home; the test about a smaller one.
    for command in commands:
        done = subprocess.run(
            python_module("ops.cli", *shlex.split(command)),
            cwd=crowded,
            # As people have it, the recall probe that runs by itself included.
            env=home.environment(SIGMA_SCHEDULE=RARE_JOBS),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"sigma {command}: {done.stderr[-2000:]}"
        assert done.stdout.strip(), f"sigma {command} prints nothing"
    assert (crowded / "recall.html").is_file()


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
def test_the_producer_in_ten_lines_makes_an_image_searchable_and_the_http_example_prints_images(
    make_home: MakeHome, full: dict[str, str], kafka: KafkaSettings, s3: S3Settings
) -> None:
    (code,) = blocks("producing-events.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    home = make_home(full)
    picture = next((home.folder / "images").rglob("*.png"))
    home.ok("up", SIGMA_SOURCE_ROOTS=str(home.folder))
    before = home.ok("status")["images"]["indexed"]
    run_python(code, SIGMA_KAFKA_BOOTSTRAP=",".join(kafka.bootstrap), IMAGE_URI=picture.as_uri())
    settled(home, before + 1, SEARCHABLE_WITHIN_S)
    url = home.ok("status")["url"]
    ask, put = blocks("http.md", "python")
    lines = run_python(ask, SIGMA_URL=url).splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    searchable, *similar = run_python(put, SIGMA_URL=url, PICTURE=str(picture)).splitlines()
    assert searchable == "searchable"
    assert len(similar) == 3
    for line in similar:
        shown = httpx.get(line.split()[-1])
        assert shown.headers["content-type"] == "image/png"
