"""Replay: which images a refresh, which starts from the weights of its parent, trains on."""

import numpy as np

from schemas.records import BoolArray, IntArray


def refresh_rows(trained: BoolArray, replay: float, seed: int) -> IntArray:
    """Rows to train on, ascending int64: every new image, and some that the parent was trained on.

    `trained` (N,) tells which images the parent was trained on. `replay` times as many of them as
    there are new ones are drawn (all, if there are fewer): without replay a model forgets them.
    """
    new = np.flatnonzero(~trained)
    known = np.flatnonzero(trained)
    replayed = np.random.default_rng(seed).permutation(known)[: round(replay * len(new))]
    return np.sort(np.concatenate([new, replayed])).astype(np.int64)
