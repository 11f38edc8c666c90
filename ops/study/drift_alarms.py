"""Drift alarms in a study: the product's monitors, on fewer images."""

import numpy as np

from model.drift.monitors import ArrivalWindow, DriftReference, examine, fit_reference
from model.identifiers.codebook import pack_all
from ops.study.study_index import StudyIndex
from ops.study.study_state import StudyState
from schemas.records import IntArray

# Newest arrivals that the monitors look at: those of four sessions.
WINDOW_IMAGES = 64

# Looks between two false alarms: far more than the sessions of a study.
_EXPECTED_RUN = 1000.0

# Drift-free replays that calibrate a monitor: fewer than the product's, for many generations.
_REPLAYS = 500


def raised_alarms(state: StudyState) -> tuple[str, ...]:
    """Names of the monitors that alarm on the newest arrivals; none while there are too few.

    Fits the state's reference when there is none.
    """
    if len(state.fresh) < WINDOW_IMAGES:
        return ()
    if state.reference is None:
        state.reference = _fit_reference(state)
    newest = np.array(state.fresh[-WINDOW_IMAGES:], dtype=np.int64)
    results = examine(state.reference, arrival_window(state.index, newest))
    return tuple(result.monitor for result in results if result.alarm)


def arrival_window(index: StudyIndex, numbers: IntArray) -> ArrivalWindow:
    """What the monitors see of images (n,), either all posted or none of them."""
    shape = index.engine.shape
    embeddings = index.corpus.embeddings[numbers]
    # Posted images have what they were posted with; others are assigned now.
    codes = index.codes[numbers]
    confidences = index.confidences[numbers]
    if len(numbers) and codes[0, 0] < 0:
        assigned = index.assign(numbers)
        codes = index.primary_codes(assigned)
        confidences = np.array([leaves.confidence for leaves in assigned], dtype=np.float32)
    # (n, 4) codes of the codebook itself.
    analytic = index.checkpoint.codebook.encode(embeddings)
    leaf_loads = index.engine.trie.primaries.load[pack_all(codes, shape)]
    return ArrivalWindow(
        codes=codes,
        embeddings=embeddings,
        confidences=confidences,
        agreement=analytic[:, 0] == codes[:, 0],
        leaf_loads=leaf_loads.astype(np.int64),
        # The study does not watch the scores of served queries.
        query_scores=np.empty(0, np.float32),
    )


def _fit_reference(state: StudyState) -> DriftReference:
    """Fit what is normal to images like the first ones that the generation saw."""
    numbers = state.corpus.stream.settling(state.first_session)
    return fit_reference(
        arrival_window(state.index, numbers),
        state.profile.shape,
        seed=state.seed,
        window=WINDOW_IMAGES,
        expected_run=_EXPECTED_RUN,
        replays=_REPLAYS,
    )
