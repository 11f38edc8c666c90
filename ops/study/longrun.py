"""`sigma study longrun`: every policy on every stream and seed, a file a run, so that a stopped study goes on where it was."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.network.base import SHIPPED, Base
from model.network.checkpoint import save_checkpoint
from model.network.parts import parts_from_base
from model.network.profiles import Profile, profile
from model.progress import Progress
from model.retrieval.recall import recall_at
from model.training.adapt import AdaptConfig, adapt
from ops.study.index import Corpus, Ranks, corpus_of, exact_ranks, view_tokens
from ops.study.learning import train_fully
from ops.study.plots import plots
from ops.study.policies import POLICIES, State, begin
from ops.study.streams import KINDS, Kind, StreamConfig, draw_stream, later_share, wide_images
from ops.study.summary import summary, table
from schemas.errors import UsageError
from schemas.identifiers import IdentifierShape
from schemas.records import IntArray
from schemas.training_record import TrainingRecord

CUTOFFS = (1, 5, 10)
RUNS, MADE = "runs", "made"
"""Folders of the results, and of the models that the runs share."""
_BATCH = 32


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """The whole study. `wide` scenes of all words teach encoder, teacher and vision tower once (`views` image views each half)."""

    seeds: tuple[int, ...] = (0, 1, 2)
    kinds: tuple[Kind, ...] = KINDS
    policies: tuple[str, ...] = tuple(POLICIES)
    stream: StreamConfig = StreamConfig("stationary")
    beams: int = 20
    old_queries: int = 120
    wide: int = 6000
    contrastive_views: int = 60_000
    pretrain_views: int = 18_000

    def __post_init__(self) -> None:
        unknown = sorted(set(self.policies) - set(POLICIES))
        if unknown or not self.seeds or not self.kinds:
            raise UsageError(
                f"unknown policies {unknown} or no seeds or streams; policies are {', '.join(POLICIES)}"
            )

    @property
    def worlds(self) -> list[tuple[Kind, int]]:
        """A stream of a seed each."""
        return [(kind, seed) for seed in self.seeds for kind in self.kinds]


REDUCED = StudyConfig(
    seeds=(0,),
    kinds=("abrupt",),
    policies=("never", "recluster", "drift"),
    stream=StreamConfig("stationary", first=64, settling=60, sessions=4, arrivals=16, deletions=2),
    old_queries=32,
    wide=0,
)
"""What the tests run: the shipped base as it is, one seed, one stream, a few sessions."""


def study_profile() -> Profile:
    """The `tiny` profile for some hundreds of images: fewer leaves, and smaller batches, so that there are enough steps."""
    tiny = profile("tiny")
    memorize, comprehend, align = (replace(stage, batch=_BATCH) for stage in tiny.stages)
    stages = (
        memorize,
        replace(comprehend, epochs=0.25),
        replace(align, epochs=3, caption_replay=0.0),
    )
    refreshed = tuple(replace(stage, batch=_BATCH) for stage in tiny.refresh)
    return replace(
        tiny.with_stages(stages).with_refresh(refreshed), shape=IdentifierShape((8, 8, 4, 4), 64)
    )


def longrun(config: StudyConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Run what is missing below `folder` and return the summary of all runs there."""
    (folder / RUNS).mkdir(parents=True, exist_ok=True)
    missing = [
        world
        for world in config.worlds
        if any(not _file(folder, *world, policy).is_file() for policy in config.policies)
    ]
    if missing:
        _make(config, missing, folder, progress)
    return summary(runs_of(folder))


def _make(
    config: StudyConfig, missing: Sequence[tuple[Kind, int]], folder: Path, progress: Progress
) -> None:
    """Run these streams, one on each core."""
    work = folder / MADE
    base = _base(config, work, progress)
    with (
        progress("sessions", len(missing) * len(config.policies) * config.stream.sessions) as bar,
        ProcessPoolExecutor(
            os.cpu_count() or 1, mp_context=get_context("spawn"), initializer=_one_thread
        ) as pool,
    ):
        seeds = sorted({seed for _, seed in missing})
        list(
            pool.map(_first, [config] * len(seeds), seeds, [base] * len(seeds), [work] * len(seeds))
        )
        for done in pool.map(
            _world,
            *zip(*((config, kind, seed, base, folder) for kind, seed in missing), strict=True),
        ):
            bar.update(done)


def publish(document: dict[str, Any], folder: Path) -> None:
    """Write `summary.json`, `summary.md` and the plots of all runs of a folder."""
    (folder / "summary.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "summary.md").write_text(table(document), encoding="utf-8")
    plots(runs_of(folder), folder)


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """All runs that a folder holds."""
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((folder / RUNS).glob("*.json"))
    ]


def _one_thread() -> None:
    torch.set_num_threads(1)


def _base(config: StudyConfig, work: Path, progress: Progress) -> Path:
    """The base of the study: the shipped one, taught the later words too, unless `wide` is 0."""
    if not config.wide:
        return SHIPPED
    made = work / f"base-{config.wide}"
    if not made.is_dir():
        taught = adapt(
            Base.load(SHIPPED),
            wide_images(config.wide, 0, progress),
            AdaptConfig(config.contrastive_views, config.pretrain_views),
            progress,
        )
        with tempfile.TemporaryDirectory(dir=_made(work)) as aside:
            taught.save(Path(aside) / "base")
            (Path(aside) / "base").replace(made)
    return made


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _file(folder: Path, kind: str, seed: int, policy: str) -> Path:
    return folder / RUNS / f"{kind}-{seed}-{policy}.json"


def _corpus(config: StudyConfig, kind: Kind, seed: int, base: Path) -> Corpus:
    loaded = Base.load(base)
    stream = draw_stream(replace(config.stream, kind=kind, seed=seed))
    parts = parts_from_base(loaded, study_profile())
    visual = view_tokens(parts.sigma, stream.pixels, seed)
    return corpus_of(stream, parts.encoder, parts.teacher, visual)


def _first(config: StudyConfig, seed: int, base: Path, work: Path) -> Path:
    """The model of the first images, which all streams of a seed share."""
    folder = work / f"first-{seed}-{config.stream.first}"
    if not folder.is_dir():
        corpus = _corpus(
            replace(config, stream=replace(config.stream, sessions=1)), "stationary", seed, base
        )
        done = train_fully(base, study_profile(), corpus, corpus.stream.arrivals(0), seed)
        with tempfile.TemporaryDirectory(dir=_made(work)) as aside:
            made = replace(done.checkpoint, record=TrainingRecord())
            save_checkpoint(made, Path(aside) / "first")
            (Path(aside) / "first").replace(folder)
    return folder


def _world(config: StudyConfig, kind: Kind, seed: int, base: Path, folder: Path) -> int:
    """All policies on one stream; returns the sessions that were run."""
    corpus = _corpus(config, kind, seed, base)
    count = 0
    for policy in config.policies:
        path = _file(folder, kind, seed, policy)
        if not path.is_file():
            found = run_policy(config, corpus, policy, base, folder / MADE)
            aside = path.with_suffix(".part")
            aside.write_text(json.dumps(found) + "\n", encoding="utf-8")
            aside.replace(path)
        count += config.stream.sessions
    return count


def run_policy(
    config: StudyConfig, corpus: Corpus, policy: str, base: Path, work: Path
) -> dict[str, Any]:
    """One policy on one stream: what was measured in each session, and how each image fared from its own session to the end."""
    stream = corpus.stream
    scratch = Path(tempfile.mkdtemp(prefix="sigma-study-"))
    state = begin(
        corpus,
        study_profile(),
        base,
        work / f"first-{stream.config.seed}-{stream.config.first}",
        scratch,
        config.beams,
    )
    own = _Fates(len(corpus.embeddings))
    own.note(state, stream.arrivals(0))
    sessions = [
        _session(config, state, own, policy, session)
        for session in range(1, stream.config.sessions + 1)
    ]
    final = _Fates(len(corpus.embeddings))
    final.note(state, state.numbers)
    state.index.close()
    shutil.rmtree(scratch, ignore_errors=True)
    return {
        "stream": stream.config.kind,
        "seed": stream.config.seed,
        "policy": policy,
        "config": asdict(config.stream) | {"beams": config.beams},
        "sessions": sessions,
        "backward_transfer": {
            name: final.against(own, name, state.numbers) for name in ("ours", "dense")
        },
    }


class _Fates:
    """Whether each image was among the first ten, by our search and by exact dense search. Mutable: filled session by session."""

    def __init__(self, count: int) -> None:
        self.hits = {name: np.full(count, np.nan) for name in ("ours", "dense")}

    def note(self, state: State, numbers: IntArray) -> tuple[Ranks, Ranks]:
        """Ask for these images now."""
        ours, dense = state.index.ranks(numbers), exact_ranks(state.corpus, state.numbers, numbers)
        for name, ranks in (("ours", ours), ("dense", dense)):
            self.hits[name][numbers] = [rank is not None for rank in ranks]
        return ours, dense

    def against(self, earlier: "_Fates", name: str, numbers: IntArray) -> float:
        """Mean change of R@10 of images since their own session: backward transfer, forgetting where it is negative."""
        return float(np.mean(self.hits[name][numbers] - earlier.hits[name][numbers]))


def _session(
    config: StudyConfig, state: State, own: _Fates, policy: str, session: int
) -> dict[str, Any]:
    stream = state.corpus.stream
    gone, arrived = stream.deleted[session - 1], stream.arrivals(session)
    before = state.numbers[~np.isin(state.numbers, gone)]
    state.alive[gone] = False
    state.index.delete(gone)
    state.fresh = [number for number in state.fresh if state.alive[number]]
    state.index.append(arrived)
    state.alive[arrived] = True
    state.fresh += arrived.tolist()
    at_arrival = state.index.ranks(arrived)
    upkeep = POLICIES[policy](state, session)
    new, new_dense = own.note(state, arrived)
    asked = np.sort(
        np.random.default_rng((stream.config.seed, session)).choice(
            before, min(config.old_queries, len(before)), replace=False
        )
    )
    old, old_dense = state.index.ranks(asked), exact_ranks(state.corpus, state.numbers, asked)
    return {
        "session": session,
        "later_share": later_share(stream.config.kind, session, stream.config.sessions),
        "images": len(state.numbers),
        "at_arrival": _recall(at_arrival),
        "new": _recall(new),
        "old": _recall(old),
        "dense_new": _recall(new_dense),
        "dense_old": _recall(old_dense),
        **asdict(upkeep),
    }


def _recall(ranks: Iterable[int | None]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in recall_at(list(ranks), CUTOFFS).items()}
