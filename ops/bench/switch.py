"""`sigma bench switch`: generations are switched and rolled back while queries and images flow.

Every candidate is a copy of the live generation with other suffixes (`ops.bench.generation_copy`).
Its model is the live one's, or the stub.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx
import torch

from model.network.profiles import Profile, profile
from ops.bench.fleet import Fleet, open_fleet
from ops.bench.generation_copy import copy_generation
from ops.bench.load_client import LoadClient
from ops.bench.publisher import Publisher, noise_arrivals
from ops.bench.query_texts import query_texts
from ops.bench.scene_training import CORPUS_SEED, TRAINING_IMAGES, train_on_scenes
from ops.bench.settling import events_under_way, settle
from ops.bench.stub import StubAssigner
from ops.bench.switch_result import (
    Move,
    MoveKind,
    QueryLatency,
    SwitchBenchResult,
    audit_answers,
)
from ops.cli.progress_bar import bar
from ops.scenes.corpus import CorpusConfig, generate
from schemas.errors import WorkFailedError
from schemas.events import ImageArrived
from stream.log.event_log import EventLog
from stream.manifest import read_manifest
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import ImageAssigner, LoadAssigner
from workers.generations.model_assigner import ModelAssigner
from workers.generations.switching import promote, rollback
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.runtime.process import bind
from workers.trainer.seeding import arrival

# The query worker too, unlike in benchmarks of the stream alone.
ROLES = ("intake", "index", "query")

# Epochs of each stage, as a share of the profile's: what is measured is time.
_TRAINING_SHARE = 0.25

# Arrivals before the first query, so that there is something to find.
_WARM_UP_EVENTS = 40

# Different queries; they are repeated.
_QUERY_TEXTS = 500

# Longest wait for workers to start, or for a generation to answer: a model has to be loaded.
_TIMEOUT_S = 240.0

# Longest wait for one answer while a generation is awaited.
_QUERY_TIMEOUT_S = 30.0

# Seconds between two such queries: bounds the error of `Move.until_served_s`.
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class SwitchConfig:
    """How long, how often and under which load."""

    seconds: float = 60.0
    """Of the quiet phase, and of the one with all moves."""
    switches: int = 10
    rollbacks: int = 3
    queries: float = 20.0
    """A second."""
    images: float = 20.0
    """A second."""
    stub: bool = False
    """With the stub model instead of the tiny one."""
    seed: int = 0

    @property
    def moves(self) -> list[MoveKind]:
        """Switches and rollbacks in order: rollbacks are spread between the switches."""
        followed_by_rollback = set()
        for number in range(1, self.rollbacks + 1):
            followed_by_rollback.add(round(number * self.switches / (self.rollbacks + 1)))
        moves: list[MoveKind] = []
        for number in range(1, self.switches + 1):
            moves.append("switch")
            if number in followed_by_rollback:
                moves.append("rollback")
        return moves


@dataclass(frozen=True, slots=True)
class _Stage:
    """Everything that runs, and how to reach it."""

    fleet: Fleet
    log: EventLog
    conn: Connection
    load: LoadAssigner
    """Loads the model of any generation: they all share one."""
    url: str
    """Address of the query worker."""


def switch(config: SwitchConfig) -> SwitchBenchResult:
    """Run both phases; `WorkFailedError` when a user would have noticed a move."""
    with _open_stage(config) as stage:
        arrivals = _make_arrivals(stage.fleet, config)
        _warm_up(stage, arrivals[:_WARM_UP_EVENTS])
        result = _measure(stage, config, arrivals)
    if not result.passed:
        raise WorkFailedError(f"a switch was noticed: {result.to_json()}")
    return result


def _measure(
    stage: _Stage, config: SwitchConfig, arrivals: Sequence[ImageArrived]
) -> SwitchBenchResult:
    publisher = Publisher(stage.log, arrivals[_WARM_UP_EVENTS:], 2 * config.seconds)
    texts = query_texts(_QUERY_TEXTS, config.seed)
    client = LoadClient.start(stage.url, texts, config.queries)
    began_s = time.monotonic()
    publisher.start()
    with bar("quiet", 1):
        time.sleep(config.seconds)
    quiet_until_s = time.monotonic()
    moves = _make_moves(stage, config, quiet_until_s)
    publisher.join(_TIMEOUT_S)
    ended_s = time.monotonic()
    timings = client.stop()
    # No number of images to wait for: those that arrived are counted by the audit.
    settled = settle(stage.fleet, stage.log, stage.conn, 0, _TIMEOUT_S)
    image_ids = [event.image_id for event in arrivals]
    return SwitchBenchResult(
        model="stub" if config.stub else "tiny",
        settled=settled,
        images=len(arrivals),
        answers=audit_answers(stage.conn, timings, image_ids),
        quiet=QueryLatency.between(timings, began_s, quiet_until_s),
        switching=QueryLatency.between(timings, quiet_until_s, ended_s),
        moves=moves,
    )


@contextmanager
def _open_stage(config: SwitchConfig) -> Iterator[_Stage]:
    """Services and workers of the benchmark, with one live generation."""
    with open_fleet(None, stub=config.stub) as fleet:
        log = fleet.services.open_log()
        with fleet.services.connect("bench") as conn:
            load = StubAssigner.of if config.stub else _train(fleet, conn)
            # The port is free again when the block ends. Another process could take it before the
            # query worker does; then the warm-up fails and says why.
            with bind("127.0.0.1", 0) as listener:
                port = int(listener.getsockname()[1])
            for role in ROLES:
                fleet.start(role, SIGMA_HTTP_PORT=str(port))
            yield _Stage(fleet, log, conn, load, f"http://127.0.0.1:{port}")
        log.close()


def _train(fleet: Fleet, conn: Connection) -> LoadAssigner:
    """Train the tiny model for a moment; all candidates share its weights."""
    result = train_on_scenes(fleet.services, fleet.folder, _short_profile())
    fleet.generation = result.generation
    services = fleet.services
    trained = ModelAssigner.load(
        services.checkpoints,
        generations.get(conn, result.generation),
        services.settings.retrieval,
    )
    # As the command that promotes does: by default torch takes every core.
    torch.set_num_threads(1)

    def load(_: Generation) -> ImageAssigner:
        return trained

    return load


def _short_profile() -> Profile:
    tiny = profile("tiny")
    stages = []
    for stage in tiny.stages:
        stages.append(replace(stage, epochs=stage.epochs * _TRAINING_SHARE))
    return tiny.with_stages(tuple(stages))


def _make_arrivals(fleet: Fleet, config: SwitchConfig) -> list[ImageArrived]:
    """Arrivals of the warm-up and of both phases."""
    count = _WARM_UP_EVENTS + int(2 * config.seconds * config.images)
    if config.stub:
        return noise_arrivals(fleet.folder, count, config.seed)
    corpus = CorpusConfig(count, seed=CORPUS_SEED, start=TRAINING_IMAGES)
    manifest = generate(corpus, fleet.folder / "flow", "stream", lambda _: None)
    return [arrival(entry) for entry in read_manifest(manifest)]


def _warm_up(stage: _Stage, arrivals: Sequence[ImageArrived]) -> None:
    """Let some images through, until all workers have started and queries are answered."""
    fleet = stage.fleet
    Publisher(stage.log, arrivals, 0).run()
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        if _is_live(stage, fleet.generation) and not events_under_way(stage.log, stage.conn):
            return
        time.sleep(_POLL_S)
    raise WorkFailedError(
        f"the workers did not start within {_TIMEOUT_S:g} seconds; their logs: {fleet.log_tails()}"
    )


def _make_moves(stage: _Stage, config: SwitchConfig, began_s: float) -> list[Move]:
    """Make all moves, evenly over the second phase.

    On a slow machine they come later, for each generation has to answer for a while.
    """
    kinds = config.moves
    span_s = config.seconds / len(kinds)
    moves = []
    with bar("switches", len(kinds)) as progress:
        for number, kind in enumerate(kinds):
            due_s = began_s + (number + 0.5) * span_s
            # At least half a span after the last move, so that its generation answers for a while.
            time.sleep(max(span_s / 2, due_s - time.monotonic()))
            moves.append(_switch_once(stage) if kind == "switch" else _roll_back_once(stage))
            progress.update(1)
    # The last generation answers for a while too.
    time.sleep(span_s / 2)
    return moves


def _switch_once(stage: _Stage) -> Move:
    candidate = _make_candidate(stage)
    started_s = time.monotonic()
    promote(stage.conn, candidate, stage.fleet.services.store, stage.load)
    return _await_move(stage, "switch", candidate, started_s)


def _roll_back_once(stage: _Stage) -> Move:
    started_s = time.monotonic()
    done = rollback(stage.conn, stage.fleet.services.store, stage.load)
    return _await_move(stage, "rollback", done.generation, started_s)


def _await_move(stage: _Stage, kind: MoveKind, generation: int, started_s: float) -> Move:
    """Wait until the new live generation answers; the command has just ended."""
    command_s = time.monotonic() - started_s
    _wait_for_answer(stage, generation, by_number=False)
    return Move(kind, command_s, time.monotonic() - started_s)


def _make_candidate(stage: _Stage) -> int:
    """A new shadow generation, loaded by the query worker, as one that passed the gate would be."""
    services = stage.fleet.services
    live = generations.live(stage.conn)
    assert live is not None
    number = copy_generation(services.connect, stage.conn, live)
    generations.set_state(stage.conn, number, "shadow")
    shadow = generations.get(stage.conn, number)
    CatchUp(stage.conn, shadow, services.store, stage.load).run()
    _wait_for_answer(stage, number, by_number=True)
    return number


def _wait_for_answer(stage: _Stage, generation: int, *, by_number: bool) -> None:
    """Wait until a generation answers: queries that name it, or those that name none."""
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        if by_number and _answering(stage, generation) == generation:
            return
        if not by_number and _is_live(stage, generation):
            return
        time.sleep(_POLL_S)
    raise WorkFailedError(
        f"the query worker did not answer from generation {generation} within {_TIMEOUT_S:g}"
        f" seconds; the workers' logs: {stage.fleet.log_tails()}"
    )


def _is_live(stage: _Stage, generation: int) -> bool:
    """Whether a generation answers queries that name none."""
    return _answering(stage, None) == generation


def _answering(stage: _Stage, named: int | None) -> int | None:
    """The generation that answers a query, which may name one; None when none answers."""
    query: dict[str, str | int] = {"query": "which generation answers", "k": 1}
    if named is not None:
        query["generation"] = named
    try:
        response = httpx.post(f"{stage.url}/v1/query", json=query, timeout=_QUERY_TIMEOUT_S)
    except httpx.HTTPError:
        return None
    if response.status_code != 200:
        return None
    generation: int = response.json()["generation"]
    return generation
