"""Numbers of a model that are not finite go no further than where they enter."""

from typing import cast

import numpy as np
import pytest

from model.decoding.leaves import Leaves
from schemas.errors import RejectInputError
from schemas.records import Assignment, Posting
from workers.generations.image_assigner import ImageAssigner, is_working
from workers.generations.inferred import Inferred

GOOD = np.array([0.6, 0.8], np.float16)
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("number", NOT_FINITE)
def test_an_image_with_a_number_that_is_not_finite_is_refused_and_never_posted(
    number: float,
) -> None:
    bad = np.array([0.6, number], np.float16)
    for embedding, confidence, weight in (
        (bad, -1.0, 0.0),
        (GOOD, number, 0.0),
        (GOOD, -1.0, number),
    ):
        with pytest.raises(RejectInputError, match="must be finite") as refusal:
            Assignment(1, (Posting(3, weight),), embedding, confidence)
        assert refusal.value.code == "not-finite"
        with pytest.raises(RejectInputError):
            Inferred(Leaves((Posting(3, weight),), (), confidence), embedding)


def test_a_model_that_gives_no_finite_numbers_is_not_working() -> None:
    class Damaged:
        def infer(self, pictures: list[object]) -> list[Inferred]:
            confidence = float("nan")
            return [Inferred(Leaves((Posting(3, 0.0),), (), confidence), GOOD) for _ in pictures]

    assert not is_working(cast(ImageAssigner, Damaged()))
