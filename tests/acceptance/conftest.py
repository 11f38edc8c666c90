"""One small trained generation for all whole-flow tests, made by the real commands.

Each test works on a copy of its home.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ops.embedded.database import open_services
from ops.scenes.corpus import CorpusConfig, generate
from ops.status import read_status
from schemas.records import JsonObject
from schemas.service_settings import KafkaSettings, S3Settings
from schemas.settings import Settings
from stream.images.s3 import S3ImageStore

TRAINED, STREAMED = 240, 500

RARE_JOBS = "retrain=off; recluster=off"
"""A schedule: tests run on Sundays too, and nobody expects a training in the background."""

SCHEDULE = f"{RARE_JOBS}; recall-probe=off"
"""A schedule without the probe that each new home runs at once: it loads a third model and asks it
200 queries."""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Home:
    """One installation's state and the command line working on it."""

    folder: Path
    services: Mapping[str, str] = field(default_factory=dict)
    """Settings that point at real services; none means embedded."""

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SIGMA_")}
        settings = {"SIGMA_HOME": str(self.folder), "SIGMA_SCHEDULE": SCHEDULE}
        return kept | settings | dict(self.services) | extra

    def sigma(self, *arguments: str | Path, timeout: float = 240, **extra: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "ops.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(**extra),
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str | Path, **extra: str) -> Any:
        done = self.sigma(*arguments, "--json", **extra)
        assert done.code == 0, done.err[-2000:]
        return done.json


@contextmanager
def watched(home: Home) -> Iterator[Callable[[], JsonObject]]:
    """The status of a home without its processes' alarms, read again at every call.

    In this process: the command takes a second of processor time, which matters where tests poll.
    """
    with (
        open_services(Settings.from_environment(home.environment())) as services,
        services.connect("test") as conn,
        closing(services.open_log()) as log,
    ):
        yield lambda: read_status(conn, log).to_json()


def settled(home: Home, indexed: int, timeout_s: float = 120) -> JsonObject:
    """The status once that many images are indexed and nothing waits."""
    deadline = time.monotonic() + timeout_s
    with watched(home) as status:
        while True:
            found = status()
            if found["images"]["indexed"] == indexed and found["images"]["pending"] == 0:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images to train on in `train`, images that arrive later in `stream`."""
    folder = tmp_path_factory.mktemp("corpus")
    generate(CorpusConfig(TRAINED, seed=11), folder / "train", "train", lambda _: None)
    generate(
        CorpusConfig(STREAMED, seed=11, start=TRAINED), folder / "stream", "test", lambda _: None
    )
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A home with one live generation, its database stopped.

    Where several processes share the tests, the first one trains.
    """
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    made, home = shared / "trained", Home(shared / "training")
    with (shared / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            done = home.ok(
                "train", "--manifest", corpus / "train" / "manifest.jsonl", "--adapt", "never"
            )
            assert done["state"] == "live"
            assert done["images"] == TRAINED
            home.folder.rename(made)
    return made


def copied(trained: Path, folder: Path, services: Mapping[str, str]) -> Home:
    """A copy of the trained home, by `cp`, which keeps the owner that PostgreSQL insists on."""
    subprocess.run(["cp", "-a", str(trained), str(folder)], check=True)
    return Home(folder, services)


MakeHome = Callable[..., Home]


@pytest.fixture
def make_home(tmp_path: Path, trained: Path) -> Iterator[MakeHome]:
    """Copies of the trained home; what runs in them is stopped at the end."""
    made: list[Home] = []

    def make(services: Mapping[str, str] | None = None) -> Home:
        made.append(copied(trained, tmp_path / f"home{len(made)}", services or {}))
        return made[-1]

    yield make
    for home in made:
        home.sigma("down")
        shutil.rmtree(home.folder, ignore_errors=True)


@pytest.fixture
def home(make_home: MakeHome) -> Home:
    """A copy of the trained home, nothing running."""
    return make_home()


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Iterator[Home]:
    """A copy for all tests of a module that change nothing, nothing running."""
    home = copied(trained, tmp_path_factory.mktemp("idle") / "home", {})
    yield home
    shutil.rmtree(home.folder, ignore_errors=True)


@pytest.fixture
def running(home: Home) -> Home:
    """The same with all processes up."""
    home.ok("up")
    return home


def full_services(kafka: KafkaSettings, s3: S3Settings, trained: Path) -> dict[str, str]:
    """Settings of the real broker and S3 store, which holds the training images afterwards."""
    store = S3ImageStore(s3)
    store.create_bucket()
    for file in (trained / "images").rglob("*.png"):
        store.put(file.read_bytes())
    return {
        "SIGMA_KAFKA_BOOTSTRAP": ",".join(kafka.bootstrap),
        "SIGMA_S3_ENDPOINT": f"{'https' if s3.secure else 'http'}://{s3.endpoint}",
        "SIGMA_S3_ACCESS_KEY": s3.access_key,
        "SIGMA_S3_SECRET_KEY": s3.secret_key,
        "SIGMA_S3_BUCKET": s3.bucket,
    }


@pytest.fixture
def full(request: pytest.FixtureRequest, trained: Path) -> dict[str, str]:
    """Settings of the full mode: Kafka and S3, and the home's own PostgreSQL."""
    return full_services(request.getfixturevalue("kafka"), request.getfixturevalue("s3"), trained)


@pytest.fixture(params=["embedded", "full"])
def anywhere(request: pytest.FixtureRequest, make_home: MakeHome) -> Home:
    """All processes up, once on embedded defaults and once against real services."""
    home = make_home(request.getfixturevalue("full") if request.param == "full" else None)
    home.ok("up")
    return home
