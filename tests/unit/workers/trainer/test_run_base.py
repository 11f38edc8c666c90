"""A corpus that the tiny profile cannot learn is told before minutes are spent on it."""

import pytest

from model.training.trial import AdaptationTrial
from schemas.errors import UsageError
from workers.trainer.run_base import require_promising


def test_a_text_side_that_does_not_know_the_words_is_told_with_what_to_take() -> None:
    with pytest.raises(UsageError) as refused:
        require_promising(AdaptationTrial(order=0.57, held_out=200, views=8000))
    for words in ("does not know the words", "57%", "--profile small", "--adapt always"):
        assert words in str(refused.value)


def test_other_corpora_are_trained() -> None:
    require_promising(AdaptationTrial(order=0.83, held_out=200, views=2000))
    # Few images are not tried.
    require_promising(None)
