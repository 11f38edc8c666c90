"""Relevance: how well an image fits a text, from 0 to 1, comparable between queries.

A score says which image of an answer fits better; whether any fits is what relevance says. It is
the calibrated cosine (`schemas.relevance`), so it does not depend on leaves, filters and the number
of images asked for. Imports no torch, for the processes that do without.
"""

import numpy as np

from schemas.records import BoolArray, FloatArray
from schemas.relevance import RelevanceCalibration

# Beyond these exp overflows float32, and a relevance is 0 or 1 to all its digits.
_MOST_LOGIT = 60.0


def relevances_of(calibration: RelevanceCalibration, cosines: FloatArray) -> FloatArray:
    """(k,) float32 relevances of images with cosines (k,) with the query's vector."""
    logits = calibration.slope * cosines.astype(np.float64) + calibration.offset
    bounded = np.clip(logits, -_MOST_LOGIT, _MOST_LOGIT)
    return (1.0 / (1.0 + np.exp(-bounded))).astype(np.float32)


def at_least(calibration: RelevanceCalibration, cosines: FloatArray, bound: float) -> BoolArray:
    """(k,) which images are as relevant as `bound`, from 0 to 1."""
    return relevances_of(calibration, cosines) >= np.float32(bound)
