"""Refresh: which images a model is trained on again when it starts from the weights of its parent."""

import numpy as np

from schemas.records import BoolArray, IntArray


def refresh_rows(trained: BoolArray, replay: float, seed: int) -> IntArray:
    """Rows to train on, ascending int64: every untrained one, and `replay` times as many trained ones (all, if there are fewer).

    `trained` (N,) tells which images the parent was trained on. Without replay a model forgets them.
    """
    new, known = np.flatnonzero(~trained), np.flatnonzero(trained)
    again = np.random.default_rng(seed).permutation(known)[: round(replay * len(new))]
    return np.sort(np.concatenate([new, again])).astype(np.int64)
