"""Scenes of the drift benchmark: ordinary ones, and those of topics that are new."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from random import Random

import numpy as np

from model.network.profiles import profile
from model.network.resize import resize
from ops.scenes.captions import captions
from ops.scenes.corpus import IMAGE_SIDE_PX
from ops.scenes.drawing import render
from ops.scenes.scene import Scene, SceneObject, draw_scene
from ops.scenes.vocabulary import COLOURS, GROUNDS, SHAPES
from ops.study.streams import Stream, StreamConfig
from schemas.records import ByteArray

# What no ordinary scene shows, by respect.
NEW_WORDS = {
    "grounds": ("olive", "lavender"),
    "colours": ("pink", "purple"),
    "shapes": ("star", "heart"),
}

# New topics, each by the respects in which it is new: the first is a subject never seen.
TOPICS: dict[str, tuple[str, ...]] = {
    "grounds+colours+shapes": tuple(NEW_WORDS),
    "grounds": ("grounds",),
    "colours": ("colours",),
    "shapes": ("shapes",),
}

# Captions of an image to learn from; one more is held out as a query.
CAPTIONS = 2

# Drawing takes longer than reading the results; more processes than cores gain nothing.
_PROCESSES = 2

# Images that a process draws at a time: seconds of work for a message of some megabytes.
_CHUNK_IMAGES = 500


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """Images to draw: numbers `first` to `first + count` of one topic."""

    new: tuple[str, ...]
    """Respects in which the scenes are new; () for ordinary ones."""
    seed: int
    count: int
    first: int = 0


def draw_topic_scene(rng: Random, new: tuple[str, ...]) -> Scene:
    """A scene that shows only new things in the respects `new`, and none in any other."""

    def draw_word(respect: str, words: Sequence[str]) -> str:
        if respect in new:
            return rng.choice(NEW_WORDS[respect])
        return rng.choice([word for word in words if word not in NEW_WORDS[respect]])

    def redraw(scene_object: SceneObject) -> SceneObject:
        shape = draw_word("shapes", SHAPES)
        colour = draw_word("colours", tuple(COLOURS))
        return replace(scene_object, shape=shape, colour=colour)

    while True:
        scene = draw_scene(rng, "corpus")
        objects = tuple(redraw(scene_object) for scene_object in scene.objects)
        scene = replace(scene, ground=draw_word("grounds", tuple(GROUNDS)), objects=objects)
        # The change may have moved it into the world that the shipped base was trained on.
        if scene.world == "corpus":
            return scene


def draw_images(requests: Sequence[DrawRequest], seed: int) -> Stream:
    """Draw the images of all requests, in their order, as a stream without deletions."""
    chunks = []
    for request in requests:
        for first in range(0, request.count, _CHUNK_IMAGES):
            count = min(_CHUNK_IMAGES, request.count - first)
            chunks.append(replace(request, first=first, count=count))
    pixels = []
    texts: list[tuple[str, ...]] = []
    # Spawned: a fork of a process with PyTorch's threads may deadlock.
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn")) as processes:
        for chunk_pixels, chunk_texts in processes.map(_draw_chunk, chunks):
            pixels.append(chunk_pixels)
            texts += chunk_texts
    images = np.concatenate(pixels)
    return Stream(
        StreamConfig("stationary", seed=seed),
        images,
        captions=[image_texts[:-1] for image_texts in texts],
        queries=[image_texts[-1] for image_texts in texts],
        later=np.zeros(len(images), np.bool_),
        deleted=(),
    )


def _draw_chunk(request: DrawRequest) -> tuple[ByteArray, list[tuple[str, ...]]]:
    """(count, side, side, 3) uint8 as the model looks at them, and the texts of each image.

    The last text of an image is its query.
    """
    size = profile("tiny").tiny
    assert size is not None
    pixels = []
    texts = []
    for number in range(request.first, request.first + request.count):
        # By its number, so that an image does not depend on how the chunks are cut.
        rng = Random(f"drift/{'+'.join(request.new)}/{request.seed}/{number}")
        scene = draw_topic_scene(rng, request.new)
        image = np.asarray(render(rng, scene, IMAGE_SIDE_PX), dtype=np.uint8)
        pixels.append(resize(image, size.image_px))
        texts.append(captions(rng, scene, CAPTIONS + 1))
    return np.stack(pixels), texts
