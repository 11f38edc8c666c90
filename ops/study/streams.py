"""Streams: which images arrive and which are deleted in each session of the study.

Scenes of the first words are what the index is trained on. A stream drifts when scenes of later
words, with new shapes, colours, grounds and styles, begin to arrive among them.
"""

from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np

from model.network.profiles import profile
from model.network.resize import resize
from ops.scenes.captions import captions
from ops.scenes.drawing import render
from ops.scenes.scene import draw_scene
from ops.scenes.vocabulary import FIRST, LATER
from schemas.errors import UsageError
from schemas.records import BoolArray, ByteArray, IntArray

# stationary: first words throughout. gradual: a growing share of later scenes after three tenths of
# the sessions. abrupt: the full share of later scenes at once.
StreamKind = Literal["stationary", "gradual", "abrupt"]

# All kinds, in the order of tables and plots.
STREAM_KINDS: tuple[StreamKind, ...] = ("stationary", "gradual", "abrupt")

# Side of a rendered scene, as in the generated corpora; the model looks at a smaller square.
_RENDER_PX = 112

# Share of the sessions before a shift begins: time in which nothing drifts.
_SHIFT_BEGINS = 0.3

# Share of later scenes among the arrivals when a shift is complete.
_LATER_SHARE = 0.6

# Keeps the random stream of the deletions apart from others of the same seed.
_DELETION_STREAM = 7


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Sizes of a stream. Each image has one more caption, held out as a query."""

    kind: StreamKind
    seed: int = 0
    first: int = 320
    """Images that the first model is trained on."""
    settling: int = 300
    """Images of the first words, and as many of the later ones, that never enter the index.

    From them the monitors learn what is normal for a generation.
    """
    sessions: int = 20
    arrivals: int = 16
    """Images that arrive in each session."""
    deletions: int = 3
    """Images deleted in each session, drawn at random."""
    captions: int = 2
    """Captions of each image to learn from."""

    def __post_init__(self) -> None:
        if self.kind not in STREAM_KINDS:
            raise UsageError(
                f"the kind of a stream must be one of {', '.join(STREAM_KINDS)}, got {self.kind!r}"
            )
        for name in ("first", "settling", "sessions", "arrivals", "captions"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of a stream must be at least 1, got {self}")

    @property
    def images(self) -> int:
        """Images that enter the index, deleted ones included."""
        return self.first + self.sessions * self.arrivals


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """All images of a stream, in memory, N of which enter the index.

    They are numbered by arrival: the first images, those of each session, then the settling images
    of the first words and those of the later words.
    """

    config: StreamConfig
    pixels: ByteArray
    """(N + 2·settling, side, side, 3) uint8"""
    captions: list[tuple[str, ...]]
    queries: list[str]
    """The held-out caption of each image."""
    later: BoolArray
    """(N + 2·settling,) whether a scene is of the later words"""
    deleted: tuple[IntArray, ...]
    """Numbers of the images deleted in each session, ascending."""

    def arrivals(self, session: int) -> IntArray:
        """Numbers that arrive in a session; session 0 has the first images."""
        if session == 0:
            return np.arange(self.config.first, dtype=np.int64)
        begin = self.config.first + (session - 1) * self.config.arrivals
        return np.arange(begin, begin + self.config.arrivals, dtype=np.int64)

    def settling(self, session: int) -> IntArray:
        """Settling images, mixed like the arrivals of a session.

        They stand for the first arrivals that a generation made in this session sees.
        """
        config = self.config
        later = round(later_share(config.kind, session, config.sessions) * config.settling)
        first_words = config.images
        later_words = config.images + config.settling
        return np.concatenate(
            [
                np.arange(first_words, first_words + config.settling - later, dtype=np.int64),
                np.arange(later_words, later_words + later, dtype=np.int64),
            ]
        )


@dataclass(frozen=True, slots=True, eq=False)
class _StreamImage:
    pixels: ByteArray
    captions: tuple[str, ...]
    query: str
    later: bool


def later_share(kind: StreamKind, session: int, sessions: int) -> float:
    """Share of later scenes among a session's arrivals, from 0 to `_LATER_SHARE`."""
    sessions_of_shift = session - _SHIFT_BEGINS * sessions
    if kind == "stationary" or sessions_of_shift <= 0:
        return 0.0
    if kind == "abrupt":
        return _LATER_SHARE
    return _LATER_SHARE * min(1.0, sessions_of_shift / ((1 - _SHIFT_BEGINS) * sessions))


def draw_stream(config: StreamConfig) -> Stream:
    """Draw the stream of a seed.

    Streams of one seed differ only where later scenes replace first ones.
    """
    images: list[_StreamImage] = []
    for number in range(config.images):
        images.append(_draw_indexed(config, number))
    for number in range(2 * config.settling):
        images.append(_draw_settling(config, number))
    return Stream(
        config=config,
        pixels=np.stack([image.pixels for image in images]),
        captions=[image.captions for image in images],
        queries=[image.query for image in images],
        later=np.array([image.later for image in images], dtype=np.bool_),
        deleted=_draw_deletions(config),
    )


def draw_captioned_scene(
    rng: Random, later: bool, count: int, world: str = "corpus"
) -> tuple[ByteArray, tuple[str, ...]]:
    """Draw one scene and `count` captions.

    Returns (side, side, 3) uint8 of the side that the `tiny` profile looks at. `world` is `base`
    for scenes that pretraining may show, `corpus` for all others.
    """
    size = profile("tiny").tiny
    # Other profiles have none.
    assert size is not None
    scene = draw_scene(rng, world, LATER if later else FIRST)
    texts = captions(rng, scene, count)
    rendered = np.asarray(render(rng, scene, _RENDER_PX), dtype=np.uint8)
    return resize(rendered, size.image_px), texts


def _draw_indexed(config: StreamConfig, number: int) -> _StreamImage:
    session = 0
    if number >= config.first:
        session = 1 + (number - config.first) // config.arrivals
    share = later_share(config.kind, session, config.sessions)
    return _draw_image(config, f"image/{number}", share)


def _draw_settling(config: StreamConfig, number: int) -> _StreamImage:
    # The first half has scenes of the first words only, the second half later ones only.
    share = 0.0 if number < config.settling else 1.0
    return _draw_image(config, f"settling/{number}", share)


def _draw_image(config: StreamConfig, name: str, share: float) -> _StreamImage:
    """Draw the image of that name, a later scene with probability `share`."""
    # A random stream for each image: another number of arrivals leaves the first images as they
    # are, and the first number drawn decides its words in streams of every kind.
    rng = Random(f"study/{config.seed}/{name}")
    later = rng.random() < share
    pixels, texts = draw_captioned_scene(rng, later, config.captions + 1)
    return _StreamImage(pixels, texts[:-1], texts[-1], later)


def _draw_deletions(config: StreamConfig) -> tuple[IntArray, ...]:
    """Draw from the images that arrived in earlier sessions and are not deleted yet."""
    rng = np.random.default_rng((config.seed, _DELETION_STREAM))
    alive = np.ones(config.images, dtype=np.bool_)
    deletions = []
    for session in range(1, config.sessions + 1):
        arrived_before = config.first + (session - 1) * config.arrivals
        candidates = np.flatnonzero(alive[:arrived_before]).astype(np.int64)
        # A small stream may run out of images.
        count = min(config.deletions, len(candidates))
        chosen = np.sort(rng.choice(candidates, count, replace=False))
        alive[chosen] = False
        deletions.append(chosen)
    return tuple(deletions)
