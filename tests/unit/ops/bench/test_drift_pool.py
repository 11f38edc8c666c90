"""The new topics of the drift benchmark are new in what they say, and only in that."""

from random import Random

import pytest

from ops.bench.drift_pool import NEW, TOPICS, scene


@pytest.mark.parametrize("new", [(), *TOPICS.values()])
def test_a_scene_shows_new_things_in_the_chosen_respects_only(new: tuple[str, ...]) -> None:
    for number in range(30):
        drawn = scene(Random(number), new)
        shown = {
            "grounds": {drawn.ground},
            "colours": {thing.colour for thing in drawn.objects},
            "shapes": {thing.shape for thing in drawn.objects},
        }
        for kind, words in shown.items():
            assert (words <= set(NEW[kind])) if kind in new else not (words & set(NEW[kind]))
        assert drawn.world == "corpus"
