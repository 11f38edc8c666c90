"""An engine without a model, and searchers of it without a database, for tests of values."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

import numpy as np

from model.network.encoder import Encoder
from schemas.errors import RetryLaterError
from schemas.filters import Filter
from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray, IntArray
from schemas.retrieval_settings import RetrievalSettings
from stream.images.store import ImageStore
from workers.query.descriptions import Descriptions
from workers.query.engine import QueryEngine, QueryPicture, RankedImages
from workers.query.searcher import Searcher
from workers.repository.connection import Connection
from workers.repository.follower import Changes, EmbeddingRows, TrieFollower
from workers.repository.generations import Generation
from workers.repository.posting_rows import PostingRows

SHAPE = IdentifierShape((2, 2, 2, 2), 4)
MOMENT = datetime(2026, 1, 2, tzinfo=UTC)


class UnitEncoder:
    """Gives every text and image the same embedding."""

    width = 2
    scale = 1.0

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        return np.tile(np.array([1.0, 0.0], np.float32), (len(texts), 1))

    def embed_images(self, images: Sequence[object]) -> FloatArray:
        return np.tile(np.array([1.0, 0.0], np.float32), (len(images), 1))


class KeysEngine:
    """A `QueryEngine` that answers with its newest keys, and remembers what was done to it."""

    def __init__(self, generation: int, keys: Sequence[int] = ()) -> None:
        self.generation = generation
        self.shape = SHAPE
        self.encoder: Encoder = UnitEncoder()
        self.keys = list(keys)
        self.exact: list[int] = []
        self.accelerated = False
        self.eager_searches: dict[str, int] = {}
        self.closed = False
        self.error: Exception | None = None

    @property
    def images(self) -> int:
        return len(self.keys)

    @property
    def occupied_leaves(self) -> int:
        return min(1, len(self.keys))

    def apply(self, changes: Changes) -> IntArray:
        self.keys += changes.embeddings.image_keys.tolist()
        return changes.embeddings.image_keys

    def answer(
        self,
        texts: Sequence[str],
        count: int,
        settings: RetrievalSettings,
        wanted: Filter | None = None,
    ) -> list[RankedImages]:
        if self.error is not None:
            raise self.error
        return [ranked(self.keys[:count]) for _ in texts]

    def answer_vectors(
        self, texts: Sequence[str], vectors: FloatArray, count: int, settings: RetrievalSettings
    ) -> list[RankedImages]:
        return self.answer(texts, count, settings)

    def query_vectors(self, texts: Sequence[str], image_keys: Sequence[int]) -> FloatArray:
        return self.encoder.embed_texts(texts)

    def answer_pictures(
        self,
        pictures: Sequence[QueryPicture],
        count: int,
        settings: RetrievalSettings,
        wanted: Filter | None = None,
    ) -> list[RankedImages]:
        return self.answer([""] * len(pictures), count, settings)

    def prepare_pictures(self) -> None:
        pass

    def explain(self, codes: Sequence[int]) -> str | None:
        return f"codes {list(codes)}"

    def answer_paper(
        self,
        texts: Sequence[str],
        count: int,
        settings: RetrievalSettings,
        wanted: Filter | None = None,
    ) -> list[RankedImages]:
        return self.answer(texts, count, settings)

    def answer_exact(self, queries: FloatArray, count: int) -> list[RankedImages]:
        return [ranked(self.exact[:count]) for _ in queries]

    def newest(self, count: int) -> IntArray:
        return np.array(self.keys[-count:], np.int64)

    def close(self) -> None:
        self.closed = True


class Closing:
    """Whatever only has to be closed: a connection, a follower."""

    def close(self) -> None:
        pass


def ranked(keys: Sequence[int]) -> RankedImages:
    """Images in that order, with falling scores."""
    scores = -np.arange(len(keys), dtype=np.float32)
    no_scores = np.empty(0, np.float32)
    return RankedImages(
        np.array(keys, np.int64), scores, len(keys), np.empty(0, np.int64), no_scores
    )


def unreachable() -> Connection:
    """In place of opening another connection."""
    raise RetryLaterError("the database does not answer")


def generation(number: int, state: str = "shadow", ended_day: int | None = None) -> Generation:
    """A generation's row; `ended_day` is the day of January on which it was retired."""
    ended_at = None if ended_day is None else MOMENT.replace(day=ended_day)
    return Generation(number, state, None, None, SHAPE, GenerationConfig(), MOMENT, None, ended_at)


def searcher(engine: KeysEngine) -> Searcher[QueryEngine]:
    """A searcher whose connections are closed and never used."""
    idle = Closing()
    found: Searcher[QueryEngine] = Searcher(
        generation(engine.generation),
        engine,
        Descriptions(cast(Connection, idle), unreachable, engine.generation, SHAPE),
        cast(TrieFollower, idle),
        cast(ImageStore, idle),
        RetrievalSettings(),
    )
    return found


def arrivals(keys: Sequence[int]) -> Changes:
    """Changes that add images without postings."""
    count = len(keys)
    no_keys = np.empty(0, np.int64)
    return Changes(
        PostingRows(no_keys, no_keys, np.empty(0, np.float32), no_keys),
        EmbeddingRows(
            np.array(keys, np.int64),
            np.zeros((count, 2), np.float16),
            np.zeros(count, np.float32),
            np.zeros(count, np.bool_),
        ),
        no_keys,
    )
