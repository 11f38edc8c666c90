"""The corpus generator: rendered scenes as image files with a manifest, by seed."""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from model.network.resize import resize
from model.progress import Progress
from ops.scenes.captions import captions
from ops.scenes.drawing import render
from ops.scenes.scene import Scene, draw_scene
from schemas.errors import UsageError
from schemas.records import ByteArray, ManifestEntry
from stream.manifest import write_manifest

# Side of a generated image: twice what the `tiny` profile looks at.
IMAGE_SIDE_PX = 112

# Smaller images cannot show a texture.
LEAST_SIDE_PX = 16

MOST_SIDE_PX = 2048

# Images that one drawing process makes at a time: bounds what travels between processes.
MOST_IMAGES_A_PART = 500


@dataclass(frozen=True, slots=True)
class CorpusConfig:
    """How a corpus is generated. The same values give the same bytes on every machine."""

    images: int
    seed: int = 0
    start: int = 0
    """Number of the first image: runs with disjoint ranges continue one stream."""
    captions: int = 4
    """Captions of an image to train on."""
    test_captions: int = 1
    """Captions of an image that are held out."""
    side_px: int = IMAGE_SIDE_PX
    world: str = "corpus"
    """`base` for scenes that the shipped base may be trained on, `corpus` for the others."""

    def __post_init__(self) -> None:
        _require("images", self.images, 1, None)
        _require("captions", self.captions, 0, None)
        _require("test_captions", self.test_captions, 0, None)
        _require("side_px", self.side_px, LEAST_SIDE_PX, MOST_SIDE_PX)


def _require(name: str, value: int, least: int, most: int | None) -> None:
    if value >= least and (most is None or value <= most):
        return
    allowed = f"at least {least}" if most is None else f"between {least} and {most}"
    raise UsageError(f"{name} of a corpus must be {allowed}, got {value}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated image before it is written: its scene, its random stream and its captions."""

    image_id: str
    scene: Scene
    captions: tuple[str, ...]
    test_captions: tuple[str, ...]
    rng: Random

    def pixels(self, side_px: int) -> ByteArray:
        """Draw the image, (side, side, 3) uint8. Call once: it advances the random stream."""
        return np.asarray(render(self.rng, self.scene, side_px), dtype=np.uint8)


def samples(config: CorpusConfig) -> Iterator[Sample]:
    """Yield the images of the corpus, each from its own random stream.

    So any range can be generated alone.
    """
    for number in range(config.start, config.start + config.images):
        rng = Random(f"{config.world}/{config.seed}/{number}")
        scene = draw_scene(rng, config.world)
        texts = captions(rng, scene, config.captions + config.test_captions)
        yield Sample(
            image_id=f"{config.world}-{config.seed}-{number:07d}",
            scene=scene,
            captions=texts[: config.captions],
            test_captions=texts[config.captions :],
            rng=rng,
        )


def fingerprints(config: CorpusConfig) -> set[str]:
    """Return the attribute hashes of a corpus without drawing it.

    They prove that two corpora share no scene.
    """
    return {sample.scene.fingerprint for sample in samples(config)}


def drawn(
    corpus: CorpusConfig, side_px: int, progress: Progress
) -> tuple[ByteArray, list[tuple[str, ...]]]:
    """Draw a corpus in memory with all cores.

    Returns (N, side, side, 3) uint8, and the texts of each image.
    """
    workers = os.cpu_count() or 1
    parts = _parts(corpus, math.ceil(corpus.images / workers))
    pixels: list[ByteArray] = []
    texts: list[tuple[str, ...]] = []
    with (
        progress("draw scenes", corpus.images) as bar,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        for part_pixels, part_texts in pool.map(_draw, parts, [side_px] * len(parts)):
            pixels.append(part_pixels)
            texts += part_texts
            bar.update(len(part_pixels))
    return np.concatenate(pixels), texts


def _parts(corpus: CorpusConfig, images_a_worker: int) -> list[CorpusConfig]:
    """Cut a corpus into ranges of images."""
    step = min(MOST_IMAGES_A_PART, images_a_worker)
    parts = []
    for begin in range(0, corpus.images, step):
        images = min(step, corpus.images - begin)
        parts.append(replace(corpus, start=corpus.start + begin, images=images))
    return parts


def _draw(corpus: CorpusConfig, side_px: int) -> tuple[ByteArray, list[tuple[str, ...]]]:
    pixels = []
    texts = []
    for sample in samples(corpus):
        pixels.append(resize(sample.pixels(corpus.side_px), side_px))
        texts.append(sample.captions + sample.test_captions)
    return np.stack(pixels), texts


def generate(
    config: CorpusConfig, folder: Path, split: str | None, tick: Callable[[int], None]
) -> Path:
    """Write `images/*.png` and `manifest.jsonl` below `folder`; return the manifest.

    `tick(1)` is called after each image. Files get their final name when they are complete, and the
    manifest comes last: an interrupted run leaves no manifest.
    """
    images = folder.absolute() / "images"
    images.mkdir(parents=True, exist_ok=True)
    entries: list[ManifestEntry] = []
    for sample in samples(config):
        path = images / f"{sample.image_id}.png"
        partial = path.with_suffix(".part")
        Image.fromarray(sample.pixels(config.side_px)).save(partial, format="PNG", compress_level=1)
        partial.replace(path)
        entries.append(
            ManifestEntry(
                image_id=sample.image_id,
                path=str(path),
                captions=sample.captions,
                test_captions=sample.test_captions,
                split=split,
            )
        )
        tick(1)
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, entries)
    return manifest
