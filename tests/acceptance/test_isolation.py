"""A user's own files never stand in for ours."""

import subprocess
from pathlib import Path

import pytest

from ops.embedded.isolation import python_module
from tests.acceptance.conftest import Home

NAMES = ("schemas", "model", "stream", "workers", "ops")


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A working folder with modules named like our packages, which end whoever imports them."""
    folder = tmp_path / "crowded"
    folder.mkdir()
    for name in NAMES[:3]:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise SystemExit('{name} of the user')\n")
    for name in NAMES[3:]:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} of the user')\n")
    return folder


def test_workers_started_from_a_folder_with_an_ops_py_and_a_model_folder_are_ours(
    home: Home, crowded: Path
) -> None:
    def sigma(*arguments: str) -> str:
        done = subprocess.run(
            python_module("ops.cli", *arguments),
            cwd=crowded,
            env=home.environment(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    sigma("up")
    answer = sigma("query", "a red circle", "-k", "3")
    assert len(answer.splitlines()) == 3
    # The decoding process of the intake worker is started the same way.
    picture = next((home.folder / "images").rglob("*.png"))
    (crowded / "picture.png").write_bytes(picture.read_bytes())
    assert "1 are searchable" in sigma("ingest", "picture.png", "--wait")
    sigma("down")
