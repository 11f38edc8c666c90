"""The follower: how a query worker reads a generation once and then keeps up with every commit.

Following by an ascending number loses rows, because transactions commit out of order: number 7
may become visible after number 8 was read. So the follower remembers what its last transaction
could see (`pg_current_snapshot`), and asks for rows whose writer was not visible then.

It needs its own connection, because it also listens for notifications.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

import numpy as np
import psycopg

from schemas.errors import RetryLaterError, brief
from schemas.metadata import Metadata, stored_metadata
from schemas.named_sql import queries
from schemas.records import BoolArray, FloatArray, HalfArray, IntArray
from workers.repository.binary_copy import as_halves, read_rows, row_layout
from workers.repository.connection import Connection, fetch_column, fetch_row
from workers.repository.counters import Totals, totals
from workers.repository.generations import live_number
from workers.repository.posting_rows import PostingRows, read_postings
from workers.repository.postings import CHANNEL

# Seconds after which what was removed meanwhile may be forgotten: half of the days that tombstones
# are kept.
_TOO_LATE_S = 3.5 * 86_400


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

    def without(self, image_keys: IntArray) -> "EmbeddingRows":
        """Those of all other images."""
        return self.only(~np.isin(self.image_keys, image_keys))

    def only(self, kept: BoolArray | IntArray) -> "EmbeddingRows":
        """Some of them, by (N,) mask or by row."""
        return EmbeddingRows(
            self.image_keys[kept],
            self.embeddings[kept],
            self.confidences[kept],
            self.trained[kept],
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """What to apply: first remove the `deleted` keys, then insert the rest.

    A deleted key never comes back.
    """

    postings: PostingRows
    embeddings: EmbeddingRows
    deleted: IntArray
    """(K,) image keys"""
    metadata: Mapping[int, Metadata] = field(default_factory=dict)
    """Of the images of `embeddings` that have some, by image key. It never changes."""

    def __bool__(self) -> bool:
        return bool(len(self.postings) or len(self.embeddings) or len(self.deleted))

    @property
    def images(self) -> int:
        """How many images come or go."""
        return len(self.embeddings) + len(self.deleted)

    def slices(self, most: int) -> "Iterator[Changes]":
        """The same in parts of `most` images or fewer, to be applied one after the other.

        Images come whole, and before the deletions: a new version of an image is there before the
        old one goes.
        """
        embeddings = self.embeddings.without(self.deleted)
        postings = self.postings.only(~np.isin(self.postings.image_keys, self.deleted))
        none = np.empty(0, np.int64)
        order = np.argsort(postings.image_keys, kind="stable")
        keys = np.union1d(embeddings.image_keys, postings.image_keys)
        # Each part begins at one of these keys, but for the first.
        begins = keys[most::most]
        parts = zip(
            np.split(order, np.searchsorted(postings.image_keys[order], begins)),
            np.split(np.arange(len(embeddings)), np.searchsorted(embeddings.image_keys, begins)),
            strict=True,
        )
        for own_postings, own_embeddings in parts:
            own = embeddings.only(own_embeddings)
            metadata = {
                key: self.metadata[key] for key in own.image_keys.tolist() if key in self.metadata
            }
            part = Changes(postings.only(own_postings), own, none, metadata)
            if part:
                yield part
        for begin in range(0, len(self.deleted), most):
            deleted = self.deleted[begin : begin + most]
            yield Changes(postings.only(none), embeddings.only(none), deleted)


@dataclass(frozen=True, slots=True)
class FollowedTo:
    """How far a follower has read: where another one may go on."""

    snapshot: str
    """What its last transaction could see."""
    epoch: int
    """The database's epoch then."""
    cluster: str
    """Which database that was."""
    read_at: datetime
    """When that was, by the database's clock."""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What a follower finds that goes on where another one was."""

    changes: Changes
    """What became visible meanwhile; the metadata is that of all images."""
    totals: Totals
    """The generation as it is now."""


class TrieFollower:
    """Reads one generation and follows it. Not thread-safe."""

    def __init__(self, conn: Connection, generation: int) -> None:
        self.generation = generation
        self._conn = conn
        self.followed_to: FollowedTo | None = None
        """None before the first load."""

    @classmethod
    def open(cls, conn: Connection, generation: int) -> Self:
        """Start listening, so that `wait` misses no commit from here on."""
        follower = cls(conn, generation)
        follower.listen(CHANNEL)
        return follower

    def listen(self, channel: str) -> None:
        """Let notifications of this channel end a `wait` too."""
        self._conn.execute(f"LISTEN {channel}".encode())

    def live(self) -> bool:
        """Return whether this generation is the live one now."""
        return live_number(self._conn) == self.generation

    def load(self, sink: Callable[[EmbeddingRows], None] | None = None) -> Changes:
        """Read everything in one snapshot.

        With a `sink`, embeddings go there in chunks and the result has none: so an index is built
        without a second copy of all embeddings in memory.
        """
        parameters = {"generation": self.generation}
        with self._read_only_transaction() as now:
            postings = read_postings(self._conn, "copy_postings", "copy_more_postings", parameters)
            chunks = self._embeddings("copy_image_embeddings", parameters)
            if sink is not None:
                # Leaves nothing in the iterator, so that the result has no embeddings.
                for chunk in chunks:
                    sink(chunk)
            changes = Changes(
                postings=postings,
                embeddings=_joined_embeddings(chunks),
                deleted=np.empty(0, np.int64),
                metadata=self._metadata("copy_metadata", parameters),
            )
        # Only now: after an error the next call loads again.
        self.followed_to = now
        return changes

    def resume(self, previous: FollowedTo) -> CaughtUp:
        """Go on where another follower was, instead of loading everything.

        `RetryLaterError` when that is too long ago, or was in another database or its future.
        """
        parameters = {"generation": self.generation}
        with self._read_only_transaction() as now:
            changes = self._changes_between(previous, now)
            metadata = self._metadata("copy_metadata", parameters)
            caught_up = CaughtUp(
                replace(changes, metadata=metadata), totals(self._conn, self.generation)
            )
        self.followed_to = now
        return caught_up

    def changes(self) -> Changes:
        """Read what became visible since the last call; everything at the first call.

        After an error the follower is where it was, so the next call reads the same changes.
        """
        previous = self.followed_to
        if previous is None:
            return self.load()
        with self._read_only_transaction() as now:
            changes = self._changes_between(previous, now)
            if len(changes.embeddings):
                keys = {"image_keys": changes.embeddings.image_keys.tolist()}
                changes = replace(changes, metadata=self._metadata("metadata_of_images", keys))
        # Only after the transaction ended well.
        self.followed_to = now
        return changes

    def wait(self, timeout_s: float) -> bool:
        """Sleep until an index changes or the timeout; return whether one changed."""
        return any(True for _ in self._conn.notifies(timeout=timeout_s, stop_after=1))

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()

    def _embeddings(self, query: str, parameters: Mapping[str, object]) -> Iterator[EmbeddingRows]:
        # Rows have one width inside a generation, but generations differ.
        width = fetch_row(self._conn, "embedding_width", generation=self.generation)
        if width is None:
            return
        layout = row_layout(
            {"image_key": ">i8", "confidence": ">f4", "trained": "u1", "embedding": f"V{width[0]}"}
        )
        for chunk in read_rows(self._conn, query, layout, parameters):
            yield EmbeddingRows(
                image_keys=chunk["image_key"].astype(np.int64),
                embeddings=as_halves(chunk["embedding"]),
                confidences=chunk["confidence"].astype(np.float32),
                trained=chunk["trained"].astype(np.bool_),
            )

    def _metadata(self, query: str, parameters: Mapping[str, object]) -> dict[int, Metadata]:
        found = {}
        with self._conn.cursor() as cursor, cursor.copy(queries()[query], parameters) as copy:
            copy.set_types(["int8", "jsonb"])
            for key, document in copy.rows():
                found[int(key)] = stored_metadata(document)
        return found

    def _changes_between(self, previous: FollowedTo, now: FollowedTo) -> Changes:
        """What became visible, without metadata."""
        _require_continuous(previous, now)
        parameters = {"generation": self.generation, "previous": previous.snapshot}
        postings = read_postings(
            self._conn, "changed_postings", "changed_more_postings", parameters
        )
        embeddings = self._embeddings("changed_embeddings", parameters)
        return Changes(
            postings=postings,
            embeddings=_joined_embeddings(embeddings),
            deleted=self._deleted_since(previous.snapshot),
        )

    def _deleted_since(self, snapshot: str) -> IntArray:
        keys = fetch_column(self._conn, "changed_tombstones", previous=snapshot)
        return np.array(keys, dtype=np.int64)

    @contextmanager
    def _read_only_transaction(self) -> Iterator[FollowedTo]:
        """Run statements that all see the same, and yield what describes it.

        REPEATABLE READ: under READ COMMITTED each statement would see more than the snapshot
        says, and the next call would return those rows again.
        """
        try:
            with self._conn.transaction():
                self._conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                row = fetch_row(self._conn, "current_snapshot")
                if row is None:
                    raise RetryLaterError("the database has no epoch; initialise it: sigma init")
                yield FollowedTo(*row)
        except psycopg.OperationalError as error:
            raise RetryLaterError(
                f"the connection to the database was lost ({brief(error)}); connect and load again"
            ) from error


def _require_continuous(previous: FollowedTo, now: FollowedTo) -> None:
    """`RetryLaterError` unless all that happened between two moments can be read."""
    if (now.cluster, now.epoch) != (previous.cluster, previous.epoch):
        raise RetryLaterError("the database was restored or is another; connect and load again")
    if _newest_transaction(now) < _newest_transaction(previous):
        raise RetryLaterError("the database was set back; connect and load again")
    if (now.read_at - previous.read_at).total_seconds() > _TOO_LATE_S:
        raise RetryLaterError(
            "the index was read too long ago, and removals since then may be forgotten; "
            "connect and load again"
        )


def _newest_transaction(moment: FollowedTo) -> int:
    """One above the last transaction that had begun then: the xmax of a snapshot's text."""
    return int(moment.snapshot.split(":")[1])


def _joined_embeddings(chunks: Iterator[EmbeddingRows]) -> EmbeddingRows:
    parts = list(chunks)
    if not parts:
        return EmbeddingRows(
            image_keys=np.empty(0, np.int64),
            embeddings=np.empty((0, 0), np.float16),
            confidences=np.empty(0, np.float32),
            trained=np.empty(0, np.bool_),
        )
    return EmbeddingRows(
        image_keys=np.concatenate([part.image_keys for part in parts]),
        embeddings=np.concatenate([part.embeddings for part in parts]),
        confidences=np.concatenate([part.confidences for part in parts]),
        trained=np.concatenate([part.trained for part in parts]),
    )
