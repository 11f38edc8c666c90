"""The words that generated scenes are made of, their colours and places, and their synonyms."""

from dataclasses import dataclass

# Red, green and blue, 0 to 255.
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

# Colours of backgrounds.
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

# Centres of objects, as shares of the image's width and height.
POSITIONS: dict[str, tuple[float, float]] = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "centre": (0.5, 0.5),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}

# What captions call an attribute; a word that is missing here has no synonym.
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

# How a scene is rendered: as painted, darkened as at night, or as grey pencil lines.
STYLES = ("", "night", "sketch")

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


# What the shipped base and the generated corpora know.
FIRST = Vocabulary()

# New shapes, colours, styles and words, with a few known ones among them.
LATER = Vocabulary(
    LATER_SHAPES,
    (*LATER_COLOURS, "red", "white", "black"),
    (*LATER_GROUNDS, "grey", "teal"),
    STYLES,
)
