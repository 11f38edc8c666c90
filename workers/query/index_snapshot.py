"""The index snapshot: a generation's index in a file, so that a query worker is ready soon.

A worker takes the snapshot over and reads what was committed since; only where that does not give
what the database counts does it read everything. The file may be lost, damaged or old at any time.

Metadata is not in it: what a deleted image carried must not outlive it in a file.
"""

from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import structlog

from schemas.records import JsonObject
from workers.query.array_file import read_arrays, write_arrays
from workers.query.generation_index import GenerationIndex
from workers.repository.connection import Connection
from workers.repository.follower import CaughtUp, FollowedTo, TrieFollower

# Version of what the arrays mean; another one is not read.
_FORMAT = 3

# Images below which a snapshot is not worth a file: they are read in half a second.
LEAST_IMAGES = 10_000

# Changed images after which a new snapshot is written, as a share of all: to catch up with them
# takes as much of the time of a full load.
_CHANGED_SHARE = 1 / 8

# Seconds after which one is written all the same: less than half of the time that removals are
# remembered, and embeddings of deleted images stay in the file no longer.
_MOST_AGE_S = 86_400.0

_PREFIX = "index-"

log = structlog.get_logger()


class IndexSnapshot:
    """The snapshot of one generation, in the folder of files that may be lost."""

    def __init__(
        self,
        folder: Path,
        generation: int,
        connect: Callable[[str], Connection],
        least_images: int = LEAST_IMAGES,
    ) -> None:
        """Nothing is written for less than `least_images`."""
        self.folder = folder
        self.path = folder / f"{_PREFIX}{generation}"
        self.generation = generation
        self._connect = connect
        self._least_images = least_images

    def fill(self, index: GenerationIndex, follower: TrieFollower) -> None:
        """Fill an empty index with what the database has now, and keep a new snapshot if due."""
        changed = self._fill(index, follower)
        if self.is_due(changed, 0.0, index.trie.images):
            self._write(index, follower)

    def renew(self, kind: GenerationIndex) -> None:
        """Write a new snapshot from the old one and the database; an index of this kind is made.

        So nobody has to wait for an index that is in use. It takes as much memory meanwhile.
        """
        with (
            closing(kind.empty_copy(self.folder)) as index,
            self._connect(f"snapshot {self.generation}") as conn,
        ):
            follower = TrieFollower(conn, self.generation)
            self._fill(index, follower)
            self._write(index, follower)

    def is_due(self, changed: int, age_s: float, images: int) -> bool:
        """Whether to renew the snapshot when so many images changed since, of so many."""
        return changed >= max(self._least_images, _CHANGED_SHARE * images) or (
            images >= self._least_images and age_s >= _MOST_AGE_S
        )

    def _fill(self, index: GenerationIndex, follower: TrieFollower) -> int:
        """Fill an index; returns how many images had to be read."""
        changed = self._restore(index, follower)
        if changed is not None:
            return changed
        index.apply(follower.load(sink=index.add_embeddings))
        return index.trie.images

    def _restore(self, index: GenerationIndex, follower: TrieFollower) -> int | None:
        """Fill an index from the file; returns how many images changed since, None if it cannot."""
        try:
            file = read_arrays(self.path)
            _require_same(file.about, self._kind(index))
            index.restore(file.arrays, int(file.about["images"]))
            caught_up = follower.resume(_followed_to(file.about))
            index.apply(caught_up.changes)
            _require_complete(index, caught_up)
        except FileNotFoundError:
            return None
        except Exception as error:
            # Whatever is wrong with the file must not keep a worker from starting.
            log.warning(
                "index snapshot not used: loading everything",
                generation=self.generation,
                file=str(self.path),
                reason=str(error),
            )
            index.clear()
            return None
        changed = caught_up.changes.images
        log.info("index snapshot used", generation=self.generation, caught_up=changed)
        return changed

    def _write(self, index: GenerationIndex, follower: TrieFollower) -> None:
        if follower.followed_to is None:
            return
        moment = asdict(follower.followed_to)
        moment["read_at"] = moment["read_at"].isoformat()
        about = {**self._kind(index), "images": index.trie.images, "followed_to": moment}
        try:
            write_arrays(self.path, about, index.to_arrays())
        except OSError as error:
            # It only makes the next start faster.
            log.warning("index snapshot not written", generation=self.generation, reason=str(error))

    def _kind(self, index: GenerationIndex) -> JsonObject:
        """What a snapshot has to have in common with an index."""
        return {
            "format": _FORMAT,
            "generation": self.generation,
            "codes": list(index.shape.codes),
            "suffixes": index.shape.suffixes,
            "width": index.width,
            "guided": index.guided,
            "sketch": 0 if index.sketches is None else index.sketches.sketch.width,
        }


def delete_unused_snapshots(folder: Path, used: Collection[int]) -> None:
    """Delete the snapshots of all other generations."""
    names = {f"{_PREFIX}{generation}" for generation in used}
    for path in folder.glob(f"{_PREFIX}*"):
        if path.name.removeprefix(_PREFIX).isdigit() and path.name not in names:
            path.unlink(missing_ok=True)


def _followed_to(about: JsonObject) -> FollowedTo:
    moment = dict(about["followed_to"])
    return FollowedTo(**{**moment, "read_at": datetime.fromisoformat(moment["read_at"])})


def _require_same(about: JsonObject, kind: JsonObject) -> None:
    for name, wanted in kind.items():
        if about.get(name) != wanted:
            raise ValueError(f"its {name} must be {wanted}, got {about.get(name)}")


def _require_complete(index: GenerationIndex, caught_up: CaughtUp) -> None:
    """`ValueError` unless the index has what the database counts."""
    found = (index.trie.images, index.trie.postings)
    wanted = (caught_up.totals.images, caught_up.totals.postings)
    if found != wanted:
        raise ValueError(f"images and postings must be {wanted}, got {found}")
