"""The pool of the drift benchmark: real scenes, embedded, assigned and asked for, by a model that was trained on others of them."""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import torch

from model.drift.monitors import NOVEL_SHARE, ArrivalWindow, DriftReference, RecallCount
from model.network.base import SHIPPED, Base
from model.network.parts import parts_from_base
from model.network.profiles import profile
from model.network.resize import resize
from ops.scenes.captions import captions
from ops.scenes.corpus import IMAGE_SIDE_PX
from ops.scenes.drawing import render
from ops.scenes.scene import Scene, draw_scene
from ops.scenes.vocabulary import COLOURS, GROUNDS, SHAPES
from ops.study.index import Corpus, Index, corpus_of, view_tokens
from ops.study.learning import train_fully
from ops.study.streams import Stream, StreamConfig
from schemas.records import BoolArray, ByteArray, IntArray
from schemas.settings import RetrievalSettings

NEW = {"grounds": ("olive", "lavender"), "colours": ("pink", "purple"), "shapes": ("star", "heart")}
"""What no ordinary scene shows."""

TOPICS: dict[str, tuple[str, ...]] = {
    "grounds+colours+shapes": tuple(NEW),
    **{name: (name,) for name in NEW},
}
"""New topics, each by what is new in it: the first is a subject never seen, the others are new in one respect only."""

_TRAINED, _POSTINGS_AT_ONCE, _PROCESSES = 600, 1000, 2
_CAPTIONS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Images as the monitors see them, and whether each is `found` (n,): among the ten best for its held-out caption, in one gallery
    of all images of the pool."""

    window: ArrivalWindow
    found: BoolArray

    def __len__(self) -> int:
        return len(self.found)

    def taken(self, rows: IntArray) -> "Images":
        """These rows."""
        window = replace(
            self.window,
            codes=self.window.codes[rows],
            embeddings=self.window.embeddings[rows],
            confidences=self.window.confidences[rows],
            agreement=self.window.agreement[rows],
            leaf_loads=self.window.leaf_loads[rows],
        )
        return Images(window, self.found[rows])

    def joined(self, other: "Images") -> "Images":
        """The rows of both."""
        one, two = self.window, other.window
        window = ArrivalWindow(
            np.concatenate([one.codes, two.codes]),
            np.concatenate([one.embeddings, two.embeddings]),
            np.concatenate([one.confidences, two.confidences]),
            np.concatenate([one.agreement, two.agreement]),
            np.concatenate([one.leaf_loads, two.leaf_loads]),
            one.query_scores,
        )
        return Images(window, np.concatenate([self.found, other.found]))

    def recall(self, reference: DriftReference) -> RecallCount:
        """What the hourly job would learn of them by asking."""
        asked = self.found[
            reference.by_novelty(self.window.embeddings)[: round(NOVEL_SHARE * len(self))]
        ]
        return RecallCount(int(asked.sum()), len(asked))


@dataclass(frozen=True, slots=True)
class Pool:
    """`ordinary` images, and those of each new topic."""

    ordinary: Images
    topics: dict[str, Images]


def pool(seed: int, ordinary: int, topical: int) -> Pool:
    """A pool of `ordinary` images and `topical` ones of each topic; the model is trained on other ordinary ones."""
    wanted = [((), seed, _TRAINED + ordinary), *((new, seed, topical) for new in TOPICS.values())]
    stream = _draw_all(wanted, seed)
    chosen = profile("tiny")
    parts = parts_from_base(Base.load(SHIPPED), chosen)
    trained = np.arange(_TRAINED, dtype=np.int64)
    learnt = _part(stream, trained)
    done = train_fully(
        SHIPPED,
        chosen,
        corpus_of(
            learnt, parts.encoder, parts.teacher, view_tokens(parts.sigma, learnt.pixels, seed)
        ),
        trained,
        seed,
    )
    # Nothing but the training needs captions to learn from, the teacher's scores and visual tokens.
    rest = Corpus(
        stream,
        parts.encoder.embed_images(list(stream.pixels)),
        np.empty((0, 0), np.float32),
        torch.empty(0),
        [],
    )
    with tempfile.TemporaryDirectory() as folder:
        index = Index(done.checkpoint, rest, Path(folder), RetrievalSettings())
        index.load(trained, done.codes)
        streamed = np.arange(_TRAINED, len(stream.pixels), dtype=np.int64)
        for start in range(0, len(streamed), _POSTINGS_AT_ONCE):
            index.append(streamed[start : start + _POSTINGS_AT_ONCE])
        everything = Images(
            _window(index, streamed), np.array([rank is not None for rank in index.ranks(streamed)])
        )
        index.close()
    common = everything.taken(np.arange(ordinary))
    return Pool(
        common,
        {
            name: everything.taken(ordinary + at * topical + np.arange(topical))
            for at, name in enumerate(TOPICS)
        },
    )


def scene(rng: Random, new: tuple[str, ...]) -> Scene:
    """A scene that shows only new things in the respects of `new`, and no new thing in any other."""

    def word(kind: str, words: tuple[str, ...]) -> str:
        return rng.choice(
            NEW[kind] if kind in new else [one for one in words if one not in NEW[kind]]
        )

    while True:
        drawn = draw_scene(rng, "corpus")
        things = tuple(
            replace(t, shape=word("shapes", SHAPES), colour=word("colours", tuple(COLOURS)))
            for t in drawn.objects
        )
        changed = replace(drawn, ground=word("grounds", tuple(GROUNDS)), objects=things)
        # The shipped base has never seen this world.
        if changed.world == "corpus":
            return changed


def _draw_all(wanted: list[tuple[tuple[str, ...], int, int]], seed: int) -> Stream:
    step = 500
    parts = [
        (new, seed, first, min(step, count - first))
        for new, seed, count in wanted
        for first in range(0, count, step)
    ]
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn")) as workers:
        drawn = list(workers.map(_draw, parts))
    pixels = np.concatenate([one for one, _ in drawn])
    texts = [own for _, words in drawn for own in words]
    config = StreamConfig("stationary", seed=seed)
    return Stream(
        config,
        pixels,
        [own[:-1] for own in texts],
        [own[-1] for own in texts],
        np.zeros(len(pixels), np.bool_),
        (),
    )


def _part(stream: Stream, numbers: IntArray) -> Stream:
    """The stream of these images alone."""
    own = numbers.tolist()
    return replace(
        stream,
        pixels=stream.pixels[numbers],
        captions=[stream.captions[number] for number in own],
        queries=[stream.queries[number] for number in own],
        later=stream.later[numbers],
    )


def _draw(part: tuple[tuple[str, ...], int, int, int]) -> tuple[ByteArray, list[tuple[str, ...]]]:
    """(count, side, side, 3) uint8 as the model looks at them, and the captions of each, the last one a query."""
    new, seed, first, count = part
    size = profile("tiny").tiny
    assert size is not None
    pixels, words = [], []
    for number in range(first, first + count):
        rng = Random(f"drift/{'+'.join(new)}/{seed}/{number}")
        shown = scene(rng, new)
        pixels.append(
            resize(np.asarray(render(rng, shown, IMAGE_SIDE_PX), dtype=np.uint8), size.image_px)
        )
        words.append(captions(rng, shown, _CAPTIONS + 1))
    return np.stack(pixels), words


def _window(index: Index, numbers: IntArray) -> ArrivalWindow:
    """What the index worker would have stored of images. No leaf is near full, and no query is looked at."""
    codes, embeddings = (
        index.codes[numbers],
        index.corpus.embeddings[numbers].astype(np.float16).astype(np.float32),
    )
    return ArrivalWindow(
        codes,
        embeddings,
        index.confidences[numbers],
        np.asarray(index.checkpoint.codebook.encode(embeddings)[:, 0] == codes[:, 0]),
        np.zeros(len(numbers), np.int64),
        np.zeros(0, np.float32),
    )
