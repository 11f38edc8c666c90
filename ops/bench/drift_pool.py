"""The pool of the drift benchmark: real scenes, embedded, encoded and assigned by a model that was trained on others of them."""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np

from model.assign import Assigner
from model.base import SHIPPED, Base
from model.checkpoint import Parts, parts_of
from model.decoder import Decoder
from model.drift import Window
from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook
from model.identifiers.suffixes import assign_suffixes
from model.pixels import resize
from model.profiles import profile
from model.progress import quiet
from model.training import TrainingSet, run_stage, visual_tokens
from ops.corpus import IMAGE_SIDE_PX
from ops.scenes import COLOURS, GROUNDS, SHAPES, Scene, draw_scene, render
from schemas.records import ByteArray, IntArray

NEW = {"grounds": ("olive", "lavender"), "colours": ("pink", "purple"), "shapes": ("star", "heart")}
"""What no ordinary scene shows."""

TOPICS: dict[str, tuple[str, ...]] = {"grounds+colours+shapes": tuple(NEW), **{name: (name,) for name in NEW}}
"""New topics, each by what is new in it: the first is a subject never seen, the others are new in one respect only."""

_TRAINED, _EPOCHS, _BATCH, _PROCESSES = 600, 2.0, 64, 2


@dataclass(frozen=True, slots=True)
class Pool:
    """Images as the monitors see them: `ordinary` ones, and those of each new topic."""

    ordinary: Window
    topics: dict[str, Window]


def pool(seed: int, ordinary: int, topical: int) -> Pool:
    """A pool of `ordinary` images and `topical` ones of each topic; about two minutes on one core for 6,000 images."""
    wanted = [((), seed, 0, _TRAINED + ordinary), *((new, seed, 0, topical) for new in TOPICS.values())]
    pictures = _draw_all(wanted)
    chosen = profile("tiny")
    parts = parts_of(Base.load(SHIPPED), chosen)
    codebook = _train(parts, pictures[0][:_TRAINED], seed)
    common, *others = (_window(parts, codebook, part) for part in (pictures[0][_TRAINED:], *pictures[1:]))
    return Pool(common, dict(zip(TOPICS, others, strict=True)))


def taken(window: Window, rows: IntArray) -> Window:
    """These rows of a window."""
    return replace(
        window,
        codes=window.codes[rows],
        embeddings=window.embeddings[rows],
        confidences=window.confidences[rows],
        agreement=window.agreement[rows],
        leaf_loads=window.leaf_loads[rows],
    )


def joined(one: Window, other: Window) -> Window:
    """The rows of both."""
    return Window(
        np.concatenate([one.codes, other.codes]),
        np.concatenate([one.embeddings, other.embeddings]),
        np.concatenate([one.confidences, other.confidences]),
        np.concatenate([one.agreement, other.agreement]),
        np.concatenate([one.leaf_loads, other.leaf_loads]),
        one.query_scores,
    )


def scene(rng: Random, new: tuple[str, ...]) -> Scene:
    """A scene that shows only new things in the respects of `new`, and no new thing in any other."""

    def word(kind: str, words: tuple[str, ...]) -> str:
        return rng.choice(NEW[kind] if kind in new else [one for one in words if one not in NEW[kind]])

    while True:
        drawn = draw_scene(rng, "corpus")
        things = tuple(replace(t, shape=word("shapes", SHAPES), colour=word("colours", tuple(COLOURS))) for t in drawn.things)
        changed = replace(drawn, ground=word("grounds", tuple(GROUNDS)), things=things)
        # The shipped base has never seen this world.
        if changed.world == "corpus":
            return changed


def _draw_all(wanted: list[tuple[tuple[str, ...], int, int, int]]) -> list[ByteArray]:
    step = 500
    parts = [
        (at, (new, seed, first, min(step, count - first)))
        for at, (new, seed, _, count) in enumerate(wanted)
        for first in range(0, count, step)
    ]
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn")) as workers:
        drawn = list(workers.map(_draw, [part for _, part in parts]))
    return [np.concatenate([one for one, (owner, _) in zip(drawn, parts, strict=True) if owner == at]) for at in range(len(wanted))]


def _draw(part: tuple[tuple[str, ...], int, int, int]) -> ByteArray:
    """(count, side, side, 3) uint8 as the model looks at them."""
    new, seed, first, count = part
    size = profile("tiny").tiny
    assert size is not None
    found = []
    for number in range(first, first + count):
        rng = Random(f"drift/{'+'.join(new)}/{seed}/{number}")
        found.append(resize(np.asarray(render(rng, scene(rng, new), IMAGE_SIDE_PX), dtype=np.uint8), size.image_px))
    return np.stack(found)


def _train(parts: Parts, pictures: ByteArray, seed: int) -> Codebook:
    """Fit the codebook and teach the model to memorise it: assignment needs no more."""
    chosen = parts.sigma.profile
    embeddings = parts.encoder.embed_images(list(pictures))
    codebook = fit_codebook(embeddings, CodebookConfig(chosen.shape, seed=seed))
    suffixes = assign_suffixes(codebook.leaves(embeddings), chosen.shape).suffixes
    identifiers = np.column_stack([codebook.encode(embeddings), suffixes])
    visual = visual_tokens(parts.sigma, pictures, chosen.views, seed, quiet)
    data = TrainingSet(list(pictures), identifiers, [()] * len(pictures), None, visual)
    with tempfile.TemporaryDirectory() as folder:
        stage = replace(chosen.stage("memorize"), epochs=_EPOCHS)
        run_stage(parts.sigma, data, stage, Path(folder), seed=seed, resume=False, progress=quiet)
    parts.sigma.eval()
    return codebook


def _window(parts: Parts, codebook: Codebook, pictures: ByteArray) -> Window:
    """What the index worker would have stored of pictures. No leaf is near full, and nobody asks for them."""
    shape = parts.sigma.profile.shape
    assigner = Assigner(Decoder(parts.sigma), 1)
    found = [assigner.search(list(pictures[start : start + _BATCH])) for start in range(0, len(pictures), _BATCH)]
    leaves = np.concatenate([leaves[:, 0] for leaves, _ in found])
    codes = np.array([shape.unpack(int(leaf)) for leaf in leaves], np.int64)
    embeddings = parts.encoder.embed_images(list(pictures)).astype(np.float16).astype(np.float32)
    return Window(
        codes,
        embeddings,
        np.concatenate([scores[:, 0] for _, scores in found]).astype(np.float32),
        np.asarray(codebook.encode(embeddings)[:, 0] == codes[:, 0]),
        np.zeros(len(leaves), np.int64),
        np.zeros(0, np.float32),
    )
