"""The index of a study: one generation in memory, without a database.

Engine, assigner and ranking are the product's own. Letters in shapes: n images, M images of the
stream, W beams.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model.decoding.assign import BeamSearchAssigner, postings_with_primary
from model.decoding.leaves import Leaves
from model.identifiers.codebook import pack_all
from model.identifiers.instance_suffixes import assign_suffixes
from model.network.checkpoint import Checkpoint
from ops.jobs.known_items import DEPTH, Rank, rank_of
from ops.study.study_corpus import StudyCorpus
from schemas.records import ByteArray, FloatArray, IntArray, Posting
from schemas.retrieval_settings import RetrievalSettings
from workers.query.model_engine import ModelEngine
from workers.repository.follower import Changes, EmbeddingRows
from workers.repository.posting_rows import PostingRows

# Images that the model assigns together.
_IMAGE_BATCH = 64

# Queries decoded together, as many as the query worker takes at once.
_QUERY_BATCH = 16

# Marks a posting as an alternate, as in `PostingRows`.
_ALTERNATE_SUFFIX = -1


class StudyIndex:
    """One generation of a study. Image keys are the numbers of the stream."""

    def __init__(
        self, engine: ModelEngine, corpus: StudyCorpus, settings: RetrievalSettings
    ) -> None:
        """Take over an empty engine."""
        # Arrays for all images of the stream, so that an image's number is its row.
        images = len(corpus.embeddings)
        self.engine = engine
        self.corpus = corpus
        self.settings = settings
        self.codes = np.full((images, 4), -1, dtype=np.int64)
        """(M, 4) primary codes of the images that were posted, -1 for all others"""
        self.confidences = np.zeros(images, dtype=np.float32)
        """(M,) log-probability of each image's best leaf"""
        self._assigner = BeamSearchAssigner(
            engine.decoder, settings.postings, engine.checkpoint.codebook, settings.codebook_vote
        )

    @classmethod
    def open(
        cls, checkpoint: Checkpoint, corpus: StudyCorpus, folder: Path, settings: RetrievalSettings
    ) -> "StudyIndex":
        """Open an empty index of a checkpoint. `folder` is for files that may be lost."""
        return cls(ModelEngine.open(1, checkpoint, folder), corpus, settings)

    @property
    def checkpoint(self) -> Checkpoint:
        """The model and codebook of the generation."""
        return self.engine.checkpoint

    def load(self, numbers: IntArray, codes: IntArray) -> None:
        """Post images (n,) under given codes (n, 4).

        The alternates are the model's best other leaves.
        """
        shape = self.engine.shape
        placed = assign_suffixes(pack_all(codes, shape), shape)
        postings: list[tuple[Posting, ...]] = []
        for batch in _batches(len(numbers), _IMAGE_BATCH):
            chosen = numbers[batch]
            vectors = self.corpus.embeddings[chosen]
            leaves, scores = self._assigner.search(self._images(chosen), vectors)
            self.confidences[numbers[batch]] = scores[:, 0]
            for row, primary in enumerate(placed.leaves[batch].tolist()):
                postings.append(
                    postings_with_primary(primary, leaves[row], scores[row], self.settings.postings)
                )
        # The codes asked for, even where a full leaf made an image spill to another one: they are
        # what the next generation is to keep.
        self.codes[numbers] = codes
        self._post(numbers, postings, placed.suffixes.tolist())

    def append(self, numbers: IntArray) -> None:
        """Assign arrivals (n,) inductively and post them."""
        if not len(numbers):
            return
        assigned = self.assign(numbers)
        self.codes[numbers] = self.primary_codes(assigned)
        self.confidences[numbers] = [leaves.confidence for leaves in assigned]
        # A study does not decode suffixes, so those of arrivals may repeat.
        suffixes = [0] * len(assigned)
        self._post(numbers, [leaves.postings for leaves in assigned], suffixes)

    def assign(self, numbers: IntArray) -> list[Leaves]:
        """Return where the model would put images (n,), without posting them."""
        assigned: list[Leaves] = []
        for batch in _batches(len(numbers), _IMAGE_BATCH):
            chosen = numbers[batch]
            vectors = self.corpus.embeddings[chosen]
            assigned += self._assigner.assign(self._images(chosen), vectors)
        return assigned

    def primary_codes(self, assigned: Sequence[Leaves]) -> IntArray:
        """(n, 4) int64 codes of the primary leaf of each assignment."""
        shape = self.engine.shape
        codes = []
        for leaves in assigned:
            primary = leaves.postings[0]
            codes.append(shape.unpack(primary.leaf))
        return np.array(codes, dtype=np.int64)

    def delete(self, numbers: IntArray) -> None:
        """Delete images (n,)."""
        postings = PostingRows(
            leaves=np.empty(0, np.int64),
            image_keys=np.empty(0, np.int64),
            weights=np.empty(0, np.float32),
            suffixes=np.empty(0, np.int64),
        )
        embeddings = EmbeddingRows(
            image_keys=np.empty(0, np.int64),
            embeddings=np.empty((0, 0), np.float16),
            confidences=np.empty(0, np.float32),
            trained=np.empty(0, np.bool_),
        )
        self.engine.apply(Changes(postings, embeddings, deleted=numbers))

    def ranks(self, numbers: IntArray) -> list[Rank]:
        """Return the rank of each image (n,) for its held-out caption, None beyond the tenth."""
        ranks: list[Rank] = []
        for batch in _batches(len(numbers), _QUERY_BATCH):
            keys = numbers[batch].tolist()
            texts = [self.corpus.stream.queries[key] for key in keys]
            answers = self.engine.answer(texts, DEPTH, self.settings)
            for key, answer in zip(keys, answers, strict=True):
                ranks.append(rank_of(answer.image_keys, key))
        return ranks

    def close(self) -> None:
        """Free the engine's file."""
        self.engine.close()

    def _images(self, numbers: IntArray) -> Sequence[ByteArray]:
        return list(self.corpus.stream.pixels[numbers])

    def _post(
        self, numbers: IntArray, postings: Sequence[Sequence[Posting]], suffixes: Sequence[int]
    ) -> None:
        """Post images (n,) under the leaves of each, the primary leaf with the suffix given."""
        embeddings = EmbeddingRows(
            image_keys=numbers,
            # In half precision, as the database stores them.
            embeddings=self.corpus.embeddings[numbers].astype(np.float16),
            confidences=self.confidences[numbers],
            # The engine does not read it.
            trained=np.zeros(len(numbers), dtype=np.bool_),
        )
        rows = posting_rows(numbers, postings, suffixes)
        self.engine.apply(Changes(rows, embeddings, deleted=np.empty(0, np.int64)))


def exact_ranks(corpus: StudyCorpus, alive: IntArray, numbers: IntArray) -> list[Rank]:
    """Ranks as `StudyIndex.ranks` by exact dense search over the images `alive`: the yardstick."""
    # (n, alive) cosines.
    scores: FloatArray = corpus.query_embeddings[numbers] @ corpus.embeddings[alive].T
    # (n, DEPTH) rows of `alive`; stable, so that equal scores rank the same on every machine.
    best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    ranks = []
    for row, number in zip(best, numbers.tolist(), strict=True):
        ranks.append(rank_of(alive[row], number))
    return ranks


def posting_rows(
    numbers: IntArray, postings: Sequence[Sequence[Posting]], suffixes: Sequence[int]
) -> PostingRows:
    leaves: list[int] = []
    keys: list[int] = []
    weights: list[float] = []
    marks: list[int] = []
    for key, own, suffix in zip(numbers.tolist(), postings, suffixes, strict=True):
        for place, posting in enumerate(own):
            leaves.append(posting.leaf)
            keys.append(key)
            weights.append(posting.weight)
            marks.append(suffix if place == 0 else _ALTERNATE_SUFFIX)
    return PostingRows(
        leaves=np.array(leaves, np.int64),
        image_keys=np.array(keys, np.int64),
        weights=np.array(weights, np.float32),
        suffixes=np.array(marks, np.int64),
    )


def _batches(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, start + size)
