"""Caption words: the attributes of a generated scene that a caption names, and which are true."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ops.scenes.corpus import CorpusConfig, samples
from ops.scenes.scene import Scene
from ops.scenes.vocabulary import COLOURS, GROUNDS, SHAPES, SYNONYMS
from schemas.records import ManifestEntry

# What is looked for in a caption, in the order of the tables.
KINDS = ("colour", "shape", "ground", "count")

# Name of the table's line for colour, shape and ground together.
ALL_KINDS = "colour, shape and ground"

_WORDS = {"colour": tuple(COLOURS), "shape": SHAPES, "ground": tuple(GROUNDS)}

# World, seed and number of a generated image.
_IMAGE_ID = re.compile(r"(?P<world>base|corpus)-(?P<seed>\d{1,9})-(?P<number>\d{7,9})")


@dataclass(frozen=True, slots=True)
class NamedAttributes:
    """The attributes that a caption names, by the vocabulary's own words.

    `count` is the number of objects: of shape words.
    """

    words: Mapping[str, frozenset[str]]
    count: int


def named_attributes(caption: str) -> NamedAttributes:
    """What a caption names; synonyms count as the word that they stand for."""
    # Spaces around the words, so that no word is found inside another.
    text = f" {' '.join(re.findall(r'[a-z]+', caption.lower()))} "
    named: dict[str, set[str]] = {kind: set() for kind in _WORDS}
    count = 0
    for kind, words in _WORDS.items():
        for word in words:
            for synonym in SYNONYMS.get(word, (word,)):
                found = text.count(f" {synonym} ")
                if found:
                    named[kind].add(word)
                    count += found if kind == "shape" else 0
    return NamedAttributes({kind: frozenset(own) for kind, own in named.items()}, count)


def true_attributes(scene: Scene) -> NamedAttributes:
    """What a caption of the scene may name."""
    words = {
        "colour": frozenset(drawn.colour for drawn in scene.objects),
        "shape": frozenset(drawn.shape for drawn in scene.objects),
        "ground": frozenset((scene.ground,)),
    }
    return NamedAttributes(words, len(scene.objects))


def right_kinds(caption: str, scene: Scene) -> dict[str, bool]:
    """For each kind whether the caption names some attribute of it, and none that is wrong."""
    named = named_attributes(caption)
    true = true_attributes(scene)
    right: dict[str, bool] = {}
    for kind, words in named.words.items():
        right[kind] = bool(words) and words <= true.words[kind]
    together = all(right.values())
    right["count"] = named.count == true.count
    right[ALL_KINDS] = together
    return right


def scene_of(entry: ManifestEntry) -> Scene | None:
    """The scene of a generated image; None for any other image.

    It is drawn again from the numbers in the image's id, and its captions must be those.
    """
    match = _IMAGE_ID.fullmatch(entry.image_id)
    if match is None:
        return None
    config = CorpusConfig(
        images=1,
        seed=int(match["seed"]),
        start=int(match["number"]),
        captions=len(entry.captions),
        test_captions=len(entry.test_captions),
        world=match["world"],
    )
    sample = next(samples(config))
    same = sample.captions == entry.captions and sample.test_captions == entry.test_captions
    return sample.scene if same else None
