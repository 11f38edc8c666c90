"""Policies of maintenance: what is done to the index at the end of a session."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from model.identifiers.recluster import ReclusterConfig, keep_codes, recluster_within_budget
from model.network.checkpoint import Checkpoint
from ops.study.drift_alarms import raised_alarms
from ops.study.learning import StudyGeneration, refresh, train_fully
from ops.study.study_runs import Upkeep
from ops.study.study_state import StudyState

# Sessions between two actions of a periodic policy, and between the two refreshes of an alarm.
PERIOD = 5

# Maintains the index of a state at the end of a session, counted from 1.
Policy = Callable[[StudyState, int], Upkeep]

_MakeGeneration = Callable[[StudyState], StudyGeneration]


def never(state: StudyState, session: int) -> Upkeep:
    """Do nothing. The monitors look, so that the table can tell when they would have alarmed."""
    return Upkeep(alarms=raised_alarms(state))


def recluster_only(state: StudyState, session: int) -> Upkeep:
    """Re-cluster every few sessions; the weights stay."""
    if session % PERIOD:
        return Upkeep()
    return _replace_generation(state, "recluster", _recluster)


def periodic(state: StudyState, session: int) -> Upkeep:
    """Refresh every few sessions."""
    if session % PERIOD:
        return Upkeep()
    return _replace_generation(state, "refresh", _refresh)


def on_drift(state: StudyState, session: int) -> Upkeep:
    """Refresh when a monitor alarms, and once more `PERIOD` sessions later.

    The alarm comes with the first images of a shift, which are too few to learn it from; but to
    wait for more would leave new images hard to find until then.
    """
    alarms = raised_alarms(state)
    if not alarms and state.second_refresh != session:
        return Upkeep()
    upkeep = _replace_generation(state, "refresh", _refresh)
    # What is normal is learnt anew: the new generation was trained on the shifted images too.
    state.reference = None
    state.first_session = session
    state.second_refresh = session + PERIOD if alarms else None
    return replace(upkeep, alarms=alarms)


def full(state: StudyState, session: int) -> Upkeep:
    """Train everything anew in every session: meant as the upper bound."""
    return _replace_generation(state, "full", _train_fully)


# Policies by their name in run files and tables.
POLICIES: Mapping[str, Policy] = {
    "never": never,
    "recluster": recluster_only,
    "periodic": periodic,
    "drift": on_drift,
    "full": full,
}


def _replace_generation(state: StudyState, action: str, make: _MakeGeneration) -> Upkeep:
    """Make a new generation and post all images in it.

    The CPU time of the posting counts, because every new generation needs it.
    """
    # CPU time, not wall time: other runs of the study share the cores.
    began_s = time.process_time()
    codes_before = state.index.codes
    generation = make(state)
    state.replace_generation(generation)
    moved = (codes_before[generation.numbers] != generation.codes).any(axis=1)
    return Upkeep(action, time.process_time() - began_s, float(moved.mean()))


def _train_fully(state: StudyState) -> StudyGeneration:
    # Images deleted since stay marked as trained, but no refresh ever sees them.
    generation = train_fully(state.base, state.profile, state.corpus, state.numbers, state.seed)
    state.trained[generation.numbers] = True
    return generation


def _recluster(state: StudyState) -> StudyGeneration:
    """Move the images whose own best codes do not last, as `sigma train --recluster` does."""
    numbers = state.numbers
    old = state.index.checkpoint
    embeddings = state.corpus.embeddings[numbers]
    best_codes = old.codebook.encode(embeddings)
    codebook, config = recluster_within_budget(
        old.codebook, embeddings, ReclusterConfig(seed=state.seed)
    )
    # Moves are counted on the codebook's own codes. An image that the model assigned to other codes
    # keeps those unless its own best codes change.
    kept = keep_codes(best_codes, embeddings, codebook, config)
    moves = (kept != best_codes).any(axis=1)
    codes = np.where(moves[:, None], kept, state.index.codes[numbers])
    return StudyGeneration(Checkpoint(old.sigma, codebook, old.encoder), numbers, codes)


def _refresh(state: StudyState) -> StudyGeneration:
    """Train on new images; identifiers stay.

    New images keep the identifiers that the model generated, which it learns more easily than the
    codebook's (docs/experiments/refresh.md).
    """
    numbers = state.numbers
    generation = refresh(
        state.index.checkpoint,
        state.corpus,
        numbers,
        state.index.codes[numbers],
        state.trained[numbers],
        state.seed,
    )
    state.trained[numbers] = True
    return generation
