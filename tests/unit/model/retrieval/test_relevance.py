"""Relevance of cosines under a calibration."""

import numpy as np
import pytest

from model.retrieval.relevance import at_least, relevances_of
from schemas.relevance import RelevanceCalibration

CALIBRATION = RelevanceCalibration(20.0, -10.0, 100, 150, 0.95, 0.97)


def test_relevance_is_a_half_at_the_border_and_grows_with_the_cosine() -> None:
    cosines = np.linspace(-1, 1, 41, dtype=np.float32)
    found = relevances_of(CALIBRATION, cosines)
    assert found.dtype == np.float32
    assert found[cosines == 0.5] == pytest.approx(0.5)
    assert (np.diff(found) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_the_steepest_curve_overflows_nothing() -> None:
    steep = RelevanceCalibration(1e9, 0.0, 100, 150, 1.0, 1.0)
    found = relevances_of(steep, np.array([-1.0, 0.0, 1.0], np.float32))
    assert found.tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_what_is_left_out_is_what_is_less_relevant() -> None:
    cosines = np.array([0.9, 0.4, 0.5, 0.1], np.float32)
    assert at_least(CALIBRATION, cosines, 0.5).tolist() == [True, False, True, False]
    assert at_least(CALIBRATION, cosines, 0.0).all()
    shown = float(relevances_of(CALIBRATION, cosines)[1])
    assert at_least(CALIBRATION, cosines, shown).tolist() == [True, True, True, False]
    assert relevances_of(CALIBRATION, np.empty(0, np.float32)).shape == (0,)
