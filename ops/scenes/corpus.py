"""The corpus generator: rendered scenes as image files with a manifest, seeded and deterministic."""

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
from ops.scenes.scenes import Scene, captions, draw_scene, render
from schemas.errors import UsageError
from schemas.records import ByteArray, ManifestEntry
from stream.manifest import write_manifest

IMAGE_SIDE_PX = 112
"""Side of a generated image: twice what the `tiny` profile looks at."""


@dataclass(frozen=True, slots=True)
class CorpusConfig:
    """How a corpus is generated. The same values give the same bytes on every machine.

    `images` are numbered from `start`, so that two runs with disjoint ranges continue one stream; each image gets
    `captions` captions for training and `test_captions` that are held out.
    """

    images: int
    seed: int = 0
    start: int = 0
    captions: int = 4
    test_captions: int = 1
    side_px: int = IMAGE_SIDE_PX
    world: str = "corpus"

    def __post_init__(self) -> None:
        if (
            self.images < 1
            or self.captions < 0
            or self.test_captions < 0
            or not 16 <= self.side_px <= 2048
        ):
            raise UsageError(
                f"a corpus of {self.images} images with {self.captions}+{self.test_captions} captions at {self.side_px} px: "
                "images must be at least 1, caption counts at least 0, the side 16..2048 px"
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated image before it is written: its scene, its random stream and its captions."""

    image_id: str
    scene: Scene
    captions: tuple[str, ...]
    test_captions: tuple[str, ...]
    rng: Random

    def pixels(self, side_px: int) -> ByteArray:
        """(side, side, 3) uint8; call once, it advances the sample's random stream."""
        return np.asarray(render(self.rng, self.scene, side_px), dtype=np.uint8)


def samples(config: CorpusConfig) -> Iterator[Sample]:
    """The images of the corpus, each from its own random stream: any range can be generated alone."""
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
    """Attribute hashes of a corpus without drawing it: proves that two corpora share no scene."""
    return {sample.scene.fingerprint for sample in samples(config)}


def drawn(
    corpus: CorpusConfig, side_px: int, progress: Progress
) -> tuple[ByteArray, list[tuple[str, ...]]]:
    """A generated corpus in memory, drawn by all cores: (N, side, side, 3) uint8 and each image's texts."""
    workers = os.cpu_count() or 1
    step = max(1, min(500, -(-corpus.images // workers)))
    parts = [
        replace(corpus, start=corpus.start + begin, images=min(step, corpus.images - begin))
        for begin in range(0, corpus.images, step)
    ]
    pixels: list[ByteArray] = []
    texts: list[tuple[str, ...]] = []
    with (
        progress("draw scenes", corpus.images) as bar,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        for part, names in pool.map(_draw, parts, [side_px] * len(parts)):
            pixels.append(part)
            texts += names
            bar.update(len(part))
    return np.concatenate(pixels), texts


def _draw(corpus: CorpusConfig, side_px: int) -> tuple[ByteArray, list[tuple[str, ...]]]:
    found = [
        (resize(sample.pixels(corpus.side_px), side_px), sample.captions + sample.test_captions)
        for sample in samples(corpus)
    ]
    return np.stack([pixels for pixels, _ in found]), [texts for _, texts in found]


def generate(
    config: CorpusConfig, folder: Path, split: str | None, tick: Callable[[int], None]
) -> Path:
    """Write `images/*.png` and `manifest.jsonl` below `folder`; returns the manifest. `tick(1)` after each image.

    Files get their final name when they are complete, the manifest comes last: an interrupted run leaves no manifest.
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
