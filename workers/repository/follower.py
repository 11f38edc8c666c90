"""The follower: how a query worker reads a generation once and then keeps up with every commit.

Following by an ascending number loses rows, because transactions commit out of order: number 7 may become visible after
number 8 was read. The follower remembers what its last transaction could see instead (`pg_current_snapshot`), and asks for
rows whose writer was not visible then. It needs one connection of its own, for it also listens for wake-ups.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg

from schemas.errors import RetryLaterError
from schemas.records import BoolArray, FloatArray, HalfArray, IntArray
from workers.repository.binary_copy import Rows, as_halves, read_rows, row_type
from workers.repository.connection import Connection, row, rows
from workers.repository.generations import live_number
from workers.repository.postings import CHANNEL

_POSTING = row_type({"leaf": ">i8", "image_key": ">i8", "weight": ">f4", "suffix": ">i4"})


@dataclass(frozen=True, slots=True)
class PostingRows:
    """P postings. A suffix of -1 marks an alternate."""

    leaves: IntArray
    """(P,)"""
    image_keys: IntArray
    """(P,)"""
    weights: FloatArray
    """(P,)"""
    suffixes: IntArray
    """(P,)"""

    def __len__(self) -> int:
        return len(self.leaves)


@dataclass(frozen=True, slots=True)
class EmbeddingRows:
    """N ranking embeddings of width D; D is 0 when there are none."""

    image_keys: IntArray
    """(N,) ascending"""
    embeddings: HalfArray
    """(N, D)"""
    confidences: FloatArray
    """(N,)"""
    trained: BoolArray
    """(N,)"""

    def __len__(self) -> int:
        return len(self.image_keys)


@dataclass(frozen=True, slots=True)
class Changes:
    """What to apply: first drop the `deleted` keys, then insert the postings. Keys never come back after deletion."""

    postings: PostingRows
    embeddings: EmbeddingRows
    deleted: IntArray

    def __bool__(self) -> bool:
        return bool(len(self.postings) or len(self.embeddings) or len(self.deleted))


class TrieFollower:
    """Reads one generation and follows it. Not for several threads."""

    def __init__(self, conn: Connection, generation: int) -> None:
        self.generation = generation
        self._conn = conn
        self._seen: str | None = None

    @classmethod
    def open(cls, conn: Connection, generation: int) -> "TrieFollower":
        """A follower that is listening, so that no commit after this call is missed by `wait`."""
        follower = cls(conn, generation)
        follower.listen(CHANNEL)
        return follower

    def listen(self, channel: str) -> None:
        """Let notifications of this channel end a `wait` too."""
        self._conn.execute(f"LISTEN {channel}".encode())

    def live(self) -> bool:
        """Whether this generation is the live one now."""
        return live_number(self._conn) == self.generation

    def load(self, sink: Callable[[EmbeddingRows], None] | None = None) -> Changes:
        """Everything, in one snapshot. With a `sink`, embeddings go there in chunks and the result has none."""
        with self._snapshot() as seen:
            parameters = {"generation": self.generation}
            postings = _postings(read_rows(self._conn, "copy_postings", _POSTING, parameters))
            chunks = self._embeddings("copy_image_embeddings", parameters)
            if sink is not None:
                for chunk in chunks:
                    sink(chunk)
            changes = Changes(
                postings=postings, embeddings=_joined(chunks), deleted=np.empty(0, np.int64)
            )
        self._seen = seen
        return changes

    def changes(self) -> Changes:
        """What became visible since the last call, empty when nothing did. An error leaves the follower where it was."""
        if self._seen is None:
            return self.load()
        with self._snapshot() as seen:
            parameters = {"generation": self.generation, "previous": self._seen}
            changes = Changes(
                postings=_postings(read_rows(self._conn, "changed_postings", _POSTING, parameters)),
                embeddings=_joined(self._embeddings("changed_embeddings", parameters)),
                deleted=np.array(
                    [key for (key,) in rows(self._conn, "changed_tombstones", previous=self._seen)],
                    dtype=np.int64,
                ),
            )
        self._seen = seen
        return changes

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()

    def wait(self, timeout_s: float) -> bool:
        """Sleeps until somebody changes an index or the time is over; returns whether somebody did."""
        return any(True for _ in self._conn.notifies(timeout=timeout_s, stop_after=1))

    def _embeddings(self, query: str, parameters: dict[str, Any]) -> Iterator[EmbeddingRows]:
        width = row(self._conn, "embedding_width", generation=self.generation)
        if width is None:
            return
        layout = row_type(
            {"image_key": ">i8", "confidence": ">f4", "trained": "u1", "embedding": f"V{width[0]}"}
        )
        for chunk in read_rows(self._conn, query, layout, parameters):
            yield EmbeddingRows(
                image_keys=chunk["image_key"].astype(np.int64),
                embeddings=as_halves(chunk["embedding"]),
                confidences=chunk["confidence"].astype(np.float32),
                trained=chunk["trained"].astype(np.bool_),
            )

    @contextmanager
    def _snapshot(self) -> Iterator[str]:
        """A read-only transaction whose statements all see what the yielded snapshot describes."""
        try:
            with self._conn.transaction():
                self._conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                found = row(self._conn, "current_snapshot")
                yield str(found[0]) if found else ""
        except psycopg.OperationalError as error:
            raise RetryLaterError(
                f"the database went away ({str(error).strip()[:300]}); connect again and load"
            ) from error


def _postings(chunks: Iterator[Rows]) -> PostingRows:
    parts = list(chunks)
    whole = np.concatenate(parts) if parts else np.empty(0, _POSTING)
    return PostingRows(
        leaves=whole["leaf"].astype(np.int64),
        image_keys=whole["image_key"].astype(np.int64),
        weights=whole["weight"].astype(np.float32),
        suffixes=whole["suffix"].astype(np.int64),
    )


def _joined(chunks: Iterator[EmbeddingRows]) -> EmbeddingRows:
    parts = list(chunks)
    if not parts:
        return EmbeddingRows(
            np.empty(0, np.int64),
            np.empty((0, 0), np.float16),
            np.empty(0, np.float32),
            np.empty(0, np.bool_),
        )
    return EmbeddingRows(
        image_keys=np.concatenate([part.image_keys for part in parts]),
        embeddings=np.concatenate([part.embeddings for part in parts]),
        confidences=np.concatenate([part.confidences for part in parts]),
        trained=np.concatenate([part.trained for part in parts]),
    )
