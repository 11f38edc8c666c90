"""The index of a study: one generation in memory, with the product's own engine, assigner and ranking, and no database."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from model.decoding.assign import BeamSearchAssigner, postings_with_primary
from model.decoding.leaves import Leaves
from model.identifiers.codebook import pack_all
from model.identifiers.instance_suffixes import assign_suffixes
from model.network.checkpoint import Checkpoint
from model.network.encoder import Encoder
from model.network.sigma import SigmaModel
from model.network.teacher import Teacher
from model.training.image_views import visual_tokens
from ops.study.streams import Stream
from schemas.records import ByteArray, FloatArray, IntArray, Posting
from schemas.settings import RetrievalSettings
from workers.query.engine import ModelEngine
from workers.repository.follower import Changes, EmbeddingRows, PostingRows

DEPTH = 10
_BATCH = 64

Ranks = list[int | None]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A stream with all that does not change when a model is retrained: embeddings, visual tokens, the teacher's scores.

    Encoder, teacher and vision tower are frozen, as the pretrained ones of the paper are, so every policy shares these.
    """

    stream: Stream
    embeddings: FloatArray
    """(N, D) unit length"""
    texts: FloatArray
    """(N, D) of the held-out captions"""
    visual: Tensor
    """(V, N, T, H)"""
    soft_labels: list[FloatArray]


def corpus_of(stream: Stream, encoder: Encoder, teacher: Teacher, visual: Tensor) -> Corpus:
    """Everything that is computed once for a stream."""
    pixels = list(stream.pixels)
    flat = [
        (image, text) for image, own in zip(pixels, stream.captions, strict=True) for text in own
    ]
    scores = [
        teacher.score(
            [image for image, _ in flat[start : start + _BATCH]],
            [text for _, text in flat[start : start + _BATCH]],
        )
        for start in range(0, len(flat), _BATCH)
    ]
    labels = np.split(np.concatenate(scores), np.cumsum([len(own) for own in stream.captions])[:-1])
    return Corpus(
        stream, encoder.embed_images(pixels), encoder.embed_texts(stream.queries), visual, labels
    )


class Index:
    """One generation: who stands where. Image keys are the numbers of the stream."""

    def __init__(
        self, checkpoint: Checkpoint, corpus: Corpus, folder: Path, settings: RetrievalSettings
    ) -> None:
        self.checkpoint = checkpoint
        self.corpus = corpus
        self.engine = ModelEngine.open(1, checkpoint, folder)
        self.settings = settings
        self.codes = np.full((len(corpus.embeddings), 4), -1, dtype=np.int64)
        """(N, 4) primary codes of the images that were posted."""
        self.confidences = np.zeros(len(corpus.embeddings), dtype=np.float32)
        self._assigner = BeamSearchAssigner(self.engine.decoder, settings.postings)

    def load(self, numbers: IntArray, codes: IntArray) -> None:
        """Post images under given codes (n, 4), with the model's best other leaves as alternates."""
        shape = self.engine.shape
        suffixed = assign_suffixes(pack_all(codes, shape), shape)
        posted: list[tuple[Posting, ...]] = []
        for start in range(0, len(numbers), _BATCH):
            part = slice(start, start + _BATCH)
            found, scores = self._assigner.search(self._pictures(numbers[part]))
            self.confidences[numbers[part]] = scores[:, 0]
            own = suffixed.leaves[part].tolist()
            posted += [
                postings_with_primary(leaf, *row, self.settings.postings)
                for leaf, row in zip(own, zip(found, scores, strict=True), strict=True)
            ]
        self.codes[numbers] = codes
        self._post(numbers, posted, suffixed.suffixes.tolist())

    def append(self, numbers: IntArray) -> None:
        """Assign arrivals inductively and post them."""
        if not len(numbers):
            return
        leaves = self.assign(numbers)
        self.codes[numbers] = [self.engine.shape.unpack(one.postings[0].leaf) for one in leaves]
        self.confidences[numbers] = [one.confidence for one in leaves]
        self._post(numbers, [one.postings for one in leaves], [0] * len(leaves))

    def assign(self, numbers: IntArray) -> list[Leaves]:
        """Where the model would put images, without posting them."""
        return [
            one
            for start in range(0, len(numbers), _BATCH)
            for one in self._assigner.assign(self._pictures(numbers[start : start + _BATCH]))
        ]

    def delete(self, numbers: IntArray) -> None:
        """Take images out."""
        nothing = PostingRows(
            np.empty(0, np.int64),
            np.empty(0, np.int64),
            np.empty(0, np.float32),
            np.empty(0, np.int64),
        )
        none = EmbeddingRows(
            np.empty(0, np.int64),
            np.empty((0, 0), np.float16),
            np.empty(0, np.float32),
            np.empty(0, np.bool_),
        )
        self.engine.apply(Changes(nothing, none, numbers))

    def ranks(self, numbers: IntArray) -> Ranks:
        """The rank of each image for its held-out caption, None beyond the tenth."""
        texts = [self.corpus.stream.queries[number] for number in numbers.tolist()]
        answers = [
            one
            for start in range(0, len(texts), 16)
            for one in self.engine.answer(texts[start : start + 16], DEPTH, self.settings)
        ]
        return [
            _position(answer.image_keys, number)
            for answer, number in zip(answers, numbers.tolist(), strict=True)
        ]

    def close(self) -> None:
        """Free the engine's file."""
        self.engine.close()

    def _pictures(self, numbers: IntArray) -> Sequence[ByteArray]:
        return list(self.corpus.stream.pixels[numbers])

    def _post(
        self, numbers: IntArray, posted: Sequence[Sequence[Posting]], suffixes: Sequence[int]
    ) -> None:
        """Suffixes are not asked for in a study, so those of arrivals may repeat."""
        flat = [
            (posting.leaf, key, posting.weight, -1 if rank else suffix)
            for key, own, suffix in zip(numbers.tolist(), posted, suffixes, strict=True)
            for rank, posting in enumerate(own)
        ]
        leaves, keys, weights, marks = zip(*flat, strict=True)
        rows = PostingRows(
            np.array(leaves, np.int64),
            np.array(keys, np.int64),
            np.array(weights, np.float32),
            np.array(marks, np.int64),
        )
        embeddings = self.corpus.embeddings[numbers].astype(np.float16)
        trained = np.zeros(len(numbers), dtype=np.bool_)
        self.engine.apply(
            Changes(
                rows,
                EmbeddingRows(numbers, embeddings, self.confidences[numbers], trained),
                np.empty(0, np.int64),
            )
        )


def exact_ranks(corpus: Corpus, alive: IntArray, numbers: IntArray) -> Ranks:
    """The same by exact dense search over the images alive: the yardstick."""
    scores = corpus.texts[numbers] @ corpus.embeddings[alive].T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    return [
        _position(alive[row], number) for row, number in zip(best, numbers.tolist(), strict=True)
    ]


def view_tokens(sigma: SigmaModel, pixels: ByteArray, seed: int) -> Tensor:
    """(V, N, T, H) visual tokens of all images in all views; the vision tower is the same in every generation."""
    return visual_tokens(sigma, pixels, sigma.profile.views, seed)


def _position(keys: IntArray, key: int) -> int | None:
    at = np.flatnonzero(keys == key)
    return int(at[0]) + 1 if len(at) else None
