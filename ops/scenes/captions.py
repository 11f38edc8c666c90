"""Captions of a scene: five wordings, each mentioning other attributes of the same image.

No caption describes an image completely, as with captions that people write.
"""

from random import Random

from ops.scenes.scene import Scene, SceneObject
from ops.scenes.vocabulary import BACKGROUND_WORDS, LATER_SYNONYMS, SYNONYMS

WORDINGS = 5

OPTIONAL_ATTRIBUTES = ("size", "fill", "position")

# How many of the optional attributes a phrase mentions; two twice as often as one or three.
MENTIONED_ATTRIBUTES = (1, 2, 2, 3)


def captions(rng: Random, scene: Scene, count: int) -> tuple[str, ...]:
    """Return `count` captions, the wordings in a random order."""
    order = list(range(WORDINGS))
    rng.shuffle(order)
    texts = []
    for number in range(count):
        texts.append(caption(rng, scene, order[number % WORDINGS]))
    return tuple(texts)


def caption(rng: Random, scene: Scene, wording: int) -> str:
    """Return one caption of the scene in one of five wordings (`wording` modulo 5)."""
    objects = list(scene.objects)
    rng.shuffle(objects)
    listed = _list([_phrase(rng, scene_object) for scene_object in objects])
    ground = f"{scene.style} {scene.ground}".strip()
    texture = _synonym(rng, scene.texture)
    background = rng.choice(BACKGROUND_WORDS)
    match wording % WORDINGS:
        case 0:
            return f"{listed} on a {texture} {ground} {background}"
        case 1:
            return f"a {texture} {ground} scene showing {listed}"
        case 2:
            return f"picture of {listed}, {background} {ground}"
        case 3:
            return f"{ground} {background} with {listed}"
        case _:
            return f"there is {listed} in front of {texture} {ground}"


def _list(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _phrase(rng: Random, scene_object: SceneObject) -> str:
    """Return `a [size] [fill] colour shape [at the position]`, at least one optional part of it."""
    mentioned = set(rng.sample(OPTIONAL_ATTRIBUTES, rng.choice(MENTIONED_ATTRIBUTES)))
    words = []
    if "size" in mentioned:
        words.append(_synonym(rng, scene_object.size))
    if "fill" in mentioned:
        words.append(_synonym(rng, scene_object.fill))
    words.append(_synonym(rng, scene_object.colour))
    words.append(_synonym(rng, scene_object.shape))
    article = "an" if words[0][0] in "aeiou" else "a"
    phrase = f"{article} {' '.join(words)}"
    if "position" not in mentioned:
        return phrase
    preposition = rng.choice(("at", "in"))
    return f"{phrase} {preposition} the {_synonym(rng, scene_object.position)}"


def _synonym(rng: Random, word: str) -> str:
    return rng.choice(SYNONYMS.get(word) or LATER_SYNONYMS.get(word) or (word,))
