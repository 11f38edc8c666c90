"""The query worker of `sigma bench scale`: a real process over two generations of any size.

How long it takes from the start of the process, imports among it, until it says that it is ready:
from nothing, and from its snapshot and what came since. And how soon the other generation answers
after a promotion and after a rollback, counted from the command.
"""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import psutil

from model.identifiers.codebook import CodebookConfig, fit_codebook
from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint, save_checkpoint
from model.network.parts import parts_from_base
from model.network.profiles import profile
from ops.bench.comparison import Comparison
from ops.bench.fleet import Fleet
from ops.bench.stub import StubAssigner
from ops.bench.trie import SHAPE
from ops.embedded.isolation import ISOLATED_ENVIRONMENT, python_module
from schemas.errors import WorkFailedError
from workers.generations.switching import promote, publish, rollback
from workers.repository import generations
from workers.repository.connection import Connection
from workers.runtime.process import bind

# Seconds from a process's start to ready, and from a command to the first answer of the other
# generation.
_READY_GOAL_S = 5.0
_SWITCH_GOAL_S = 1.0

# Promotions, and rollbacks after each.
_SWITCHES = 5

# Random embeddings that the codebook is fitted to; its quality does not matter here.
_CODEBOOK_SAMPLE = 2000

# Longest wait for a worker to be ready, or for a generation to answer.
_TIMEOUT_S = 600.0
_QUERY_TIMEOUT_S = 30.0

# Seconds between two looks: bounds the error of what is measured. A worker that starts is asked
# less often, because its answers take time of the processor too.
_POLL_S = 0.01
_START_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class UntrainedCheckpoint:
    """A `tiny` model with the paper's codes and an identifier vocabulary that was not trained."""

    folder: Path
    codebook: str
    """Its version."""

    @classmethod
    def write(cls, folder: Path, seed: int) -> "UntrainedCheckpoint":
        """Save one."""
        parts = parts_from_base(Base.load(SHIPPED), replace(profile("tiny"), shape=SHAPE))
        rng = np.random.default_rng(seed)
        sample = rng.standard_normal((_CODEBOOK_SAMPLE, parts.encoder.width)).astype(np.float32)
        codebook = fit_codebook(sample, CodebookConfig(SHAPE))
        save_checkpoint(Checkpoint(parts.sigma, codebook, parts.encoder), folder)
        return cls(folder, codebook.version)


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """How long a worker took to be ready."""

    wall_s: float
    cpu_s: float
    """Of its processor time, imports among it; what PostgreSQL takes is not."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A query worker that is ready."""

    fleet: Fleet
    url: str
    start: WorkerStart

    def wait_for(self, generation: int, *, named: bool) -> None:
        """Wait until a generation answers: queries that name it, or those that name none."""
        query: dict[str, object] = {"query": "is it there", "k": 1}
        if named:
            query["generation"] = generation
        with httpx.Client(timeout=_QUERY_TIMEOUT_S) as client:
            wait_until(
                lambda: _answering(client, self.url, query) == generation,
                f"generation {generation} to answer",
                self.fleet,
            )


def measure_worker(
    fleet: Fleet, conn: Connection, numbers: Sequence[int], images: int, change: Callable[[], None]
) -> list[Comparison]:
    """Start a worker without a snapshot, and after some `change` with one; then switch.

    `numbers` are two complete generations in state building; the first goes live.
    """
    store = fleet.services.store
    for number in numbers:
        publish(conn, number, store, StubAssigner.of(generations.get(conn, number)))
    with _worker(fleet) as worker:
        fresh = worker.start
        worker.wait_for(numbers[1], named=True)
    change()
    with _worker(fleet) as worker:
        resumed = worker.start
        rows = _compare_starts(resumed, fresh, images)
        worker.wait_for(numbers[1], named=True)
        return rows + _switch(worker, conn, numbers, images)


def wait_until(
    reached: Callable[[], bool], what: str, fleet: Fleet, poll_s: float = _POLL_S
) -> None:
    """Wait for something; `WorkFailedError` when a worker ended or it takes too long."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline_s and not fleet.ended():
        if reached():
            return
        time.sleep(poll_s)
    raise WorkFailedError(
        f"waited {_TIMEOUT_S:g} seconds, or until a worker ended, for {what}; the workers' logs:"
        f" {fleet.log_tails()}"
    )


@contextmanager
def _worker(fleet: Fleet) -> Iterator[Worker]:
    """A query worker that is ready; it has ended afterwards."""
    # The port is free again when the block ends; the worker takes it a moment later.
    with bind("127.0.0.1", 0) as listener:
        port = int(listener.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    began_s = time.monotonic()
    fleet.start("query", SIGMA_HTTP_PORT=str(port))
    own = fleet.workers[-1]
    process = psutil.Process(own.process.pid)
    with httpx.Client(timeout=_QUERY_TIMEOUT_S) as client:
        wait_until(lambda: _is_ready(client, url), "the query worker", fleet, _START_POLL_S)
    times = process.cpu_times()
    start = WorkerStart(time.monotonic() - began_s, times.user + times.system)
    yield Worker(fleet, url, start)
    fleet.stop(own)
    own.process.wait(_TIMEOUT_S)


def _compare_starts(resumed: WorkerStart, fresh: WorkerStart, images: int) -> list[Comparison]:
    name = f"query worker ready, {images:,}"
    goal = "goal with a snapshot"
    return [
        Comparison(f"{name}, snapshot", resumed.wall_s, _READY_GOAL_S, goal, "s", images),
        Comparison(f"{name}, snapshot, CPU", resumed.cpu_s, _READY_GOAL_S, goal, "CPU s", images),
        Comparison(f"{name}, from nothing", fresh.wall_s, _READY_GOAL_S, goal, "s", images),
        Comparison(f"{name}, from nothing, CPU", fresh.cpu_s, _READY_GOAL_S, goal, "CPU s", images),
    ]


def _switch(
    worker: Worker, conn: Connection, numbers: Sequence[int], images: int
) -> list[Comparison]:
    """Promote the second generation and roll back to the first, several times."""
    store = worker.fleet.services.store
    promoted, rolled_back, by_command = [], [], []
    for _ in range(_SWITCHES):
        began_s = time.monotonic()
        promote(conn, numbers[1], store, StubAssigner.of)
        worker.wait_for(numbers[1], named=False)
        promoted.append(time.monotonic() - began_s)
        began_s = time.monotonic()
        rollback(conn, store, StubAssigner.of)
        worker.wait_for(numbers[0], named=False)
        rolled_back.append(time.monotonic() - began_s)
    for number in (numbers[1], numbers[0]):
        began_s = time.monotonic()
        _roll_back_by_command(worker.fleet)
        worker.wait_for(number, named=False)
        by_command.append(time.monotonic() - began_s)
    rows = []
    for name, seconds in (
        ("promotion", promoted),
        ("rollback", rolled_back),
        ("rollback, sigma's process", by_command),
    ):
        for quantile, value in (("p50", statistics.median(seconds)), ("worst", max(seconds))):
            label = f"{name} to first answer, {images:,}, {quantile}"
            rows.append(Comparison(label, value, _SWITCH_GOAL_S, "goal", "s", len(seconds)))
    return rows


def _roll_back_by_command(fleet: Fleet) -> None:
    """`sigma generations rollback`, a process of its own."""
    services = fleet.services
    environment = {
        "SIGMA_HOME": str(services.settings.home),
        "SIGMA_DATABASE_URL": services.database_url,
    }
    subprocess.run(
        python_module("ops.cli", "generations", "rollback"),
        check=True,
        capture_output=True,
        env=os.environ | ISOLATED_ENVIRONMENT | environment,
    )


def _is_ready(client: httpx.Client, url: str) -> bool:
    with suppress(httpx.HTTPError):
        return client.get(f"{url}/readyz").status_code == 200
    return False


def _answering(client: httpx.Client, url: str, query: dict[str, object]) -> int | None:
    """The generation that answers a query; None when none does."""
    with suppress(httpx.HTTPError):
        response = client.post(f"{url}/v1/query", json=query)
        if response.status_code == 200:
            generation: int = response.json()["generation"]
            return generation
    return None
