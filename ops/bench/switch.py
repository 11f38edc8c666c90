"""`sigma bench switch`: generations are switched and rolled back while queries and images flow. What does anybody notice?

Every candidate is new: the postings of the live generation with other suffixes, so that an answer's identifiers tell which
generation gave them. Its model is a copy's, or the stub.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np
import torch

from model.network.profiles import profile
from ops.bench.fleet import Fleet, Publisher, fleet, pictures, settle
from ops.bench.load_client import Asked, Asker
from ops.bench.query import texts
from ops.bench.stub import StubAssigner
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
from workers.repository.bulk_load import InitialLoad, bulk_append
from workers.repository.connection import Connection
from workers.repository.follower import TrieFollower
from workers.repository.generations import Generation
from workers.runtime.process import bind
from workers.runtime.services import Services
from workers.trainer.request import TrainRequest
from workers.trainer.seeding import arrival
from workers.trainer.trainer import train

GOAL = 1.5
"""p99 while generations switch, beside the quiet one."""

_TRAINED, _WARM, _PATIENCE_S = 240, 40, 240.0
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class SwitchConfig:
    """Rates a second. A quiet phase of `seconds` comes before one of the same length with all switches."""

    seconds: float = 60.0
    switches: int = 10
    rollbacks: int = 3
    queries: float = 20.0
    images: float = 20.0
    stub: bool = False
    seed: int = 0

    @property
    def events(self) -> list[str]:
        """What happens, in order: rollbacks are spread between the switches."""
        after = {
            round((turn + 1) * self.switches / (self.rollbacks + 1))
            for turn in range(self.rollbacks)
        }
        return [
            what
            for turn in range(1, self.switches + 1)
            for what in (["switch", "rollback"] if turn in after else ["switch"])
        ]


@dataclass(slots=True)
class _Moved:
    """A switch or rollback: how long the command took, and from its begin until queries were answered by the new generation."""

    what: str
    took_s: float
    until_served_s: float


@dataclass(slots=True)
class _Stage:
    """Everything that runs."""

    made: Fleet
    log: EventLog
    conn: Connection
    load: LoadAssigner
    url: str
    moved: list[_Moved] = field(default_factory=list)

    @property
    def services(self) -> Services:
        return self.made.services


def switch(config: SwitchConfig) -> dict[str, Any]:
    """Run it; the document says what failed, was mixed or is missing, and how long queries took."""
    with _stage(config) as stage:
        count = int(2 * config.seconds * config.images)
        arrivals = _arrivals(stage, config, _WARM + count)
        _warm_up(stage, arrivals[:_WARM])
        publisher = Publisher(stage.log, arrivals[_WARM:], 2 * config.seconds)
        asker = Asker(stage.url, texts(500, config.seed), config.queries)
        began = time.monotonic()
        publisher.start()
        with bar("quiet", 1):
            time.sleep(config.seconds)
        quiet_until = time.monotonic()
        _move_all(stage, config, quiet_until)
        publisher.join(_PATIENCE_S)
        ended = time.monotonic()
        asked = asker.stop()
        settled = settle(stage.made, stage.log, stage.conn, 0, _PATIENCE_S)
        document = {
            "model": "stub" if config.stub else "tiny",
            "settled": settled,
            "images": len(arrivals),
            **_findings(stage, asked, [event.image_id for event in arrivals]),
            **_timings(stage, asked, began, quiet_until, ended),
        }
    if not settled or document["failed"] or document["mixed"] or any(document["missing"].values()):
        raise WorkFailedError(f"a switch was noticed: {document}")
    return document


def copied(
    services: Services, conn: Connection, source: Generation, order: Sequence[int] | None = None
) -> int:
    """A new generation, still building, with the postings of another under other suffixes; its checkpoint is the same folder.

    With an `order`, each image is posted where the one at that place of the order was: a codebook gone wrong.
    """
    number = generations.create_generation(
        conn,
        source.shape,
        codebook_version=source.codebook_version,
        checkpoint_path=source.checkpoint_path,
    )
    with services.connect("copy") as own:
        held = TrieFollower.open(own, source.id).load()
    keys = held.embeddings.image_keys
    posted = (
        held.postings.image_keys
        if order is None
        else keys[np.asarray(order)][np.searchsorted(keys, held.postings.image_keys)]
    )
    primary = held.postings.suffixes >= 0
    load = InitialLoad(
        leaves=held.postings.leaves,
        posted_keys=posted,
        weights=held.postings.weights,
        # Few enough generations, and leaves full enough of room, that no suffix leaves its range.
        suffixes=np.where(primary, (held.postings.suffixes + number) % source.shape.suffixes, -1),
        image_keys=keys,
        embeddings=held.embeddings.embeddings,
        confidences=held.embeddings.confidences,
    )
    bulk_append(conn, number, load)
    return number


@contextmanager
def _stage(config: SwitchConfig) -> Iterator[_Stage]:
    """Services and workers of the benchmark, with one live generation."""
    with fleet(None, stub=config.stub) as made:
        log = made.services.open_log()
        with made.services.connect("bench") as conn:
            load = StubAssigner.of if config.stub else _trained(made, conn)
            with bind("127.0.0.1", 0) as free:
                port = int(free.getsockname()[1])
            for role in ("intake", "index", "query"):
                made.start(role, SIGMA_HTTP_PORT=str(port))
            yield _Stage(made, log, conn, load, f"http://127.0.0.1:{port}")
        log.close()


def _trained(made: Fleet, conn: Connection) -> LoadAssigner:
    """Train the tiny model for a moment, on a few scenes; all candidates share its weights."""
    tiny = profile("tiny")
    short = tiny.with_stages(
        tuple(replace(stage, epochs=stage.epochs / 4) for stage in tiny.stages)
    )
    seen = read_manifest(
        generate(CorpusConfig(_TRAINED, seed=3), made.folder / "seen", "train", lambda _: None)
    )
    done = train(made.services, seen, TrainRequest(short, adapt="never"), bar)
    made.generation = done.generation
    postings = made.services.settings.retrieval.postings
    trained = ModelAssigner.load(
        made.services.checkpoints, generations.get(conn, done.generation), postings
    )
    # As the command that promotes does: by default torch would take every core.
    torch.set_num_threads(1)

    def load(_: Generation) -> ImageAssigner:
        return trained

    return load


def _arrivals(stage: _Stage, config: SwitchConfig, count: int) -> list[ImageArrived]:
    if config.stub:
        return pictures(stage.made.folder, count, config.seed)
    manifest = generate(
        CorpusConfig(count, seed=3, start=_TRAINED),
        stage.made.folder / "flow",
        "stream",
        lambda _: None,
    )
    return [arrival(entry) for entry in read_manifest(manifest)]


def _warm_up(stage: _Stage, arrivals: Sequence[ImageArrived]) -> None:
    """Everybody has started, and some images are there to be found."""
    Publisher(stage.log, arrivals, 0).run()
    deadline = time.monotonic() + _PATIENCE_S
    while not (
        _answers(stage, stage.made.generation, named=False)
        and stage.made.left(stage.log, stage.conn) == 0
    ):
        if time.monotonic() > deadline:
            logs = [file.read_text()[-500:] for file in stage.made.folder.glob("*.log")]
            raise WorkFailedError(f"the workers did not start; their logs: {logs}")
        time.sleep(_LOOK_S)


def _move_all(stage: _Stage, config: SwitchConfig, began: float) -> None:
    """Switches and rollbacks, evenly over the second phase; on a slow machine later, for each generation has to answer for a while."""
    span = config.seconds / len(config.events)
    with bar("switches", len(config.events)) as progress:
        for number, what in enumerate(config.events):
            time.sleep(max(span / 2, began + (number + 0.5) * span - time.monotonic()))
            candidate = _candidate(stage) if what == "switch" else 0
            started = time.monotonic()
            if what == "switch":
                done = promote(stage.conn, candidate, stage.services.store, stage.load)
            else:
                done = rollback(stage.conn, stage.services.store, stage.load)
            took_s = time.monotonic() - started
            _until(stage, done.generation, named=False)
            stage.moved.append(_Moved(what, took_s, time.monotonic() - started))
            progress.update(1)
    time.sleep(span / 2)


def _candidate(stage: _Stage) -> int:
    """A new shadow generation that the query worker holds, as one that passed the gate would be."""
    live = generations.live(stage.conn)
    assert live is not None
    number = copied(stage.services, stage.conn, live)
    generations.set_state(stage.conn, number, "shadow")
    shadow = generations.get(stage.conn, number)
    CatchUp(stage.conn, shadow, stage.services.store, stage.load).run()
    _until(stage, number, named=True)
    return number


def _until(stage: _Stage, generation: int, *, named: bool) -> None:
    """Wait until the query worker answers from a generation: when it is asked for, or by itself."""
    deadline = time.monotonic() + _PATIENCE_S
    while not _answers(stage, generation, named=named):
        if time.monotonic() > deadline:
            raise WorkFailedError(
                f"the query worker does not answer from generation {generation} after {_PATIENCE_S:g} seconds"
            )
        time.sleep(_LOOK_S)


def _answers(stage: _Stage, generation: int, *, named: bool) -> bool:
    asked = {"query": "which generation is it", "k": 1} | (
        {"generation": generation} if named else {}
    )
    try:
        answer = httpx.post(f"{stage.url}/v1/query", json=asked, timeout=30)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.json()["generation"] == generation


def _findings(stage: _Stage, asked: Sequence[Asked], image_ids: Sequence[str]) -> dict[str, Any]:
    """What went wrong: failures, answers that are not of one generation, and arrivals that a receiving generation lacks."""
    places: dict[int, dict[str, tuple[int, ...]]] = {}
    for generation in generations.generations(stage.conn):
        found = stage.conn.execute(
            "SELECT image_id, leaf, suffix FROM posting JOIN image USING (image_key) WHERE generation = %s AND suffix IS NOT NULL",
            (generation.id,),
        )
        places[generation.id] = {
            one: tuple(generation.shape.identifier(leaf, suffix)) for one, leaf, suffix in found
        }
    failed = [one.error for one in asked if one.error]
    mixed = [
        one
        for one in asked
        if one.generation is not None
        and any(places[one.generation].get(i) != place for i, place in one.found)
    ]
    receiving = [one.id for one in generations.receiving(stage.conn)]
    return {
        "queries": len(asked),
        "failed": len(failed),
        "failures": sorted(set(failed))[:5],
        "mixed": len(mixed),
        "empty": sum(not one.found for one in asked if not one.error),
        "generations_that_answered": len({one.generation for one in asked} - {None}),
        "missing": {
            str(number): len(set(image_ids) - places[number].keys()) for number in receiving
        },
    }


def _timings(
    stage: _Stage, asked: Sequence[Asked], began: float, quiet_until: float, ended: float
) -> dict[str, Any]:
    """Milliseconds of queries in both phases, and seconds of the commands and until their first answer."""
    good = [one for one in asked if not one.error]
    phases = {
        "quiet_ms": [one.took_ms for one in good if began <= one.due < quiet_until],
        "switching_ms": [one.took_ms for one in good if quiet_until <= one.due < ended],
    }
    figures: dict[str, Any] = {
        name: {f"p{q}": round(float(np.percentile(took, q)), 2) for q in (50, 95, 99)}
        | {"queries": len(took)}
        for name, took in phases.items()
    }
    figures["p99_ratio"] = round(figures["switching_ms"]["p99"] / figures["quiet_ms"]["p99"], 3)
    figures["p99_ratio_goal"] = GOAL
    for what in ("switch", "rollback"):
        moved = [one for one in stage.moved if one.what == what]
        figures["switches" if what == "switch" else "rollbacks"] = len(moved)
        figures[f"{what}_s"] = {
            "command": round(max((one.took_s for one in moved), default=0.0), 3),
            "until_served": round(max((one.until_served_s for one in moved), default=0.0), 3),
        }
    return figures
