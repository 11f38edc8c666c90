"""`sigma bench load`: one query worker under ever more clients, then beyond what it can answer.

The worker is a real process with the tiny model, trained on a few scenes; the clients are another
process (`ops.bench.load_generator`). Both share the machine's cores.
"""

import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import psutil

from ops.bench.fleet import Fleet, open_fleet
from ops.bench.load_result import LoadBenchResult, MemorySample, PhaseResult
from ops.bench.load_tally import LoadPhase, LoadTally
from ops.bench.scene_training import TRAINING_IMAGES, train_on_scenes
from ops.embedded.isolation import ISOLATED_ENVIRONMENT, python_module
from schemas.errors import WorkFailedError
from workers.runtime.process import bind

# Clients of the closed loops.
CLIENTS = (1, 8, 64, 256, 4000)

# Those that keep the server busy and are not refused: what they get is the capacity.
_FULL_LOAD_CLIENTS = 64

# Most connections in open loops.
_CONNECTIONS = 4000

# The worst moment: so many times what can be answered.
_FLOOD = 10

# For long: at this many times the capacity, for this many times the length of other phases.
_OVERLOAD = 2
_OVERLOAD_LENGTH = 20

# Seconds of full load before the first phase: PyTorch's and the database's first calls are slow.
_WARM_UP_S = 5.0

# Pause between two phases, in which the line empties.
_PAUSE_S = 2.0

# Longest wait for the worker, which loads a model, and for its answer after a phase.
_START_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 10.0

_POLL_S = 0.2

# Seconds between looks at the server's memory.
_SAMPLE_S = 1.0

_RESPONSES = re.compile(
    r'^sigma_query_responses_total\{cause="[^"]*",status="(\d+)"\} (\S+)$', re.MULTILINE
)


def load(seconds: float, seed: int) -> LoadBenchResult:
    """Measure phases of so many seconds, and the long one of twenty times as many."""
    with open_fleet(None, stub=False) as fleet:
        train_on_scenes(fleet.services, fleet.folder)
        # The port is free again when the block ends; the worker takes it a moment later.
        with bind("127.0.0.1", 0) as listener:
            port = int(listener.getsockname()[1])
        fleet.start("query", SIGMA_HTTP_PORT=str(port))
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, fleet)
        phases = _measure(url, fleet.workers[0].process.pid, seconds, seed)
    return LoadBenchResult(phases, TRAINING_IMAGES, os.cpu_count() or 1, seed)


def _measure(url: str, pid: int, seconds: float, seed: int) -> list[PhaseResult]:
    measure_phase(url, pid, LoadPhase("warm-up", _WARM_UP_S, _FULL_LOAD_CLIENTS, seed=seed))
    results = []
    capacity = 0.0
    for clients in CLIENTS:
        phase = LoadPhase(f"{clients:,} clients", seconds, clients, seed=seed)
        results.append(measure_phase(url, pid, phase))
        if clients == _FULL_LOAD_CLIENTS:
            capacity = results[-1].answered_per_s
    for times, length in ((_FLOOD, 1), (_OVERLOAD, _OVERLOAD_LENGTH)):
        phase = LoadPhase(
            f"{times} times capacity", length * seconds, _CONNECTIONS, times * capacity, seed
        )
        results.append(measure_phase(url, pid, phase))
    return results


def measure_phase(url: str, pid: int, phase: LoadPhase) -> PhaseResult:
    """Let the clients of one phase ask the server at `url`, which is the process `pid`."""
    server = psutil.Process(pid)
    time.sleep(_PAUSE_S)
    before = _counted(url)
    cpu_before_s = _cpu_s(server)
    with _watch_memory(server) as memory:
        tally = _generate(url, phase)
    cpu_s = _cpu_s(server) - cpu_before_s
    counted = _counted(url) - before
    return PhaseResult(phase, tally, dict(counted), memory, cpu_s, _answers(url))


def _generate(url: str, phase: LoadPhase) -> LoadTally:
    done = subprocess.run(
        python_module("ops.bench.load_generator", url),
        input=json.dumps(phase.to_json()),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | ISOLATED_ENVIRONMENT,
    )
    return LoadTally.from_json(json.loads(done.stdout))


@contextmanager
def _watch_memory(server: psutil.Process) -> Iterator[list[MemorySample]]:
    """Sample the server's memory until the end of the block."""
    samples: list[MemorySample] = []
    ended = threading.Event()

    def watch() -> None:
        while True:
            samples.append(MemorySample(time.monotonic(), server.memory_info().rss))
            if ended.wait(_SAMPLE_S):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _counted(url: str) -> Counter[str]:
    """Read how many answers of each status the server has counted."""
    counted: Counter[str] = Counter()
    for status, count in _RESPONSES.findall(httpx.get(f"{url}/metrics").text):
        counted[status] += int(float(count))
    return counted


def _answers(url: str) -> bool:
    """Whether a query is answered within some seconds; refusals are tried again."""
    deadline_s = time.monotonic() + _ANSWER_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            response = httpx.post(f"{url}/v1/query", json={"query": "are you there"})
        except httpx.HTTPError:
            return False
        if response.status_code == 200:
            return True
        time.sleep(_POLL_S)
    return False


def _wait_until_ready(url: str, fleet: Fleet) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s and not fleet.ended():
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        time.sleep(_POLL_S)
    raise WorkFailedError(f"the query worker did not get ready: {fleet.log_tails()}")
