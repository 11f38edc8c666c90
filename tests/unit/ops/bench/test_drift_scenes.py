"""The new topics of the drift benchmark are new in what they show, and only in that."""

from random import Random

import pytest

from ops.bench.drift_scenes import NEW_WORDS, TOPICS, draw_topic_scene


@pytest.mark.parametrize("new", [(), *TOPICS.values()])
def test_a_scene_shows_new_things_in_the_chosen_respects_only(new: tuple[str, ...]) -> None:
    for number in range(30):
        scene = draw_topic_scene(Random(number), new)
        shown = {
            "grounds": {scene.ground},
            "colours": {scene_object.colour for scene_object in scene.objects},
            "shapes": {scene_object.shape for scene_object in scene.objects},
        }
        for respect, words in shown.items():
            new_words = set(NEW_WORDS[respect])
            if respect in new:
                assert words <= new_words
            else:
                assert not words & new_words
        assert scene.world == "corpus"
