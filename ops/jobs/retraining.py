"""Retraining: the jobs that make a candidate generation. The trainer is a process of its own, which a job starts and waits for."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.embedded.isolation import ISOLATED_ENVIRONMENT
from schemas.errors import WorkFailedError
from workers.generations.retiring import drop, refused_by_gate
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.training_data import claim_trainer, release_trainer, untrained_images
from workers.runtime.services import Services

Figures = dict[str, Any]

_PAUSE_S = 0.5
_PATIENCE_S = 60.0
"""How long a trainer whose job died may take to end: it notices at once, and its connection with it."""

_NICE = 10
"""Priority of the trainer: queries and arrivals come first."""

_TOLD = (
    "mode",
    "parent",
    "images",
    "stages",
    "evaluations",
    "recluster",
    "seconds",
    "cpu_seconds",
    "failure",
)


def retrain(services: Services, conn: Connection) -> Figures:
    """A candidate with fresher weights: by refresh, or in full where the settings say so. It is promoted by its gate, not here."""
    if services.settings.retrain == "full":
        return _candidate(services, conn, "retrain", ["--from-store"])
    return _nothing_new(conn) or _candidate(services, conn, "retrain", ["--refresh"])


def recluster(services: Services, conn: Connection) -> Figures:
    """A candidate with a codebook fitted to what is in the store now, the weights as they are."""
    return _nothing_new(conn) or _candidate(services, conn, "recluster", ["--recluster"])


def _nothing_new(conn: Connection) -> Figures:
    """Why there is nothing to make a candidate from; empty when there is."""
    live = generations.live(conn)
    if generations.unfinished(conn) is not None:
        return {}
    if live is None:
        return {
            "generation": None,
            "why": "no generation is live; train the first one with: sigma train --manifest F",
        }
    if not untrained_images(conn, live.id):
        return {
            "generation": None,
            "why": f"generation {live.id} was trained on every image with captions",
        }
    return {}


def _candidate(services: Services, conn: Connection, name: str, how: Sequence[str]) -> Figures:
    """Train, or go on with what a run that died has left, and return the figures of the generation."""
    _wait_for_trainer(conn)
    live = generations.live(conn)
    waiting = [found for found in generations.generations(conn) if found.state == "shadow"]
    for one in [found for found in waiting if refused_by_gate(found, live)]:
        # It would be assigned every arrival for ever, and nobody asks for it.
        drop(conn, services.checkpoints, one.id)
        waiting.remove(one)
    if waiting:
        return _figures(waiting[-1]) | {
            "why": f"generation {waiting[-1].id} is a candidate already and waits for its gate"
        }
    left = generations.unfinished(conn)
    resumed = left is not None and left.config.training.corpus == "store"
    before = max((found.id for found in generations.generations(conn)), default=0)
    log = services.home / "logs" / f"{name}.log"
    code = _run(services, ["--resume"] if resumed else how, log)
    made = (
        left
        if resumed
        else next((found for found in generations.generations(conn) if found.id > before), None)
    )
    if code or made is None:
        raise WorkFailedError(
            f"the training ended with exit code {code}: {_last_line(log)}; its log is {log}"
        )
    return _figures(generations.get(conn, made.id)) | {"resumed": resumed}


def command(processes: int, how: Sequence[str]) -> list[str]:
    """The command line of a trainer, under torch's launcher when there are several processes."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
        if processes > 1
        else ["-m"]
    )
    return [
        "nice",
        "-n",
        str(_NICE),
        sys.executable,
        *launcher,
        "ops.cli",
        "train",
        *how,
        "--stop-with-parent",
        "--json",
    ]


def _run(services: Services, how: Sequence[str], log: Path) -> int:
    """One trainer, from start to end; it ends with this process, which holds the other end of its standard input."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = (
        os.environ
        | ISOLATED_ENVIRONMENT
        | {
            "SIGMA_HOME": str(services.home),
            "SIGMA_DATABASE_URL": services.database_url,
        }
    )
    with (
        log.open("ab") as file,
        subprocess.Popen(
            command(services.settings.training_processes, how),
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=environment,
        ) as process,
    ):
        try:
            return process.wait()
        finally:
            # Reached early only by an interruption: the work can be resumed.
            process.terminate()


def _wait_for_trainer(conn: Connection) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not claim_trainer(conn):
        if time.monotonic() > deadline:
            raise WorkFailedError(
                "another training runs on this database, and there can be one at a time; wait for its end or stop it"
            )
        time.sleep(_PAUSE_S)
    release_trainer(conn)


def _figures(found: Generation) -> Figures:
    config = found.config.to_json()
    return {
        "generation": found.id,
        "state": found.state,
        **{name: config[name] for name in _TOLD if name in config},
    }


def _last_line(log: Path) -> str:
    lines = [
        line
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith("sigma: ")
    ]
    return lines[-1].removeprefix("sigma: ") if lines else "it left no message"
