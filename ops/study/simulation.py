"""The simulation of one policy on one stream, session by session.

Each session has arrivals, deletions, upkeep and queries.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.retrieval.recall import recall_at
from ops.jobs.known_items import Rank
from ops.study.policies import POLICIES
from ops.study.streams import later_share
from ops.study.study_config import StudyConfig, study_profile
from ops.study.study_corpus import StudyCorpus
from ops.study.study_index import exact_ranks
from ops.study.study_runs import BackwardTransfer, PolicyRun, RecallFigures, SessionResult
from ops.study.study_state import StudyState
from schemas.records import DoubleArray, IntArray

# The k of R@k: answers have ten images.
_CUTOFFS = (1, 5, 10)

# Of stored recall figures: finer than one image of a session.
_DECIMALS = 4


def simulate(
    config: StudyConfig, corpus: StudyCorpus, policy: str, base: Path, first: Path
) -> PolicyRun:
    """Run all sessions of a stream under a policy.

    `first` is the checkpoint trained on the stream's first images, `base` what a full training
    begins with.
    """
    stream = corpus.stream
    with tempfile.TemporaryDirectory(prefix="sigma-study-") as scratch:
        state = StudyState.begin(corpus, study_profile(), base, first, Path(scratch), config.beams)
        # Whether each image was found in the session of its arrival, and at the end.
        own_session = _Hits.unknown(len(corpus.embeddings))
        own_session.note(stream.arrivals(0), _ask(state, stream.arrivals(0)))
        sessions = []
        for session in range(1, stream.config.sessions + 1):
            sessions.append(_run_session(config, state, own_session, policy, session))
        end = _Hits.unknown(len(corpus.embeddings))
        end.note(state.numbers, _ask(state, state.numbers))
        transfer = _backward_transfer(own_session, end, state.numbers)
        state.index.close()
    return PolicyRun(
        policy=policy,
        stream=stream.config.kind,
        seed=stream.config.seed,
        config=stream.config,
        beams=config.beams,
        sessions=tuple(sessions),
        backward_transfer=transfer,
    )


@dataclass(frozen=True, slots=True)
class _SearchRanks:
    """Ranks of the same images by our search and by exact dense search."""

    ours: list[Rank]
    dense: list[Rank]


@dataclass(frozen=True, slots=True, eq=False)
class _Hits:
    """Whether each image was among the first ten when it was asked for.

    (M,) 1 or 0, NaN for images not asked for yet. The arrays are filled session by session.
    """

    ours: DoubleArray
    dense: DoubleArray

    @classmethod
    def unknown(cls, images: int) -> "_Hits":
        return cls(np.full(images, np.nan), np.full(images, np.nan))

    def note(self, numbers: IntArray, ranks: _SearchRanks) -> None:
        self.ours[numbers] = [rank is not None for rank in ranks.ours]
        self.dense[numbers] = [rank is not None for rank in ranks.dense]


def _ask(state: StudyState, numbers: IntArray) -> _SearchRanks:
    """Ask for images by their held-out captions."""
    ours = state.index.ranks(numbers)
    dense = exact_ranks(state.corpus, state.numbers, numbers)
    return _SearchRanks(ours, dense)


def _backward_transfer(own_session: _Hits, end: _Hits, numbers: IntArray) -> BackwardTransfer:
    ours = end.ours[numbers] - own_session.ours[numbers]
    dense = end.dense[numbers] - own_session.dense[numbers]
    return BackwardTransfer(ours=float(np.mean(ours)), dense=float(np.mean(dense)))


def _run_session(
    config: StudyConfig, state: StudyState, own_session: _Hits, policy: str, session: int
) -> SessionResult:
    """Delete, append, maintain and ask; notes the arrivals' hits in `own_session`."""
    stream = state.corpus.stream
    arrivals = stream.arrivals(session)
    state.delete(stream.deleted[session - 1])
    # Old images are those of earlier sessions: this session's arrivals are measured apart.
    earlier = state.numbers
    state.append(arrivals)
    at_arrival = state.index.ranks(arrivals)
    upkeep = POLICIES[policy](state, session)
    new = _ask(state, arrivals)
    own_session.note(arrivals, new)
    sampled = _sample(earlier, config.old_queries, stream.config.seed, session)
    old = _ask(state, sampled)
    return SessionResult(
        session=session,
        later_share=later_share(stream.config.kind, session, stream.config.sessions),
        images=len(state.numbers),
        recall={
            "at_arrival": _recall(at_arrival),
            "new": _recall(new.ours),
            "old": _recall(old.ours),
            "dense_new": _recall(new.dense),
            "dense_old": _recall(old.dense),
        },
        upkeep=upkeep,
    )


def _sample(numbers: IntArray, count: int, seed: int, session: int) -> IntArray:
    """Draw at most `count` numbers, ascending."""
    # Seeded without the policy, so that all policies are asked the same queries.
    rng = np.random.default_rng((seed, session))
    return np.sort(rng.choice(numbers, min(count, len(numbers)), replace=False))


def _recall(ranks: list[Rank]) -> RecallFigures:
    rounded = {}
    for name, value in recall_at(ranks, _CUTOFFS).items():
        rounded[name] = round(value, _DECIMALS)
    return rounded
