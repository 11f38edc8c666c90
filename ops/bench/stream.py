"""`sigma bench stream`: a runbook of insertions, deletions and searches, ours beside peers.

The protocol is that of the streaming track of big-ann-benchmarks: after every change all queries
are asked, and recall@10 is counted against exact search with the same vectors over what is there.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.network.base import SHIPPED
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.profiles import profile
from model.progress import Bar, Progress
from model.retrieval.recall import recall_at
from ops.bench.runbook import Operation, Runbook, RunbookStep, alive_after
from ops.bench.runbook_images import RunbookImages
from ops.bench.runbook_index import Assignments, ExactIndex, RunbookIndex, SigmaIndex, assign_all
from ops.bench.runbook_peers import peers
from ops.bench.runbook_result import IndexResult, RunbookResult, SearchFigures, recall_against
from ops.jobs.known_items import Rank, rank_of
from ops.study.learning import train_fully
from ops.study.shared_models import make_once, prepare_corpus
from ops.study.streams import StreamConfig
from schemas.records import BoolArray, IntArray
from schemas.retrieval_settings import RetrievalSettings
from schemas.training_record import TrainingRecord

# Neighbours that are asked for, as in the streaming track.
DEPTH = 10

# What the figures of the pages were made with.
DEFAULT_QUERIES = 100
DEFAULT_TRAINED = 1000


@dataclass(frozen=True, slots=True)
class StreamBenchConfig:
    """How a runbook is run."""

    settings: RetrievalSettings = RetrievalSettings()
    seed: int = 0
    with_peers: bool = True


def bench_stream(
    runbook: Runbook,
    images: RunbookImages,
    checkpoint: Checkpoint,
    trained: int,
    config: StreamBenchConfig,
    progress: Progress,
) -> RunbookResult:
    """Run the runbook on each index, one after the other. `RefuseToStartError` without a peer."""
    others = peers(images) if config.with_peers else []
    assignments = assign_all(checkpoint, images, config.settings)
    exact = ExactIndex(images, np.zeros(len(images), np.bool_))
    with (
        tempfile.TemporaryDirectory(prefix="sigma-stream-") as folder,
        progress("runbook steps", len(runbook.steps) * (len(others) + 3)) as bar,
    ):
        ours = _ours(checkpoint, images, assignments, config.settings, Path(folder))
        run = _Run(runbook, images, bar)
        nearest, yardstick = run.of(exact, None)
        results = [yardstick]
        for index in (*ours, *others):
            with closing(index):
                results.append(run.of(index, nearest)[1])
    steps: dict[Operation, int] = {
        name: runbook.count(name) for name in ("insert", "delete", "search")
    }
    assign_ms = 1e3 * assignments.seconds / max(1, len(images))
    return RunbookResult(
        runbook.name,
        steps,
        len(images),
        len(images.queries),
        trained,
        config.seed,
        assign_ms,
        tuple(results),
    )


def _ours(
    checkpoint: Checkpoint,
    images: RunbookImages,
    assignments: Assignments,
    settings: RetrievalSettings,
    folder: Path,
) -> list[RunbookIndex]:
    """Ours as it is, and with the similarity alone as its score: exact search knows no other."""
    by_cosine = replace(settings, fusion_weight=0.0)
    return [
        SigmaIndex("sigma", checkpoint, images, assignments, settings, folder),
        SigmaIndex("sigma, by cosine", checkpoint, images, assignments, by_cosine, folder),
    ]


# For each search step the neighbours of each query.
Neighbours = list[list[IntArray]]


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Runs indexes through a runbook."""

    runbook: Runbook
    images: RunbookImages
    bar: Bar

    def of(self, index: RunbookIndex, nearest: Neighbours | None) -> tuple[Neighbours, IndexResult]:
        """What the index found, and its figures beside the exact neighbours (None: its own)."""
        alive = np.zeros(len(self.images), np.bool_)
        found: Neighbours = []
        searches: list[SearchFigures] = []
        changes: list[tuple[Operation, int, float]] = []
        for number, step in enumerate(self.runbook.steps, start=1):
            seconds, own = _timed(index, step)
            alive = alive_after(alive, step)
            if own is None:
                changes.append((step.operation, len(step.ids), seconds))
            else:
                exact = own if nearest is None else nearest[len(found)]
                found.append(own)
                figures = self._recall(alive, own, exact)
                there = int(alive.sum())
                searches.append(SearchFigures(number, there, *figures, seconds, index.candidates))
            self.bar.update(1)
        result = IndexResult(
            index.name, index.setting, tuple(searches), tuple(changes), index.bytes
        )
        return found, result

    def _recall(
        self, alive: BoolArray, found: Sequence[IntArray], exact: Sequence[IntArray]
    ) -> tuple[float, float | None, float | None]:
        """Recall@10, and R@1 and R@10 of the queries whose image is there."""
        recall = recall_against(
            [each.tolist() for each in found], [each.tolist() for each in exact]
        )
        ranks: list[Rank] = []
        for own, image in zip(found, self.images.asked.tolist(), strict=True):
            if alive[image]:
                ranks.append(rank_of(own, image))
        if not ranks:
            return recall, None, None
        shares = recall_at(ranks)
        return recall, shares["R@1"], shares["R@10"]


def _timed(index: RunbookIndex, step: RunbookStep) -> tuple[float, list[IntArray] | None]:
    """Do a step; its seconds, and what a search found."""
    began = time.perf_counter()
    found: list[IntArray] | None = None
    if step.operation == "search":
        found = index.search(DEPTH)
    elif step.operation == "insert":
        index.insert(step.ids)
    else:
        index.delete(step.ids)
    return time.perf_counter() - began, found


def trained_generation(folder: Path, trained: int, seed: int) -> Checkpoint:
    """The `tiny` profile trained on as many scenes of its own, kept in the folder."""
    scenes = StreamConfig(
        "stationary", seed, first=trained, settling=1, sessions=1, arrivals=1, deletions=0
    )
    tiny = profile("tiny")

    def save(checkpoint_folder: Path) -> None:
        corpus = prepare_corpus(scenes, SHIPPED, tiny)
        generation = train_fully(SHIPPED, tiny, corpus, corpus.stream.arrivals(0), seed)
        save_checkpoint(replace(generation.checkpoint, record=TrainingRecord()), checkpoint_folder)

    return load_checkpoint(make_once(folder / f"tiny-{trained}-{seed}", save))
