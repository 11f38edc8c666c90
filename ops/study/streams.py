"""Streams: what arrives and what is deleted in the sessions of the study, stationary, drifting slowly, or changed at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np

from model.network.profiles import profile
from model.network.resize import resize
from model.progress import Progress
from model.training.contrastive import CaptionedImages
from ops.scenes.captions import captions
from ops.scenes.drawing import render
from ops.scenes.scene import draw_scene
from ops.scenes.vocabulary import FIRST, LATER
from schemas.errors import UsageError
from schemas.records import BoolArray, ByteArray, IntArray

Kind = Literal["stationary", "gradual", "abrupt"]
KINDS: tuple[Kind, ...] = ("stationary", "gradual", "abrupt")

_RENDER_PX = 112
_SHIFT_BEGINS = 0.3
"""Of the sessions: drift-free time in which a shift has yet to begin."""
_LATER_SHARE = 0.6
"""Share of scenes of later words when a shift is complete."""


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Sizes of a stream: `first` images to train on, then the sessions, and beside them `settling` images of the first words and
    as many of the later ones, of which the monitors learn what is normal for a generation.

    Each session brings `arrivals` images and removes `deletions` at random. Each image has `captions` to learn from and one
    that is held out as a query.
    """

    kind: Kind
    seed: int = 0
    first: int = 320
    settling: int = 300
    sessions: int = 20
    arrivals: int = 16
    deletions: int = 3
    captions: int = 2

    def __post_init__(self) -> None:
        if (
            self.kind not in KINDS
            or min(self.first, self.settling, self.sessions, self.arrivals, self.captions) < 1
        ):
            raise UsageError(
                f"a stream of kind {self.kind!r} needs positive sizes and one of the kinds {', '.join(KINDS)}, got {self}"
            )

    @property
    def images(self) -> int:
        """Images of the index, deleted ones included; the settling ones are not among them."""
        return self.first + self.sessions * self.arrivals


@dataclass(frozen=True, slots=True)
class Stream:
    """All that happens, in memory. Images are numbered by arrival: the first ones, then each session's, then the settling ones."""

    config: StreamConfig
    pixels: ByteArray
    """(N + 2·settling, side, side, 3) uint8"""
    captions: list[tuple[str, ...]]
    queries: list[str]
    later: BoolArray
    """(N + 2·settling,) whether a scene is of the later words"""
    deleted: tuple[IntArray, ...]
    """Numbers that go in each session"""

    def arrivals(self, session: int) -> IntArray:
        """Numbers that arrive in a session; session 0 are the first images."""
        first, each = self.config.first, self.config.arrivals
        if session == 0:
            return np.arange(first, dtype=np.int64)
        return np.arange(first + (session - 1) * each, first + session * each, dtype=np.int64)

    def settling(self, session: int) -> IntArray:
        """Images like those that arrive in a session, which never enter the index: what a generation that begins then sees first."""
        config = self.config
        later = round(later_share(config.kind, session, config.sessions) * config.settling)
        first = np.arange(config.images, config.images + config.settling - later, dtype=np.int64)
        return np.concatenate(
            [
                first,
                np.arange(
                    config.images + config.settling,
                    config.images + config.settling + later,
                    dtype=np.int64,
                ),
            ]
        )


def later_share(kind: Kind, session: int, sessions: int) -> float:
    """Share of later scenes among a session's arrivals: none, a ramp, or a step after three tenths of the sessions."""
    begun = session - _SHIFT_BEGINS * sessions
    if kind == "stationary" or begun <= 0:
        return 0.0
    if kind == "abrupt":
        return _LATER_SHARE
    return _LATER_SHARE * min(1.0, begun / ((1 - _SHIFT_BEGINS) * sessions))


def draw_stream(config: StreamConfig) -> Stream:
    """The stream of a seed. Streams of one seed differ only where later scenes take the place of first ones."""
    total = config.images + 2 * config.settling
    pixels, texts, queries, later = [], [], [], np.zeros(total, dtype=np.bool_)
    for number in range(total):
        session = 0 if number < config.first else 1 + (number - config.first) // config.arrivals
        settled = number >= config.images
        rng = Random(
            f"study/{config.seed}/{'settling' if settled else 'image'}/{number - settled * config.images}"
        )
        share = (
            float(number >= config.images + config.settling)
            if settled
            else later_share(config.kind, session, config.sessions)
        )
        later[number] = rng.random() < share
        shown, words = draw(rng, bool(later[number]), config.captions + 1)
        pixels.append(shown)
        texts.append(words[:-1])
        queries.append(words[-1])
    return Stream(config, np.stack(pixels), texts, queries, later, _deletions(config))


def draw(
    rng: Random, later: bool, texts: int, world: str = "corpus"
) -> tuple[ByteArray, tuple[str, ...]]:
    """One scene: (side, side, 3) uint8 as the `tiny` profile looks at it, and its captions."""
    size = profile("tiny").tiny
    assert size is not None
    scene = draw_scene(rng, world, LATER if later else FIRST)
    words = captions(rng, scene, texts)
    return resize(np.asarray(render(rng, scene, _RENDER_PX), dtype=np.uint8), size.image_px), words


def wide_images(count: int, seed: int, progress: Progress) -> CaptionedImages:
    """Scenes of first and later words in equal parts that no stream shows: what pretrained models have seen of the world."""
    pixels: list[ByteArray] = []
    texts: list[Sequence[str]] = []
    with progress("draw scenes", count) as bar:
        for number in range(count):
            shown, words = draw(Random(f"wide/{seed}/{number}"), number % 2 == 1, 4, "base")
            pixels.append(shown)
            texts.append(words)
            bar.update(1)
    return CaptionedImages(np.stack(pixels), texts)


def _deletions(config: StreamConfig) -> tuple[IntArray, ...]:
    rng = np.random.default_rng((config.seed, 7))
    gone: set[int] = set()
    found = []
    for session in range(1, config.sessions + 1):
        there = np.array(
            [n for n in range(config.first + (session - 1) * config.arrivals) if n not in gone],
            dtype=np.int64,
        )
        chosen = np.sort(rng.choice(there, min(config.deletions, len(there)), replace=False))
        gone |= set(chosen.tolist())
        found.append(chosen)
    return tuple(found)
