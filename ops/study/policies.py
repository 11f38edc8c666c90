"""Policies of maintenance: what is done to the index at the end of a session."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from model.drift.monitors import ArrivalWindow, DriftReference, examine, fit_reference
from model.identifiers.codebook import pack_all
from model.identifiers.recluster import ReclusterConfig, keep_codes, recluster_within_budget
from model.network.checkpoint import Checkpoint, load_checkpoint
from model.network.profiles import Profile
from ops.study.index import Corpus, Index
from ops.study.learning import Trained, refresh, train_fully
from schemas.records import BoolArray, FloatArray, IntArray
from schemas.settings import RetrievalSettings

PERIOD = 5
"""Sessions between two runs of a periodic policy."""
LOOK = 64
"""Newest arrivals that the monitors look at."""
EXPECTED_RUN, REPLAYS = 1000.0, 500
"""Looks between two false alarms, and drift-free replays that calibrate them."""


@dataclass(slots=True)
class State:
    """A policy's index as the sessions go by."""

    corpus: Corpus
    profile: Profile
    base: Path
    first: Path
    """Checkpoint of the model that all policies of a seed begin with."""
    folder: Path
    beams: int
    index: Index
    trained: BoolArray
    """(N,) images that the model was trained on."""
    alive: BoolArray
    """(N,)"""
    fresh: list[int] = field(default_factory=list)
    """Arrivals since the last upkeep, newest last: what the monitors look at."""
    reference: DriftReference | None = None
    """What is normal for the generation; made when the monitors first look."""
    born: int = 1
    """Session in which the generation began to take arrivals."""
    due: int | None = None
    """Session of the second refresh after an alarm."""

    @property
    def numbers(self) -> IntArray:
        """Images alive, ascending."""
        return np.flatnonzero(self.alive).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What a policy did in a session: CPU seconds, the share of identifiers that moved among those that had one, and why."""

    action: str = ""
    cpu_s: float = 0.0
    moved: float = 0.0
    alarms: tuple[str, ...] = ()


Policy = Callable[[State, int], Upkeep]


def never(state: State, session: int) -> Upkeep:
    """Nothing is ever done; the monitors look all the same."""
    return Upkeep(alarms=_alarms(state))


def recluster_only(state: State, session: int) -> Upkeep:
    """A re-clustered codebook every few sessions, the same weights."""
    return _timed(state, "recluster", _recluster) if session % PERIOD == 0 else Upkeep()


def periodic(state: State, session: int) -> Upkeep:
    """A refresh every few sessions."""
    return _timed(state, "refresh", _refresh) if session % PERIOD == 0 else Upkeep()


def on_drift(state: State, session: int) -> Upkeep:
    """A refresh when a monitor raises an alarm, and a second one `PERIOD` sessions later; what is normal is learnt anew each time.

    The alarm comes with the first images of a shift: too few to learn it from, and too late to wait for more before anything is done.
    """
    alarms = _alarms(state)
    if not alarms and state.due != session:
        return Upkeep()
    done = _timed(state, "refresh", _refresh)
    state.reference, state.born = None, session
    state.due = session + PERIOD if alarms else None
    return replace(done, alarms=alarms)


def full(state: State, session: int) -> Upkeep:
    """Everything is trained anew: the upper bound."""
    return _timed(state, "full", _full)


POLICIES: dict[str, Policy] = {
    "never": never,
    "recluster": recluster_only,
    "periodic": periodic,
    "drift": on_drift,
    "full": full,
}


def window_of(index: Index, numbers: IntArray) -> ArrivalWindow:
    """What the monitors see of images, posted or not."""
    corpus, shape = index.corpus, index.engine.shape
    posted = index.codes[numbers[0], 0] >= 0 if len(numbers) else False
    if posted:
        codes, confidences = index.codes[numbers], index.confidences[numbers]
    else:
        leaves = index.assign(numbers)
        codes = np.array([shape.unpack(one.postings[0].leaf) for one in leaves], dtype=np.int64)
        confidences = np.array([one.confidence for one in leaves], dtype=np.float32)
    embeddings = corpus.embeddings[numbers]
    analytic = index.checkpoint.codebook.encode(embeddings)
    loads = index.engine.trie.primaries.load[pack_all(codes, shape)].astype(np.int64)
    return ArrivalWindow(
        codes,
        embeddings,
        confidences,
        analytic[:, 0] == codes[:, 0],
        loads,
        np.empty(0, np.float32),
    )


def begin(
    corpus: Corpus, profile: Profile, base: Path, first: Path, folder: Path, beams: int
) -> State:
    """The state before the first session: the first images trained on and posted."""
    checkpoint = load_checkpoint(first)
    numbers = corpus.stream.arrivals(0)
    index = Index(checkpoint, corpus, folder, RetrievalSettings(beams=beams))
    index.load(numbers, checkpoint.codebook.encode(corpus.embeddings[numbers]))
    known = np.zeros(len(corpus.embeddings), dtype=np.bool_)
    known[numbers] = True
    return State(corpus, profile, base, first, folder, beams, index, known.copy(), known.copy())


def _alarms(state: State) -> tuple[str, ...]:
    """Monitors that alarm at the newest arrivals."""
    if len(state.fresh) < LOOK:
        return ()
    if state.reference is None:
        stream = state.corpus.stream
        normal = window_of(state.index, stream.settling(state.born))
        state.reference = fit_reference(
            normal,
            state.profile.shape,
            seed=stream.config.seed,
            window=LOOK,
            expected_run=EXPECTED_RUN,
            replays=REPLAYS,
        )
    found = examine(
        state.reference, window_of(state.index, np.array(state.fresh[-LOOK:], dtype=np.int64))
    )
    return tuple(one.monitor for one in found if one.alarm)


def _timed(state: State, action: str, work: Callable[[State], Trained]) -> Upkeep:
    """Train, then a new index with the codes that came out. CPU time of the posting counts, as a new generation needs it."""
    began = time.process_time()
    before = state.index.codes.copy()
    done = work(state)
    fresh = Index(done.checkpoint, state.corpus, state.folder, RetrievalSettings(beams=state.beams))
    fresh.load(done.numbers, done.codes)
    state.index.close()
    state.index = fresh
    state.fresh.clear()
    moved = (before[done.numbers] != done.codes).any(1)
    return Upkeep(action, time.process_time() - began, float(moved.mean()))


def _full(state: State) -> Trained:
    done = train_fully(
        state.base, state.profile, state.corpus, state.numbers, state.corpus.stream.config.seed
    )
    state.trained[done.numbers] = True
    return done


def _recluster(state: State) -> Trained:
    """Images move whose own best codes do not last, as in `sigma train --recluster`."""
    numbers, checkpoint = state.numbers, state.index.checkpoint
    embeddings: FloatArray = state.corpus.embeddings[numbers]
    own = checkpoint.codebook.encode(embeddings)
    codebook, config = recluster_within_budget(
        checkpoint.codebook, embeddings, ReclusterConfig(seed=state.corpus.stream.config.seed)
    )
    kept = keep_codes(own, embeddings, codebook, config)
    codes = np.where((kept != own).any(axis=1)[:, None], kept, state.index.codes[numbers])
    return Trained(Checkpoint(checkpoint.sigma, codebook, checkpoint.encoder), numbers, codes)


def _refresh(state: State) -> Trained:
    """Identifiers stay: new images learn those that the model gave them, which it finds easier than the codebook's."""
    numbers, checkpoint = state.numbers, state.index.checkpoint
    seed = state.corpus.stream.config.seed
    done = refresh(
        checkpoint,
        checkpoint.codebook,
        state.corpus,
        numbers,
        state.index.codes[numbers],
        state.trained[numbers],
        seed,
    )
    state.trained[numbers] = True
    return done
