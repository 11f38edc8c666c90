"""Scene hints: what is where in a scene, and captions with a shape exchanged."""

import numpy as np

from ops.scenes.caption_words import named_attributes
from ops.scenes.corpus import CorpusConfig, samples
from ops.scenes.scene import Scene, SceneObject
from ops.scenes.scene_hints import exchange_shape, placed_labels
from ops.scenes.vocabulary import COLOURS, POSITIONS, SHAPES

# Cells of the grid in a row, and the side of an image in pixels.
SIDE = 7
PIXELS = 112


def test_an_exchanged_caption_names_one_other_shape_and_nothing_else_new() -> None:
    rng = np.random.default_rng(0)
    for sample in samples(CorpusConfig(60, seed=3)):
        for caption in sample.captions:
            before = named_attributes(caption)
            after = named_attributes(exchange_shape(caption, rng))
            assert after.count == before.count
            assert len(after.words["shape"] - before.words["shape"]) <= 1
            assert after.words["colour"] == before.words["colour"]
            assert after.words["ground"] == before.words["ground"]


def test_the_exchanged_word_is_never_a_synonym_of_the_same_shape() -> None:
    rng = np.random.default_rng(1)
    exchanged = [exchange_shape("a red round shape on navy", rng) for _ in range(200)]
    named = {shape for caption in exchanged for shape in named_attributes(caption).words["shape"]}
    assert named == set(SHAPES) - {"circle"}
    assert all(caption.endswith(" on navy") for caption in exchanged)


def test_a_caption_without_a_shape_stays_as_it_is() -> None:
    assert exchange_shape("a starfish, boxed", np.random.default_rng(0)) == "a starfish, boxed"


def test_labels_say_what_is_at_a_position_and_nothing_elsewhere() -> None:
    scene = Scene(
        "navy",
        "plain",
        (
            SceneObject("heart", "black", "large", "hatched", "centre"),
            SceneObject("circle", "red", "small", "solid", "bottom right"),
        ),
    )
    labels = placed_labels([scene])
    assert labels.classes == (9, 11, 3, 4)
    places = list(POSITIONS)
    assert labels.values[0, places.index("centre")].tolist() == [5, 9, 2, 3]
    assert labels.values[0, places.index("bottom right")].tolist() == [1, 1, 1, 1]
    assert int((labels.values[0].sum(1) > 0).sum()) == 2


def test_the_cell_of_a_position_shows_the_object_that_is_there() -> None:
    cell_px = PIXELS // SIDE
    places = list(POSITIONS)
    seen = 0
    for sample in samples(CorpusConfig(60, seed=4)):
        pixels = sample.pixels(PIXELS).astype(int)
        labels = placed_labels([sample.scene])
        for drawn in sample.scene.objects:
            # Others have holes.
            if drawn.fill != "solid" or drawn.shape == "ring" or drawn.size == "small":
                continue
            across, down = labels.places[places.index(drawn.position)]
            row, column = int(down * SIDE), int(across * SIDE)
            cell = pixels[row * cell_px :, column * cell_px :][:cell_px, :cell_px].reshape(-1, 3)
            distance = np.abs(cell - np.array(COLOURS[drawn.colour])).max(1)
            assert (distance <= 12).mean() > 0.25
            seen += 1
    assert seen >= 10
