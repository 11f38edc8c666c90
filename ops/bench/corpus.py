"""`sigma bench corpus`: train, stream, shift, refresh and ask on a corpus that somebody else made.

The product's own functions do all of it, in one process: training, assignment of arrivals, index,
search, refresh and switch. Workers and log are measured elsewhere (`ops.bench.steady`).
"""

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from model.progress import Progress
from model.retrieval.recall import recall_at
from model.training.adapt import AdaptConfig
from ops.bench.corpus_adapted import adapt_tiny
from ops.bench.corpus_manifests import BenchCorpus, Entries
from ops.bench.corpus_result import CorpusBenchResult, GroupRecall, StepTime
from ops.bench.corpus_sheet import SheetConfig, draw_answers
from ops.caption_evaluation import CaptionEvaluation, evaluate_captions
from ops.evaluation_queries import (
    DEPTH,
    EvaluationQueries,
    GalleryImage,
    queries_by_split,
    read_gallery,
)
from ops.jobs.known_items import Rank, rank_of
from schemas.errors import UsageError, WorkFailedError
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.generations.switching import promote
from workers.query.loading import live_generation, open_searcher
from workers.query.model_engine import ModelEngine
from workers.query.searcher import Searcher
from workers.repository.connection import Connection
from workers.runtime.services import Services
from workers.trainer.request import TrainRequest
from workers.trainer.seeding import RejectedEntry, seed_images
from workers.trainer.trainer import train

# Queries of one group: more would not make the intervals narrower than differences that matter.
DEFAULT_QUERIES = 1000


@dataclass(frozen=True, slots=True)
class CorpusBenchConfig:
    """How to train, and how much to ask."""

    training: TrainRequest
    """A training in full; its profile is named."""
    queries: int = DEFAULT_QUERIES
    """Most queries of one group, a seeded sample."""
    sheet: SheetConfig | None = None
    """A contact sheet to draw; None draws none."""
    adapted: AdaptConfig | None = None
    """How to adapt the encoder of `tiny`, to be measured beside; None does not."""


@dataclass(slots=True)
class StepClocks:
    """What each step took. Lives as long as one run."""

    steps: dict[str, StepTime] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Take the time of the block; one that fails has taken it too."""
        wall_s = time.monotonic()
        cpu_s = _cpu_seconds()
        try:
            yield
        finally:
            self.steps[name] = StepTime(time.monotonic() - wall_s, _cpu_seconds() - cpu_s)


def bench_corpus(
    services: Services, corpus: BenchCorpus, config: CorpusBenchConfig, progress: Progress
) -> CorpusBenchResult:
    """Run everything on an empty installation whose schema exists."""
    with services.connect("bench corpus") as conn:
        return _CorpusRun(services, conn, corpus, config, progress).result()


@dataclass(slots=True)
class _CorpusRun:
    """One run, with what it has measured so far."""

    services: Services
    conn: Connection
    corpus: BenchCorpus
    config: CorpusBenchConfig
    progress: Progress
    clocks: StepClocks = field(default_factory=StepClocks)
    rejected: dict[str, str] = field(default_factory=dict)
    groups: dict[str, GroupRecall] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def result(self) -> CorpusBenchResult:
        corpus = self.corpus
        self._train()
        self._arrive("stream", corpus.stream)
        self._arrive("shift", (*corpus.told, *corpus.untold))
        captions = self._ask_before()
        if corpus.told and self._refresh():
            self._ask_after()
        record = live_generation(self.conn).config.training
        return CorpusBenchResult(
            corpus=corpus.name,
            profile=record.profile or "",
            encoder=record.encoder_source or "own",
            seed=self.config.training.seed,
            images=self._counts(),
            rejected=self.rejected,
            groups=self.groups,
            captions=captions,
            steps=self.clocks.steps,
            notes=(*corpus.notes, *self.notes),
        )

    def _train(self) -> None:
        request = self.config.training
        with self.clocks.step("train"):
            trained = train(self.services, self.corpus.train, request, self.progress)
        self._reject(trained.rejected)

    def _arrive(self, step: str, entries: Entries) -> None:
        """Store images as arrivals are, and let the live generation assign them."""
        if not entries:
            return
        services = self.services
        load = assigner_loader(services.checkpoints, services.settings.retrieval)
        with self.clocks.step(step):
            seeded = seed_images(self.conn, services.store, services.limits, entries, self.progress)
            generation = live_generation(self.conn)
            CatchUp(self.conn, generation, services.store, load).run(progress=self.progress)
        self._reject(seeded.rejected)

    def _ask_before(self) -> CaptionEvaluation | None:
        with self._searcher() as searcher:
            with self.clocks.step("ask"):
                for group, entries in self._groups_before().items():
                    self._ask(searcher, group, entries)
            with self.clocks.step("captions"):
                captions = self._captions(searcher)
            if self.config.adapted is not None:
                with self.clocks.step("adapt tiny"):
                    self._measure_adapted(self.config.adapted)
            if self.config.sheet is not None:
                self._draw(searcher, self.config.sheet)
        return captions

    def _captions(self, searcher: Searcher[ModelEngine]) -> CaptionEvaluation | None:
        images = read_gallery(self.conn, searcher.generation.id)
        return evaluate_captions(
            searcher,
            self.conn,
            self.corpus.stream,
            images,
            limit=self.config.queries,
            seed=self.config.training.seed,
        )

    def _measure_adapted(self, config: AdaptConfig) -> None:
        images = read_gallery(self.conn, live_generation(self.conn).id)
        train = self.corpus.train
        adapted = adapt_tiny(self.services.store, images, train, config, self.progress)
        for group, entries in self._groups_before().items():
            for queries in self._queries(entries, images):
                found = adapted.recall(queries)
                self.groups[group] = replace(self.groups[group], adapted=found)

    def _groups_before(self) -> Mapping[str, Entries]:
        corpus = self.corpus
        return {"seen": corpus.train, "unseen": corpus.stream, "shift_before": corpus.untold}

    def _queries(
        self, entries: Entries, images: Sequence[GalleryImage]
    ) -> Sequence[EvaluationQueries]:
        """The queries of a group: all of its images are trained on, or none is."""
        config = self.config
        splits = queries_by_split(entries, images, config.queries, config.training.seed)
        return list(splits.values())

    def _draw(self, searcher: Searcher[ModelEngine], sheet: SheetConfig) -> None:
        draw_answers(searcher, self.conn, self.corpus.stream, sheet, self.config.training.seed)

    def _refresh(self) -> bool:
        """Train a refresh and make it live; False, with a note, when its stages do not pass."""
        services = self.services
        load = assigner_loader(services.checkpoints, services.settings.retrieval)
        with self.clocks.step("refresh"):
            training = self.config.training
            request = TrainRequest(mode="refresh", seed=training.seed, gates=training.gates)
            try:
                refreshed = train(services, None, request, self.progress)
            except (UsageError, WorkFailedError) as error:
                # The figures before it are worth keeping.
                self.notes.append(f"the refresh failed: {error}")
                return False
            promote(self.conn, refreshed.generation, services.store, load)
        return True

    def _ask_after(self) -> None:
        corpus = self.corpus
        with self._searcher() as searcher, self.clocks.step("ask again"):
            self._ask(searcher, "shift_after", corpus.untold)
            self._ask(searcher, "shift_told", corpus.told)
            self._ask(searcher, "unseen_after", corpus.stream)

    @contextmanager
    def _searcher(self) -> Iterator[Searcher[ModelEngine]]:
        generation = live_generation(self.conn)
        with closing(open_searcher(self.services, generation, with_encoder=True)) as searcher:
            yield searcher

    def _ask(self, searcher: Searcher[ModelEngine], group: str, entries: Entries) -> None:
        images = read_gallery(self.conn, searcher.generation.id)
        for queries in self._queries(entries, images):
            self.groups[group] = recall_of(searcher, queries)

    def _reject(self, rejected: Sequence[RejectedEntry]) -> None:
        for entry in rejected:
            self.rejected[entry.path] = entry.reason

    def _counts(self) -> dict[str, int]:
        """Images of each kind that are in the gallery."""
        corpus = self.corpus
        images = read_gallery(self.conn, live_generation(self.conn).id)
        known = {image.image_id for image in images}
        parts = {
            "trained": corpus.train,
            "arrived later": corpus.stream,
            "of the shift with captions": corpus.told,
            "of the shift without": corpus.untold,
        }
        counts: dict[str, int] = {}
        for name, entries in parts.items():
            counts[name] = sum(entry.image_id in known for entry in entries)
        return counts


def recall_of(searcher: Searcher[ModelEngine], queries: EvaluationQueries) -> GroupRecall:
    """Ask queries of the index, and of exact search with the same encoder."""
    engine = searcher.engine
    ours: list[Rank] = []
    dense: list[Rank] = []
    candidates: list[int] = []
    for batch in queries.batches():
        texts = list(batch.texts)
        answers = engine.answer(texts, DEPTH, searcher.settings)
        exact = engine.answer_exact(engine.checkpoint.encoder.embed_texts(texts), DEPTH)
        for position, image_key in enumerate(batch.image_keys):
            ours.append(rank_of(answers[position].image_keys, image_key))
            dense.append(rank_of(exact[position].image_keys, image_key))
            candidates.append(answers[position].candidates)
    return GroupRecall(
        queries=len(queries),
        gallery=engine.images,
        ours=recall_at(ours),
        dense=recall_at(dense),
        candidates=float(np.mean(candidates)),
    )


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
