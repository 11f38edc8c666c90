"""Without a live generation a person reads why, and what to do."""

from datetime import UTC, datetime

import pytest

from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from workers.generations.none_live import NONE_LIVE, why_none_is_live
from workers.repository.generations import Generation

SHAPE = IdentifierShape((4, 4, 2, 2), 16)


def generation(number: int, state: str, *failure: str) -> Generation:
    config = GenerationConfig(failure=failure or None)
    moment = datetime(2026, 11, 26, tzinfo=UTC)
    return Generation(number, state, None, None, SHAPE, config, moment, None, None)


FAILED = generation(1, "failed", "stage align: R@10 must be at least 0.104, got 0.050")


@pytest.mark.parametrize(
    ("every", "words"),
    [
        ([], "nothing is trained yet; train a first one with: sigma train --manifest F"),
        ([FAILED], "generation 1 failed: stage align: R@10 must be at least 0.104, got 0.050"),
        ([FAILED, generation(2, "building")], "generation 2 is being trained"),
        ([FAILED, generation(2, "failed", "newer")], "generation 2 failed: newer"),
        ([generation(1, "retired"), FAILED], "sigma generations promote 1"),
        # One that was dropped by a person did not fail.
        ([generation(1, "failed")], "nothing is trained yet; train"),
    ],
)
def test_the_newest_training_says_why(every: list[Generation], words: str) -> None:
    why = why_none_is_live(every)
    assert why.startswith(f"{NONE_LIVE}: ")
    assert words in why
