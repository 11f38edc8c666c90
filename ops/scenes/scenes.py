"""Scenes: what the generated corpus shows, how it is drawn, and the captions that describe it.

A scene is a background (colour and texture) with one to three objects (shape, colour, size, fill, position). Captions are
compositional and mention different attributes of the same scene, so that no caption alone describes an image completely.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFilter, ImageOps

Colour = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
COLOURS: dict[str, Colour] = {
    "red": (214, 39, 40),
    "blue": (31, 90, 200),
    "green": (34, 150, 60),
    "yellow": (240, 215, 40),
    "orange": (250, 135, 20),
    "purple": (130, 50, 170),
    "pink": (245, 130, 185),
    "brown": (120, 75, 40),
    "black": (20, 20, 24),
    "white": (250, 250, 250),
}
GROUNDS: dict[str, Colour] = {
    "grey": (150, 150, 155),
    "beige": (222, 205, 170),
    "navy": (35, 45, 95),
    "teal": (60, 140, 140),
    "olive": (115, 120, 55),
    "lavender": (190, 180, 225),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "large")
FILLS = ("solid", "outlined", "hatched")
POSITIONS: dict[str, tuple[float, float]] = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "centre": (0.5, 0.5),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "round shape"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "red": ("red", "crimson"),
    "purple": ("purple", "violet"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "solid": ("solid", "filled"),
    "outlined": ("outlined", "hollow"),
    "hatched": ("hatched", "lined"),
    "centre": ("centre", "middle"),
    "plain": ("plain", "flat"),
    "checkered": ("checkered", "chequered"),
}
BACKGROUND_WORDS = ("background", "backdrop")

LATER_SHAPES = ("hexagon", "arrow", "crescent", "bolt")
LATER_COLOURS: dict[str, Colour] = {
    "cyan": (40, 220, 230),
    "gold": (200, 160, 30),
    "maroon": (110, 15, 40),
    "lime": (160, 240, 40),
}
LATER_GROUNDS: dict[str, Colour] = {"salmon": (240, 150, 125), "charcoal": (55, 58, 62)}
STYLES = ("", "night", "sketch")
"""How a scene is rendered: as painted, darkened as at night, or as grey pencil lines."""
LATER_SYNONYMS: dict[str, tuple[str, ...]] = {
    "hexagon": ("hexagon", "honeycomb cell"),
    "arrow": ("arrow", "pointer"),
    "crescent": ("crescent", "half moon"),
    "bolt": ("bolt", "lightning"),
    "cyan": ("cyan", "aqua"),
    "gold": ("gold", "golden"),
    "maroon": ("maroon", "burgundy"),
    "lime": ("lime", "neon green"),
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words that a scene's attributes are drawn from."""

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    grounds: tuple[str, ...] = tuple(GROUNDS)
    styles: tuple[str, ...] = ("",)


FIRST = Vocabulary()
"""What the shipped base and the generated corpora know."""
LATER = Vocabulary(
    LATER_SHAPES,
    (*LATER_COLOURS, "red", "white", "black"),
    (*LATER_GROUNDS, "grey", "teal"),
    STYLES,
)
"""New shapes, colours, styles and words, with a few known ones among them."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene; all attributes are words of this module's vocabularies."""

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
    things: tuple[Thing, ...]
    style: str = ""

    @property
    def fingerprint(self) -> str:
        """Hash of the attributes: two scenes that look alike up to jitter share it."""
        words = [self.ground, self.texture, *([self.style] if self.style else [])]
        words += sorted(f"{t.shape}/{t.colour}/{t.size}/{t.fill}/{t.position}" for t in self.things)
        return hashlib.sha256("|".join(words).encode()).hexdigest()

    @property
    def world(self) -> str:
        """`base` for a quarter of all possible scenes, `corpus` for the others.

        The shipped base is trained on `base` scenes only and generated corpora hold `corpus` scenes only, so that no seed
        can show the base an image that a demo later streams as unseen.
        """
        return "base" if int(self.fingerprint[:8], 16) % 4 == 0 else "corpus"


def draw_scene(rng: Random, world: str, words: Vocabulary = FIRST) -> Scene:
    """A random scene of the world `base` or `corpus` (rejection sampling on the scene's own fingerprint)."""
    while True:
        positions = rng.sample(list(POSITIONS), rng.randint(1, 3))
        things = tuple(
            Thing(
                rng.choice(words.shapes),
                rng.choice(words.colours),
                rng.choice(SIZES),
                rng.choice(FILLS),
                position,
            )
            for position in positions
        )
        # Another draw for the style only where there is a choice: the generated corpora stay what they were, byte for byte.
        ground, texture = rng.choice(words.grounds), rng.choice(TEXTURES)
        scene = Scene(
            ground,
            texture,
            things,
            rng.choice(words.styles) if len(words.styles) > 1 else words.styles[0],
        )
        if scene.world == world:
            return scene


# ---------------------------------------------------------------- captions


def _word(rng: Random, word: str) -> str:
    return rng.choice(SYNONYMS.get(word) or LATER_SYNONYMS.get(word) or (word,))


def _phrase(rng: Random, thing: Thing) -> str:
    """`a [size] [fill] colour shape [at the position]`: at least one of the three optional attributes is mentioned."""
    shown = set(rng.sample(("size", "fill", "position"), rng.choice((1, 2, 2, 3))))
    words = []
    if "size" in shown:
        words.append(_word(rng, thing.size))
    if "fill" in shown:
        words.append(_word(rng, thing.fill))
    words += [_word(rng, thing.colour), _word(rng, thing.shape)]
    article = "an" if words[0][0] in "aeiou" else "a"
    place = (
        f" {rng.choice(('at', 'in'))} the {_word(rng, thing.position)}"
        if "position" in shown
        else ""
    )
    return f"{article} {' '.join(words)}{place}"


def caption(rng: Random, scene: Scene, template: int) -> str:
    """One caption of the scene in one of five wordings (`template` modulo 5)."""
    things = list(scene.things)
    rng.shuffle(things)
    phrases = [_phrase(rng, thing) for thing in things]
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    ground, texture = f"{scene.style} {scene.ground}".strip(), _word(rng, scene.texture)
    back = rng.choice(BACKGROUND_WORDS)
    match template % 5:
        case 0:
            return f"{listed} on a {texture} {ground} {back}"
        case 1:
            return f"a {texture} {ground} scene showing {listed}"
        case 2:
            return f"picture of {listed}, {back} {ground}"
        case 3:
            return f"{ground} {back} with {listed}"
        case _:
            return f"there is {listed} in front of {texture} {ground}"


def captions(rng: Random, scene: Scene, count: int) -> tuple[str, ...]:
    """`count` captions, the wordings in a random order."""
    order = list(range(5))
    rng.shuffle(order)
    return tuple(caption(rng, scene, order[i % 5]) for i in range(count))


# ---------------------------------------------------------------- drawing


def _jitter(rng: Random, colour: Colour, amount: int) -> Colour:
    r, g, b = (max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)
    return r, g, b


def _ground(rng: Random, scene: Scene, side: int) -> Image.Image:
    base = _jitter(rng, (GROUNDS | LATER_GROUNDS)[scene.ground], 10)
    second = _jitter(rng, (base[0] * 4 // 5, base[1] * 4 // 5, base[2] * 4 // 5), 4)
    image = Image.new("RGB", (side, side), base)
    pen = ImageDraw.Draw(image)
    step = side // rng.choice((7, 8, 9))
    shift = rng.randrange(step)
    if scene.texture == "striped":
        for x in range(-side, 2 * side, step):
            pen.line((x + shift, 0, x + shift - side // 2, side), fill=second, width=step // 3)
    elif scene.texture == "dotted":
        radius = step // 5
        for x in range(shift, side, step):
            for y in range(shift, side, step):
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=second)
    elif scene.texture == "checkered":
        for row, y in enumerate(range(-shift, side, step)):
            for x in range(-shift + (row % 2) * step, side, 2 * step):
                pen.rectangle((x, y, x + step - 1, y + step - 1), fill=second)
    return image


def _outline(shape: str, turn: float) -> list[tuple[float, float]]:
    """Corner points of a shape in the unit circle, turned by `turn` radians."""

    def polar(
        count: int, radii: tuple[float, ...] = (1.0,), start: float = -math.pi / 2
    ) -> list[tuple[float, float]]:
        angles = [start + turn + 2 * math.pi * i / count for i in range(count)]
        return [
            (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
            for i, a in enumerate(angles)
        ]

    match shape:
        case "square":
            return polar(4, (1.15,), -math.pi / 4)
        case "triangle":
            return polar(3, (1.1,))
        case "star":
            return polar(10, (1.15, 0.5))
        case "diamond":
            return [(0.7 * x / 1.0, 1.15 * y) for x, y in polar(4)]
        case "cross":
            a, b = 0.35, 1.0
            plus = [
                (-a, -b),
                (a, -b),
                (a, -a),
                (b, -a),
                (b, a),
                (a, a),
                (a, b),
                (-a, b),
                (-a, a),
                (-b, a),
                (-b, -a),
                (-a, -a),
            ]
            return _turned(plus, turn)
        case "heart":
            steps = [2 * math.pi * i / 36 for i in range(36)]
            return [
                (
                    math.sin(t) ** 3 * 1.05,
                    -(
                        13 * math.cos(t)
                        - 5 * math.cos(2 * t)
                        - 2 * math.cos(3 * t)
                        - math.cos(4 * t)
                    )
                    / 15,
                )
                for t in steps
            ]
        case "hexagon":
            return polar(6)
        case "arrow":
            return _turned(
                [
                    (-1, -0.35),
                    (0.1, -0.35),
                    (0.1, -0.85),
                    (1.1, 0),
                    (0.1, 0.85),
                    (0.1, 0.35),
                    (-1, 0.35),
                ],
                turn,
            )
        case "bolt":
            return _turned(
                [
                    (0.25, -1.2),
                    (-0.75, 0.15),
                    (-0.1, 0.15),
                    (-0.35, 1.2),
                    (0.75, -0.3),
                    (0.1, -0.3),
                ],
                turn,
            )
        case "crescent":
            outer = [math.pi / 3 + math.pi * 4 / 3 * i / 24 for i in range(25)]
            rim = [(math.cos(a), math.sin(a)) for a in outer]
            return _turned(
                [*rim, *[(0.25 + 0.8 * math.cos(a), 0.8 * math.sin(a)) for a in reversed(outer)]],
                turn,
            )
        case _:
            return polar(40)


def _turned(points: Sequence[tuple[float, float]], turn: float) -> list[tuple[float, float]]:
    return [
        (x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn))
        for x, y in points
    ]


def _stencil(
    thing: Thing, side: int, centre: tuple[float, float], radius: float, turn: float
) -> Image.Image:
    """Mask (L) of where the object's colour goes."""
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)

    def points(scale: float) -> list[tuple[float, float]]:
        return [
            (centre[0] + x * radius * scale, centre[1] + y * radius * scale)
            for x, y in _outline(thing.shape, turn)
        ]

    pen.polygon(points(1.0), fill=255)
    if thing.fill == "outlined":
        pen.polygon(points(0.68), fill=0)
    elif thing.fill == "hatched":
        gap = max(6, int(radius / 1.8))
        for offset in range(int(-3 * radius), int(3 * radius), gap):
            x = centre[0] + offset
            pen.line(
                (
                    x - radius * 1.2,
                    centre[1] - radius * 1.2,
                    x + radius * 1.2,
                    centre[1] + radius * 1.2,
                ),
                fill=0,
                width=gap // 3,
            )
    if thing.shape == "ring":
        pen.polygon(points(0.42), fill=0)
    return mask


def render(rng: Random, scene: Scene, size: int) -> Image.Image:
    """Draw the scene as RGB, `size`×`size` pixels; jitter of place, angle and tint comes from `rng`."""
    side = size * 2
    image = _ground(rng, scene, side)
    for thing in scene.things:
        x, y = POSITIONS[thing.position]
        centre = ((x + rng.uniform(-0.04, 0.04)) * side, (y + rng.uniform(-0.04, 0.04)) * side)
        radius = (0.105 if thing.size == "small" else 0.19) * side * rng.uniform(0.92, 1.08)
        mask = _stencil(thing, side, centre, radius, rng.uniform(-0.15, 0.15))
        image.paste(_jitter(rng, (COLOURS | LATER_COLOURS)[thing.colour], 10), mask=mask)
    return _styled(image.reduce(2), scene.style)


def _styled(image: Image.Image, style: str) -> Image.Image:
    if style == "night":
        return image.point(lambda level: level * 2 // 5)
    if style == "sketch":
        return ImageOps.invert(image.convert("L").filter(ImageFilter.FIND_EDGES)).convert("RGB")
    return image
