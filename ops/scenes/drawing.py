"""Drawing a scene: background texture, objects as filled polygons, and the style of the whole.

Everything is drawn at twice the size and reduced, which smooths the edges.
"""

import math
from collections.abc import Sequence
from random import Random

from PIL import Image, ImageDraw, ImageFilter, ImageOps

from ops.scenes.scene import Scene, SceneObject
from ops.scenes.vocabulary import (
    COLOURS,
    GROUNDS,
    LATER_COLOURS,
    LATER_GROUNDS,
    POSITIONS,
    Colour,
)

Point = tuple[float, float]

OVERSAMPLING = 2

# Most levels by which a colour channel varies between images.
COLOUR_JITTER = 10

TEXTURE_JITTER = 4

# Most of the image's side by which a centre varies.
POSITION_JITTER = 0.04

# Most radians by which a shape is turned.
ANGLE_JITTER = 0.15

# Radii as shares of the image's side.
SMALL_RADIUS = 0.105
LARGE_RADIUS = 0.19

# Holes as shares of the shape's radius.
OUTLINE_HOLE = 0.68
RING_HOLE = 0.42


def render(rng: Random, scene: Scene, size: int) -> Image.Image:
    """Draw the scene as RGB, `size`×`size` pixels; `rng` gives the jitter of place, angle, tint."""
    side = size * OVERSAMPLING
    image = _draw_ground(rng, scene, side)
    # The order of the draws is part of the corpora: another one would make other images.
    for scene_object in scene.objects:
        x, y = POSITIONS[scene_object.position]
        centre_x = (x + rng.uniform(-POSITION_JITTER, POSITION_JITTER)) * side
        centre_y = (y + rng.uniform(-POSITION_JITTER, POSITION_JITTER)) * side
        share = SMALL_RADIUS if scene_object.size == "small" else LARGE_RADIUS
        radius = share * side * rng.uniform(0.92, 1.08)
        turn = rng.uniform(-ANGLE_JITTER, ANGLE_JITTER)
        mask = _draw_mask(scene_object, side, (centre_x, centre_y), radius, turn)
        colour = (COLOURS | LATER_COLOURS)[scene_object.colour]
        image.paste(_jitter(rng, colour, COLOUR_JITTER), mask=mask)
    return _apply_style(image.reduce(OVERSAMPLING), scene.style)


def _jitter(rng: Random, colour: Colour, amount: int) -> Colour:
    red, green, blue = (max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)
    return red, green, blue


def _draw_ground(rng: Random, scene: Scene, side: int) -> Image.Image:
    base = _jitter(rng, (GROUNDS | LATER_GROUNDS)[scene.ground], COLOUR_JITTER)
    darker = (base[0] * 4 // 5, base[1] * 4 // 5, base[2] * 4 // 5)
    second = _jitter(rng, darker, TEXTURE_JITTER)
    image = Image.new("RGB", (side, side), base)
    pen = ImageDraw.Draw(image)
    step = side // rng.choice((7, 8, 9))
    shift = rng.randrange(step)
    if scene.texture == "striped":
        _draw_stripes(pen, side, step, shift, second)
    elif scene.texture == "dotted":
        _draw_dots(pen, side, step, shift, second)
    elif scene.texture == "checkered":
        _draw_checks(pen, side, step, shift, second)
    return image


def _draw_stripes(
    pen: ImageDraw.ImageDraw, side: int, step: int, shift: int, colour: Colour
) -> None:
    for x in range(-side, 2 * side, step):
        pen.line((x + shift, 0, x + shift - side // 2, side), fill=colour, width=step // 3)


def _draw_dots(pen: ImageDraw.ImageDraw, side: int, step: int, shift: int, colour: Colour) -> None:
    radius = step // 5
    for x in range(shift, side, step):
        for y in range(shift, side, step):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _draw_checks(
    pen: ImageDraw.ImageDraw, side: int, step: int, shift: int, colour: Colour
) -> None:
    for row, y in enumerate(range(-shift, side, step)):
        for x in range(-shift + (row % 2) * step, side, 2 * step):
            pen.rectangle((x, y, x + step - 1, y + step - 1), fill=colour)


def _draw_mask(
    scene_object: SceneObject, side: int, centre: Point, radius: float, turn: float
) -> Image.Image:
    """Return a mask (mode L) of where the object's colour goes."""
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    outline = _outline(scene_object.shape, turn)
    pen.polygon(_placed(outline, centre, radius, 1.0), fill=255)
    if scene_object.fill == "outlined":
        pen.polygon(_placed(outline, centre, radius, OUTLINE_HOLE), fill=0)
    elif scene_object.fill == "hatched":
        _draw_hatching(pen, centre, radius)
    if scene_object.shape == "ring":
        pen.polygon(_placed(outline, centre, radius, RING_HOLE), fill=0)
    return mask


def _placed(outline: Sequence[Point], centre: Point, radius: float, scale: float) -> list[Point]:
    points = []
    for x, y in outline:
        points.append((centre[0] + x * radius * scale, centre[1] + y * radius * scale))
    return points


def _draw_hatching(pen: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
    gap = max(6, int(radius / 1.8))
    reach = radius * 1.2
    for offset in range(int(-3 * radius), int(3 * radius), gap):
        x = centre[0] + offset
        line = (x - reach, centre[1] - reach, x + reach, centre[1] + reach)
        pen.line(line, fill=0, width=gap // 3)


# Corner points in the unit circle, y downwards.
CROSS = (
    (-0.35, -1.0),
    (0.35, -1.0),
    (0.35, -0.35),
    (1.0, -0.35),
    (1.0, 0.35),
    (0.35, 0.35),
    (0.35, 1.0),
    (-0.35, 1.0),
    (-0.35, 0.35),
    (-1.0, 0.35),
    (-1.0, -0.35),
    (-0.35, -0.35),
)
ARROW = (
    (-1, -0.35),
    (0.1, -0.35),
    (0.1, -0.85),
    (1.1, 0),
    (0.1, 0.85),
    (0.1, 0.35),
    (-1, 0.35),
)
BOLT = (
    (0.25, -1.2),
    (-0.75, 0.15),
    (-0.1, 0.15),
    (-0.35, 1.2),
    (0.75, -0.3),
    (0.1, -0.3),
)

# Corners of a polygon that looks like a circle.
CURVE_POINTS = 40

# Angle of a shape's first corner.
UPWARDS = -math.pi / 2


def _outline(shape: str, turn: float) -> list[Point]:
    """Return the corner points of a shape in the unit circle, turned by `turn` radians."""
    match shape:
        case "square":
            return _regular(4, turn, (1.15,), -math.pi / 4)
        case "triangle":
            return _regular(3, turn, (1.1,))
        case "star":
            return _regular(10, turn, (1.15, 0.5))
        case "diamond":
            return [(0.7 * x, 1.15 * y) for x, y in _regular(4, turn)]
        case "hexagon":
            return _regular(6, turn)
        case "cross":
            return _turned(CROSS, turn)
        case "arrow":
            return _turned(ARROW, turn)
        case "bolt":
            return _turned(BOLT, turn)
        case "crescent":
            return _turned(_crescent(), turn)
        case "heart":
            return _heart()
        case _:
            return _regular(CURVE_POINTS, turn)


def _regular(
    corners: int, turn: float, radii: tuple[float, ...] = (1.0,), start: float = UPWARDS
) -> list[Point]:
    """Return a regular polygon whose corners have the radii in turn."""
    points = []
    for number in range(corners):
        angle = start + turn + 2 * math.pi * number / corners
        radius = radii[number % len(radii)]
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart() -> list[Point]:
    """Return the usual parametric heart curve. It is never turned."""
    points = []
    for number in range(36):
        t = 2 * math.pi * number / 36
        height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3 * 1.05, -height / 15))
    return points


def _crescent() -> list[Point]:
    """Return an arc of the unit circle and back along a smaller, shifted one."""
    angles = [math.pi / 3 + math.pi * 4 / 3 * number / 24 for number in range(25)]
    outer = [(math.cos(angle), math.sin(angle)) for angle in angles]
    inner = [(0.25 + 0.8 * math.cos(angle), 0.8 * math.sin(angle)) for angle in reversed(angles)]
    return [*outer, *inner]


def _turned(points: Sequence[Point], turn: float) -> list[Point]:
    cosine = math.cos(turn)
    sine = math.sin(turn)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in points]


def _apply_style(image: Image.Image, style: str) -> Image.Image:
    if style == "night":
        return image.point(lambda level: level * 2 // 5)
    if style == "sketch":
        edges = image.convert("L").filter(ImageFilter.FIND_EDGES)
        return ImageOps.invert(edges).convert("RGB")
    return image
