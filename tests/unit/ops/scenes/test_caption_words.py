"""The words of captions: synonyms, several objects, and what is true of a scene."""

from dataclasses import replace

from ops.scenes.caption_words import ALL_KINDS, named_attributes, right_kinds, scene_of
from ops.scenes.corpus import CorpusConfig, samples
from ops.scenes.scene import Scene, SceneObject
from schemas.records import ManifestEntry

SCENE = Scene(
    "navy",
    "plain",
    (
        SceneObject("circle", "red", "small", "solid", "centre"),
        SceneObject("cross", "blue", "large", "hatched", "top left"),
    ),
)


def test_synonyms_count_as_the_word_they_stand_for() -> None:
    named = named_attributes("A tiny crimson disc and a big blue plus sign, backdrop navy")
    assert named.words == {
        "colour": {"red", "blue"},
        "shape": {"circle", "cross"},
        "ground": {"navy"},
    }
    assert named.count == 2


def test_a_caption_is_right_when_it_names_something_true_and_nothing_wrong() -> None:
    true = right_kinds("a red disc in front of navy", SCENE)
    assert true == {"colour": True, "shape": True, "ground": True, "count": False, ALL_KINDS: True}
    wrong_shape = right_kinds("a red star and a blue cross on navy", SCENE)
    assert wrong_shape["colour"]
    assert wrong_shape["count"]
    assert not wrong_shape["shape"]
    assert not wrong_shape[ALL_KINDS]
    assert not any(right_kinds("something", SCENE).values())


def test_every_training_caption_is_right_and_its_scene_is_found_by_the_image_id() -> None:
    for sample in samples(CorpusConfig(20, seed=3, start=40)):
        entry = ManifestEntry(sample.image_id, "/x.png", sample.captions, sample.test_captions)
        assert scene_of(entry) == sample.scene
        for caption in (*sample.captions, *sample.test_captions):
            assert all(right_kinds(caption, sample.scene).values()), caption
        assert scene_of(replace(entry, captions=("another picture",))) is None
        assert scene_of(replace(entry, image_id="holiday.jpg")) is None
