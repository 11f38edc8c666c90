"""Scene hints: what generated scenes tell an encoder about shapes, which their captions do not."""

import re
from collections.abc import Sequence

import numpy as np

from model.training.hints import Hints, PlacedLabels
from ops.scenes.scene import Scene
from ops.scenes.vocabulary import COLOURS, FILLS, GROUNDS, POSITIONS, SHAPES, SIZES, SYNONYMS

_ATTRIBUTES = (SHAPES, tuple(COLOURS), SIZES, FILLS)

# What every caption names.
_WORDS = (*SHAPES, *COLOURS, *GROUNDS)

# The shape that each word of a caption stands for.
_SHAPE_OF = {word: shape for shape in SHAPES for word in SYNONYMS.get(shape, (shape,))}

_SHAPE_WORD = re.compile(rf"\b({'|'.join(_SHAPE_OF)})\b")


def scene_hints(scenes: Sequence[Scene]) -> Hints:
    """The hints of N scenes, in order."""
    return Hints(placed_labels(scenes), exchange_shape)


def placed_labels(scenes: Sequence[Scene]) -> PlacedLabels:
    """Shape, colour, size and fill of the object at each of the five positions; and the words."""
    places = list(POSITIONS)
    values = np.zeros((len(scenes), len(places), len(_ATTRIBUTES)), np.int64)
    words = np.zeros((len(scenes), len(_WORDS)), np.bool_)
    for row, scene in enumerate(scenes):
        words[row, _WORDS.index(scene.ground)] = True
        for drawn in scene.objects:
            words[row, [_WORDS.index(drawn.shape), _WORDS.index(drawn.colour)]] = True
            place = places.index(drawn.position)
            own = (drawn.shape, drawn.colour, drawn.size, drawn.fill)
            for attribute, (known, word) in enumerate(zip(_ATTRIBUTES, own, strict=True)):
                values[row, place, attribute] = 1 + known.index(word)
    where = tuple(POSITIONS.values())
    return PlacedLabels(where, tuple(1 + len(known) for known in _ATTRIBUTES), values, words)


def exchange_shape(caption: str, rng: np.random.Generator) -> str:
    """The caption with one of its shape words exchanged for a word of another shape.

    A caption without a shape word stays as it is.
    """
    found = list(_SHAPE_WORD.finditer(caption))
    if not found:
        return caption
    word = found[int(rng.integers(len(found)))]
    others = [shape for shape in SHAPES if shape != _SHAPE_OF[word[0]]]
    shape = others[int(rng.integers(len(others)))]
    names = SYNONYMS.get(shape, (shape,))
    return caption[: word.start()] + names[int(rng.integers(len(names)))] + caption[word.end() :]
