"""Keys on one machine: who may open the port to everybody, and how `sigma query` sends its key."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import Home


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Home]:
    """A home without a generation; what runs in it is stopped at the end."""
    made = Home(tmp_path / "empty", {"SIGMA_HTTP_HOST": "0.0.0.0"})
    yield made
    made.sigma("down")


def environments(home: Home) -> list[bytes]:
    """The environment of each worker process of a home."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if f"SIGMA_HOME={home.folder}".encode() in environment:
                found.append(environment)
    return found


def test_i_serve_everybody_which_needs_keys_and_ask_with_mine(empty: Home) -> None:
    without = empty.sigma("up")
    assert without.code == 2
    assert len(without.err.splitlines()) == 1
    assert "SIGMA_API_KEYS must be set" in without.err
    made = empty.ok("keys", "new", "mine")
    mistaken = empty.sigma("up", SIGMA_API_KEYS=f"mine:read:{made['key']}")
    assert mistaken.code == 2
    assert made["key"] not in mistaken.err
    home = Home(empty.folder, {"SIGMA_HTTP_HOST": "0.0.0.0", "SIGMA_API_KEYS": made["entry"]})
    started = home.ok("up", SIGMA_API_KEY=made["key"])
    assert "no generation is live" in started["problem"]
    assert httpx.get(f"{started['url']}/healthz").status_code == 200
    nobody = home.sigma("query", "red")
    assert nobody.code == 2
    assert "SIGMA_API_KEY" in nobody.err
    # It goes to the worker of this machine, whatever proxy the environment names.
    proxy = {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    known = home.sigma("query", "red", SIGMA_API_KEY=made["key"], **proxy)
    assert known.code == 1
    assert "no generation is live" in known.err
    running = environments(home)
    assert len(running) >= 4
    assert not any(made["key"].encode() in environment for environment in running)
    logs = "".join(file.read_text() for file in (home.folder / "logs").iterdir())
    assert made["key"] not in logs
