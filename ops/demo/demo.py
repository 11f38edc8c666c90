"""The demo: the main job end to end on embedded defaults, in a home of its own."""

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from model.network.base import ABOUT, SHIPPED
from model.network.profiles import profile
from ops import ingestion as ingest
from ops.cli.progress_bar import bar
from ops.embedded.control import down, up
from ops.embedded.database import open_services
from ops.evaluation import evaluate
from ops.scenes.corpus import CorpusConfig, fingerprints, generate
from ops.status import read_status
from schemas.errors import UsageError, WorkFailedError
from schemas.records import ManifestEntry
from schemas.settings import Settings
from stream.manifest import read_manifest
from workers.query.searcher import live_generation, open_searcher
from workers.repository.connection import migrate
from workers.runtime.services import Services
from workers.trainer.trainer import TrainRequest, train

MARK = "demo.json"
LEAST_IMAGES = 64
_SHOWN = 3
_PATIENCE_S = 60.0
_PAUSE_S = 0.04
"""Between two arrivals: a steady stream of at most 25 images a second."""


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """How much: `images` in all, a seventh of them streamed without training; at most `queries` of each split are evaluated."""

    images: int = 3_500
    seed: int = 0
    queries: int = 1_000
    ablate: bool = False

    @property
    def streamed(self) -> int:
        """Images that training never sees."""
        return self.images // 7


@dataclass(slots=True)
class _Clock:
    """Seconds of each phase, announced as they begin. Mutable, lives as long as one demo."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, what: str) -> Iterator[None]:
        print(f"── {what}", file=sys.stderr, flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def demo(settings: Settings, config: DemoConfig) -> dict[str, Any]:
    """Render, train, stream, query, evaluate. Returns the document of `sigma demo --json`; the services are stopped again."""
    if config.images < LEAST_IMAGES:
        raise UsageError(
            f"a demo needs at least {LEAST_IMAGES} images, found {config.images}; raise --images"
        )
    home = settings.home.absolute() / "demo"
    own = replace(settings, home=home)
    clock = _Clock()
    clear(own)
    with clock.phase(
        "render", f"render {config.images:,} scenes that no earlier training has seen"
    ):
        check_disjoint(config)
        seen, unseen = render(config, home)
    with open_services(own) as found:
        with (
            clock.phase("init", "start PostgreSQL, create the schema and the topics"),
            found.connect("demo") as conn,
        ):
            migrate(conn)
            found.open_log().ensure_topics()
        with clock.phase(
            "train", f"train on {len(seen):,} images: codebook, then the paper's three stages"
        ):
            trained = train(found, seen, TrainRequest(profile("tiny"), seed=config.seed), bar)
        with clock.phase("start", "start intake, index and query worker"):
            address = up(own).url
            wait_ready(address)
        with clock.phase(
            "stream", f"stream {len(unseen):,} unseen images one by one while queries are served"
        ):
            streamed = stream(found, address, unseen, [entry.test_captions[0] for entry in seen])
        with (
            clock.phase("evaluate", "evaluate: every held-out caption is a query"),
            found.connect("demo") as conn,
        ):
            searcher = open_searcher(found, live_generation(conn))
            figures = evaluate(
                searcher,
                [*seen, *unseen],
                limit=config.queries,
                seed=config.seed,
                ablate=config.ablate,
                progress=bar,
            )
            searcher.close()
            log = found.open_log()
            now = read_status(conn, log).to_json()
            log.close()
        examples = ask(address, [entry.test_captions[0] for entry in unseen[:_SHOWN]])
        down(own)
    return {
        "images": config.images,
        "seed": config.seed,
        "seconds": clock.seconds | {"total": round(sum(clock.seconds.values()), 1)},
        "training": trained.figures,
        "stream": streamed,
        "evaluate": figures,
        "status": now,
        "examples": examples,
        "home": str(home),
    }


def clear(settings: Settings) -> None:
    """Remove the demo of last time. Only a folder that a demo has marked is touched."""
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
    """The training corpus and the streamed one: one numbering, two ranges."""
    kept = config.images - config.streamed
    return CorpusConfig(kept, seed=config.seed), CorpusConfig(
        config.streamed, seed=config.seed, start=kept
    )


def check_disjoint(config: DemoConfig) -> None:
    """Refuse to go on when the shipped base has seen a scene of the demo."""
    if not (SHIPPED / ABOUT).is_file():
        raise UsageError(f"{SHIPPED} holds no base; make one with: sigma base --out {SHIPPED}")
    made = CorpusConfig(**json.loads((SHIPPED / ABOUT).read_text(encoding="utf-8"))["corpus"])
    learnt = fingerprints(made)
    for corpus in corpora(config):
        if shared := fingerprints(corpus) & learnt:
            raise WorkFailedError(
                f"{len(shared)} demo scenes were in the base's training corpus; use another seed"
            )


def render(config: DemoConfig, home: Path) -> tuple[list[ManifestEntry], list[ManifestEntry]]:
    """Write both corpora as image files with manifests; returns their entries."""
    manifests = []
    with bar("render", config.images) as progress:
        for name, corpus, split in zip(
            ("train", "stream"), corpora(config), ("train", "test"), strict=True
        ):
            manifests.append(generate(corpus, home / "corpus" / name, split, progress.update))
    seen, unseen = map(read_manifest, manifests)
    return seen, unseen


def wait_ready(address: str, timeout_s: float = 60.0) -> None:
    """Wait until the query worker is ready."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise WorkFailedError(
        f"the query worker at {address} is not ready after {timeout_s:g} seconds; see its log"
    )


def stream(
    found: Services, address: str, unseen: Sequence[ManifestEntry], texts: Sequence[str]
) -> dict[str, Any]:
    """Publish images one by one while a client asks queries all the time; wait until the last one is searchable."""
    asker = _Asker(address, texts)
    asker.start()
    log = found.open_log()
    with found.connect("demo stream") as conn, bar("stream", len(unseen)) as progress:
        published: list[ingest.Published] = []
        for entry in unseen:
            published.append(ingest.publish(found, conn, log, [entry], None, lambda _: None))
            time.sleep(_PAUSE_S)
        events = tuple(event for one in published for event in one.events)
        whole = ingest.Published(
            events,
            frozenset(),
            published[0].since,
            {entry.image_id: entry.path for entry in unseen},
        )
        outcome = ingest.wait(
            conn, whole, serving=True, timeout_s=_PATIENCE_S, tick=progress.update
        )
    log.close()
    return {
        "indexed": outcome.indexed,
        "rejected": list(outcome.rejected),
        "queries_meanwhile": asker.stop(),
    }


class _Asker(threading.Thread):
    """A client that asks one query after the other until it is stopped."""

    def __init__(self, address: str, texts: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._texts = texts
        self._done = threading.Event()
        self._took: list[float] = []
        self._failed = 0

    def run(self) -> None:
        with httpx.Client(timeout=30) as client:
            number = 0
            while not self._done.wait(0.05):
                started = time.monotonic()
                answer = client.post(
                    f"{self._address}/v1/query",
                    json={"query": self._texts[number % len(self._texts)]},
                )
                number += 1
                self._took.append((time.monotonic() - started) * 1000)
                self._failed += answer.status_code != 200

    def stop(self) -> dict[str, float]:
        """End, and tell how many were answered and how fast (milliseconds)."""
        self._done.set()
        self.join(30)
        took = sorted(self._took) or [0.0]
        return {
            "answered": len(self._took) - self._failed,
            "failed": self._failed,
            "p50_ms": round(took[len(took) // 2], 1),
        }


def ask(address: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    """A few queries with what they found."""
    return [
        httpx.post(f"{address}/v1/query", json={"query": text, "k": 3}, timeout=30).json()
        for text in texts
    ]
