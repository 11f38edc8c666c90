"""What is installed from wheels works in any folder, without a checkout."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import Result

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "model", "stream", "workers", "ops")

NOT_SHIPPED = ("ops/client/", "ops/study/results/")
"""A distribution of its own, and the figures of studies."""

IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache", "models")

MOST_WHEEL_BYTES = 8_000_000

IMAGES, PATIENCE_S = 8, 120

HOSTILE = (
    "random",
    "json",
    "socket",
    "pickle",
    "ops",
    "schemas",
    "model",
    "stream",
    "workers",
    "torch",
    "psycopg",
)
"""Modules of ours, of the standard library and of packages that a user's folder may name so."""

SPAWNING = """
import multiprocessing, sys
import ops.cli.start

if __name__ == "__main__":
    ops.cli.start.main(["profiles", "list"])
    child = multiprocessing.get_context("spawn").Process(target=print, args=("from the child",))
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel is built from; building writes beside it."""
    folder = tmp_path_factory.mktemp("sources")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheels(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of both distributions."""
    folder = tmp_path_factory.mktemp("wheels")
    both = (sources, sources / "ops" / "client")
    pip("wheel", "--no-build-isolation", "-w", str(folder), *map(str, both))
    return folder


@pytest.fixture(scope="module")
def wheel(wheels: Path) -> Path:
    (built,) = wheels.glob("sigma_stream-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the wheels' contents; what they need is that of the tests' environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--target", str(folder), *map(str, wheels.glob("*.whl")))
    yield folder
    shutil.rmtree(folder)


def pip(command: str, *arguments: str) -> None:
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [sys.executable, "-m", "pip", command, *quiet, *arguments], check=True, timeout=240
    )


def test_every_file_of_the_packages_is_in_the_wheel_as_it_is(sources: Path, wheel: Path) -> None:
    wanted = {}
    for name in PACKAGES:
        for file in (sources / name).rglob("*"):
            place = file.relative_to(sources).as_posix()
            if file.is_file() and not place.startswith(NOT_SHIPPED):
                wanted[place] = file
    kinds = {Path(place).suffix for place in wanted}
    assert {".py", ".sql", ".json", ".safetensors", ".html", ".js", ".css", ".yaml"} <= kinds
    with zipfile.ZipFile(wheel) as contents:
        names = set(contents.namelist())
        assert sorted(wanted.keys() - names) == []
        for place, file in wanted.items():
            assert contents.read(place) == file.read_bytes(), place
    assert not any(name.startswith(NOT_SHIPPED) for name in names)
    assert wheel.stat().st_size <= MOST_WHEEL_BYTES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user stands: files there have the names of modules."""
    place = tmp_path_factory.mktemp("user")
    for name in HOSTILE:
        (place / f"{name}.py").write_text("raise SystemExit('a module of the working folder')\n")
    for name in ("model", "stream"):
        (place / name).mkdir()
        (place / name / "__init__.py").write_text("raise SystemExit('a package of this folder')\n")
    return place


def environment(installed: Path, folder: Path) -> dict[str, str]:
    """A user's: nothing of the tests', and homes of its own."""
    kept = {"PATH", "LANG", "OMP_NUM_THREADS", "TMPDIR"}
    mine = {name: value for name, value in os.environ.items() if name in kept}
    home = {"HOME": str(folder / "home"), "SIGMA_HOME": str(folder / "state")}
    return mine | home | {"PYTHONPATH": str(installed), "SIGMA_HTTP_PORT": "0"}


def sigma(installed: Path, folder: Path, *arguments: str) -> Result:
    """The console script, in the user's folder."""
    done = subprocess.run(
        [str(installed / "bin" / "sigma"), *arguments],
        cwd=folder,
        env=environment(installed, folder),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def test_commands_run_from_the_wheel_in_a_folder_full_of_other_modules(
    installed: Path, folder: Path
) -> None:
    def ok(*arguments: str) -> Result:
        done = sigma(installed, folder, *arguments)
        assert done.code == 0, done.err
        return done

    assert ok("--version").out.startswith("sigma ")
    # Processes that multiprocessing starts import the standard library's random, and ours.
    assert "manifest.jsonl" in ok("corpus", "--out", "new", "--images", str(IMAGES)).out
    try:
        # PostgreSQL with its keeper, migrations and named queries; all four workers.
        url = ok("up", "--json").json["url"]
        assert "<title>" in httpx.get(url).text
        assert httpx.get(f"{url}/openapi.json").status_code == 200
        # Pictures are decoded in a process of their own. Without a generation all of them wait.
        ok("ingest", "new/images")
        deadline = time.monotonic() + PATIENCE_S
        while (lag := ok("status", "--json").json["lag"])["generation"] < IMAGES:
            assert time.monotonic() < deadline, lag
            time.sleep(0.5)
    finally:
        ok("down")


def test_what_the_wheel_holds_is_what_runs(installed: Path, folder: Path) -> None:
    def run(*arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment(installed, folder),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    script = (
        "import model.network.base as base, schemas.compatibility as compatibility;"
        " print(base.__file__, base.SHIPPED.is_dir(), len(compatibility.schema_versions()) > 0)"
    )
    place = installed / "model" / "network" / "base.py"
    assert run("-P", "-c", script) == [f"{place} True True"]

    # A console script has no -P, and the processes that multiprocessing starts have none either.
    console_script = installed / "bin" / "spawning.py"
    console_script.write_text(SPAWNING)
    assert run(str(console_script))[-1] == "from the child"


def test_an_export_holds_the_wheels_that_were_installed(
    installed: Path, folder: Path, wheels: Path
) -> None:
    done = sigma(installed, folder, "deploy", "export", "there", "--json")
    assert done.code == 0, done.err
    packed = sorted((folder / "there" / "wheels").iterdir())
    assert [file.name for file in packed] == sorted(file.name for file in wheels.iterdir())
    for file in packed:
        with zipfile.ZipFile(file) as again, zipfile.ZipFile(wheels / file.name) as first:
            names = set(first.namelist())
            assert set(again.namelist()) == names
            for name in names:
                if not name.endswith("/RECORD"):
                    assert again.read(name) == first.read(name), name
    # Where a file of the installation was changed, it is not passed on.
    changed = installed / "ops" / "report" / "page.css"
    changed.write_text(changed.read_text() + "/* mine */")
    done = sigma(installed, folder, "deploy", "export", "changed")
    assert done.code == 2
    assert "page.css differs from what was installed" in done.err
