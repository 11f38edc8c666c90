"""Scenes: a background with one to three objects, drawn at random from a vocabulary."""

import hashlib
from dataclasses import dataclass
from random import Random

from ops.scenes.vocabulary import FILLS, FIRST, POSITIONS, SIZES, TEXTURES, Vocabulary

MOST_OBJECTS = 3

# One in so many possible scenes belongs to the shipped base.
BASE_SHARE = 4


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene; all attributes are words of the vocabulary."""

    shape: str
    colour: str
    size: str
    fill: str
    position: str


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a caption can mention about one image."""

    ground: str
    texture: str
    objects: tuple[SceneObject, ...]
    style: str = ""

    @property
    def fingerprint(self) -> str:
        """Hash of the attributes: two scenes that look alike up to jitter share it."""
        words = [self.ground, self.texture]
        if self.style:
            words.append(self.style)
        words += sorted(
            f"{o.shape}/{o.colour}/{o.size}/{o.fill}/{o.position}" for o in self.objects
        )
        return hashlib.sha256("|".join(words).encode()).hexdigest()

    @property
    def world(self) -> str:
        """`base` for a quarter of all possible scenes, `corpus` for the others.

        The shipped base is trained on `base` scenes and generated corpora hold `corpus` scenes, so
        no seed can show the base an image that a demo later streams as unseen.
        """
        return "base" if int(self.fingerprint[:8], 16) % BASE_SHARE == 0 else "corpus"


def draw_scene(rng: Random, world: str, words: Vocabulary = FIRST) -> Scene:
    """Draw a random scene of the world `base` or `corpus`, by rejection sampling."""
    while True:
        scene = _draw_any_scene(rng, words)
        if scene.world == world:
            return scene


def _draw_any_scene(rng: Random, words: Vocabulary) -> Scene:
    # The order of the draws is part of the corpora: another one would make other images.
    positions = rng.sample(list(POSITIONS), rng.randint(1, MOST_OBJECTS))
    objects = []
    for position in positions:
        shape = rng.choice(words.shapes)
        colour = rng.choice(words.colours)
        size = rng.choice(SIZES)
        fill = rng.choice(FILLS)
        objects.append(SceneObject(shape, colour, size, fill, position))
    ground = rng.choice(words.grounds)
    texture = rng.choice(TEXTURES)
    style = words.styles[0]
    if len(words.styles) > 1:
        # Drawn only where there is a choice: corpora without styles stay what they were.
        style = rng.choice(words.styles)
    return Scene(ground, texture, tuple(objects), style)
