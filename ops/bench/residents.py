"""`sigma bench residents`: memory of a query worker that holds three generations of one encoder.

The worker is a real process with a live generation, a fallback and a candidate. The peer is the
same worker with generations whose encoders differ in a byte of one file: it loads one for each. The
model beside the encoder is the `tiny` one, untrained, for what is measured is the encoder.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import httpx
import numpy as np
import psutil

from model.identifiers.codebook import CodebookConfig, fit_codebook
from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint, save_checkpoint
from model.network.encoders.reader import open_encoder
from model.network.file_digests import write_digests
from model.network.parts import parts_from_base
from model.network.profiles import profile
from model.network.query_head import QuerySpace
from ops.bench.comparison import Comparison
from ops.bench.fleet import Fleet, open_fleet
from schemas.errors import WorkFailedError
from schemas.identifiers import IdentifierShape
from schemas.training_record import KEPT_ENCODER
from workers.repository import generations
from workers.repository.connection import Connection
from workers.runtime.process import bind

# Weights of the registry, which the profile `small` has.
DEFAULT_ENCODER = "efficientnet-minilm"

# Live, fallback and candidate: what a query worker holds while a retraining is looked at.
GENERATIONS = 3

# Random embeddings that the codebook is fitted to; its quality does not matter here.
_CODEBOOK_SAMPLE = 2000

# Longest wait for a worker to answer from a generation: it imports libraries and loads a model, and
# has a seventh of a core where others are busy.
_TIMEOUT_S = 900.0

# Longest wait for one answer.
_QUERY_TIMEOUT_S = 30.0

# Seconds between two looks.
_POLL_S = 0.2

_MIB = 1 << 20


class Sharing(Enum):
    """What the generations of a worker have in common."""

    ENCODER = "the encoder, shared"
    NOTHING = "an encoder for each"
    QUERY_HEAD = "a query head, no encoder"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Checkpoints of generations that differ in nothing but their folders."""

    folders: Sequence[Path]
    shape: IdentifierShape
    codebook: str
    """Its version."""


def residents(source: str, seed: int) -> list[Comparison]:
    """Compare the resident memory of workers, in MiB, by what their generations share.

    `source` is the name or the folder of a pretrained encoder.
    """
    found = {sharing: _worker_memory(source, seed, sharing) for sharing in Sharing}
    shared, apart, headed = (found[sharing] for sharing in Sharing)
    name = f"{GENERATIONS} generations"
    each, once = Sharing.NOTHING.value, Sharing.ENCODER.value
    return [
        Comparison(name, shared[-1], apart[-1], each, "MiB", GENERATIONS),
        Comparison(
            f"{name}, beyond the first",
            shared[-1] - shared[0],
            apart[-1] - apart[0],
            each,
            "MiB",
            GENERATIONS - 1,
        ),
        Comparison(f"{name} with a query head", headed[-1], shared[-1], once, "MiB", GENERATIONS),
    ]


def write_checkpoints(source: str, folder: Path, seed: int, sharing: Sharing) -> Checkpoints:
    """Write checkpoints of an untrained `tiny` model beside the encoder."""
    encoder = open_encoder(source)
    sigma = parts_from_base(Base.load(SHIPPED), profile("tiny")).sigma
    if sharing is Sharing.QUERY_HEAD:
        sigma.add_query_head(QuerySpace(encoder.width, encoder.scale))
    rng = np.random.default_rng(seed)
    sample = rng.standard_normal((_CODEBOOK_SAMPLE, encoder.width)).astype(np.float32)
    codebook = fit_codebook(sample, CodebookConfig(sigma.profile.shape))
    folders = [folder / str(number) for number in range(GENERATIONS)]
    save_checkpoint(Checkpoint(sigma, codebook, encoder), folders[0])
    for number, copy in enumerate(folders[1:], start=1):
        shutil.copytree(folders[0], copy)
        if sharing is Sharing.NOTHING:
            _make_unlike(copy / KEPT_ENCODER, number)
    return Checkpoints(folders, sigma.profile.shape, codebook.version)


def _worker_memory(source: str, seed: int, sharing: Sharing) -> Sequence[float]:
    """MiB of a worker with its first generation, and with one more each time."""
    with open_fleet(None, stub=False) as fleet, fleet.services.connect("bench") as conn:
        checkpoints = write_checkpoints(source, fleet.services.checkpoints, seed, sharing)
        with bind("127.0.0.1", 0) as listener:
            port = int(listener.getsockname()[1])
        fleet.start("query", SIGMA_HTTP_PORT=str(port))
        worker = psutil.Process(fleet.workers[0].process.pid)
        found = []
        for number, folder in enumerate(checkpoints.folders):
            generation = _put_in(conn, checkpoints, folder)
            # The last one stays a candidate, and the one before the live one the fallback.
            if number < GENERATIONS - 1:
                generations.promote(conn, generation)
            _wait_for_answer(fleet, f"http://127.0.0.1:{port}", generation)
            found.append(worker.memory_info().rss / _MIB)
    return found


def _make_unlike(folder: Path, number: int) -> None:
    """Give an encoder's folder digests of its own: a further file with other bytes."""
    (folder / "number.txt").write_text(f"{number}\n", encoding="utf-8")
    write_digests(folder)


def _put_in(conn: Connection, checkpoints: Checkpoints, folder: Path) -> int:
    """Register a generation without images as a candidate."""
    number = generations.create_generation(
        conn,
        checkpoints.shape,
        codebook_version=checkpoints.codebook,
        checkpoint_path=str(folder),
    )
    generations.set_state(conn, number, "shadow")
    return number


def _wait_for_answer(fleet: Fleet, url: str, generation: int) -> None:
    """Wait until the worker answers a query that names the generation."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    query = {"query": "is it loaded", "generation": generation}
    while time.monotonic() < deadline_s and not fleet.ended():
        with suppress(httpx.HTTPError):
            response = httpx.post(f"{url}/v1/query", json=query, timeout=_QUERY_TIMEOUT_S)
            if response.status_code == 200:
                return
        time.sleep(_POLL_S)
    raise WorkFailedError(
        f"the query worker did not answer from generation {generation} within {_TIMEOUT_S:g}"
        f" seconds; its log: {fleet.log_tails()}"
    )
