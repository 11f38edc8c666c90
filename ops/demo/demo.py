"""The demo: the main job end to end on embedded defaults, in a home of its own."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.network.base import ABOUT, SHIPPED
from model.network.profiles import profile
from ops.cli.progress_bar import bar
from ops.demo.live_stream import stream, wait_until_ready
from ops.embedded.control import down, up
from ops.embedded.database import open_services
from ops.evaluation import evaluate
from ops.phase_clock import PhaseClock
from ops.query_client import CommandLineQuery, ask_worker
from ops.scenes.corpus import CorpusConfig, fingerprints, generate
from ops.status import read_status
from schemas.errors import UsageError, WorkFailedError
from schemas.records import JsonObject, ManifestEntry
from schemas.settings import Settings
from stream.manifest import read_manifest
from workers.query.loading import live_generation, open_searcher
from workers.repository.connection import migrate
from workers.runtime.services import Services
from workers.trainer.request import TrainRequest
from workers.trainer.trainer import train

# File that marks a folder as a demo's: only such a folder is ever removed.
MARK = "demo.json"

# Fewer images cannot fill the codebook of the `tiny` profile.
LEAST_IMAGES = 64

EXAMPLE_QUERIES = 3
EXAMPLE_RESULTS = 3


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """How large the demo is: `images` in all, a seventh of them streamed without training."""

    images: int = 3_500
    seed: int = 0
    queries: int = 1_000
    """Most queries that are evaluated for seen and for unseen images each."""
    ablate: bool = False
    """Whether to measure one posting an image and analytic assignment too."""

    @property
    def streamed(self) -> int:
        """Images that training never sees."""
        return self.images // 7


def demo(settings: Settings, config: DemoConfig) -> JsonObject:
    """Render, train, stream, query and evaluate; return the document of `sigma demo --json`.

    All processes are stopped at the end.
    """
    if config.images < LEAST_IMAGES:
        raise UsageError(
            f"--images must be at least {LEAST_IMAGES} for a demo, got {config.images}"
        )
    own = replace(settings, home=settings.home.absolute() / "demo")
    clock = PhaseClock()
    clear(own)
    announcement = f"render {config.images:,} scenes that no earlier training has seen"
    with clock.phase("render", announcement):
        check_disjoint(config)
        seen, unseen = render(config, own.home)
    with open_services(own) as services:
        document = _run(services, config, clock, seen, unseen)
    seconds = clock.seconds | {"total": round(sum(clock.seconds.values()), 1)}
    return {
        "images": config.images,
        "seed": config.seed,
        "seconds": seconds,
        **document,
        "home": str(own.home),
    }


def _run(
    services: Services,
    config: DemoConfig,
    clock: PhaseClock,
    seen: Sequence[ManifestEntry],
    unseen: Sequence[ManifestEntry],
) -> JsonObject:
    """Run all phases that need a database."""
    with clock.phase("init", "start PostgreSQL, create the schema and the topics"):
        with services.connect("demo") as conn:
            migrate(conn)
        services.open_log().ensure_topics()
    announcement = f"train on {len(seen):,} images: codebook, then the paper's three stages"
    with clock.phase("train", announcement):
        trained = train(services, seen, TrainRequest(profile("tiny"), seed=config.seed), bar)
    with clock.phase("start", "start intake, index and query worker"):
        address = up(services.settings).url
        wait_until_ready(address)
        key = services.settings.access.api_key
    announcement = f"stream {len(unseen):,} unseen images one by one while queries are served"
    with clock.phase("stream", announcement):
        log = services.open_log()
        with services.connect("demo stream") as conn:
            streamed = stream(conn, log, address, key, unseen, _held_out(seen), bar)
        log.close()
    with clock.phase("evaluate", "evaluate: every held-out caption is a query"):
        figures, state = _evaluate(services, config, [*seen, *unseen])
    examples = [
        ask_worker(address, CommandLineQuery(text, EXAMPLE_RESULTS, None, "fused"), key)
        for text in _held_out(unseen[:EXAMPLE_QUERIES])
    ]
    down(services.settings)
    return {
        "training": trained.figures(),
        "stream": streamed.to_json(),
        "evaluate": figures,
        "status": state,
        "examples": examples,
    }


def _held_out(entries: Sequence[ManifestEntry]) -> list[str]:
    """Return each image's first caption that was not trained on."""
    return [entry.test_captions[0] for entry in entries]


def _evaluate(
    services: Services, config: DemoConfig, entries: Sequence[ManifestEntry]
) -> tuple[JsonObject, JsonObject]:
    """Return the documents of `sigma evaluate` and `sigma status`."""
    with services.connect("demo") as conn:
        searcher = open_searcher(services, live_generation(conn), with_encoder=True)
        evaluation = evaluate(
            searcher,
            conn,
            entries,
            limit=config.queries,
            seed=config.seed,
            ablate=config.ablate,
            progress=bar,
        )
        searcher.close()
        log = services.open_log()
        state = read_status(conn, log).to_json()
        log.close()
    return evaluation.to_json(), state


def clear(settings: Settings) -> None:
    """Remove an earlier demo. Only a folder that a demo has marked is touched."""
    home = settings.home
    if home.exists() and any(home.iterdir()) and not (home / MARK).is_file():
        raise UsageError(
            f"{home} holds something that is not a demo; move it away or set SIGMA_HOME"
        )
    down(settings)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / MARK).write_text("{}\n", encoding="utf-8")


def corpora(config: DemoConfig) -> tuple[CorpusConfig, CorpusConfig]:
    """Return the training corpus and the streamed one: two ranges of one numbering."""
    trained = config.images - config.streamed
    return (
        CorpusConfig(trained, seed=config.seed),
        CorpusConfig(config.streamed, seed=config.seed, start=trained),
    )


def check_disjoint(config: DemoConfig) -> None:
    """Refuse to go on when the shipped base was trained on a scene of the demo."""
    if not (SHIPPED / ABOUT).is_file():
        raise UsageError(f"{SHIPPED} holds no base; make one with: sigma base --out {SHIPPED}")
    description = json.loads((SHIPPED / ABOUT).read_text(encoding="utf-8"))
    learnt = fingerprints(CorpusConfig(**description["corpus"]))
    for corpus in corpora(config):
        shared = fingerprints(corpus) & learnt
        if shared:
            raise WorkFailedError(
                f"{len(shared)} demo scenes were in the base's training corpus; use another seed"
            )


def render(config: DemoConfig, home: Path) -> tuple[list[ManifestEntry], list[ManifestEntry]]:
    """Write both corpora as image files with manifests; return the entries, seen and unseen."""
    seen_corpus, unseen_corpus = corpora(config)
    folder = home / "corpus"
    with bar("render", config.images) as progress:
        seen = generate(seen_corpus, folder / "train", "train", progress.update)
        unseen = generate(unseen_corpus, folder / "stream", "test", progress.update)
    return read_manifest(seen), read_manifest(unseen)
