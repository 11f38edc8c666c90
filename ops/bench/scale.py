"""`sigma bench scale`: a generation of any size in a real PostgreSQL, and an index that is filled.

How fast postings get in by COPY, and how soon an index of them answers: from its snapshot, and from
the database alone. Both must be the same to the last posting, or the benchmark fails.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil

from ops.bench.comparison import Comparison
from ops.bench.fleet import Fleet, open_fleet
from ops.bench.scale_worker import UntrainedCheckpoint, measure_worker
from ops.bench.stored_generation import WIDTH, StoredPostings, parts, store_images
from ops.bench.trie import POSTINGS, SHAPE
from schemas.errors import WorkFailedError
from workers.query.gallery import Gallery
from workers.query.generation_index import GenerationIndex
from workers.query.index_snapshot import IndexSnapshot
from workers.repository import generations
from workers.repository.bulk_load import bulk_append
from workers.repository.connection import Connection
from workers.repository.follower import TrieFollower
from workers.repository.image_deletion import delete_images

# Images, without `--images`.
DEFAULT_IMAGES = 1_000_000

# Postings a second that COPY is to bring in.
_BULK_GOAL = 100_000.0

# The share of images that comes, and that goes, after the snapshot was written.
_CHANGED_SHARE = 0.01


def scale(images: int, seed: int) -> list[Comparison]:
    """Measure one size."""
    with open_fleet(None, stub=False) as fleet, fleet.services.connect("bench") as conn:
        stored = StoredPostings(seed)
        numbers = _create_generations(fleet, conn, seed)
        rates = fill(conn, numbers, stored, 0, images)
        comparisons = []
        for name, rate in zip(("of new images", "of indexed images"), rates, strict=True):
            label = f"bulk append {name}, {images:,}"
            comparisons.append(
                Comparison(label, rate, _BULK_GOAL, "goal", "postings/CPU s", images * POSTINGS)
            )
        comparisons += _starts(fleet, conn, numbers, stored, images)

        def change() -> None:
            _change(conn, numbers, stored, images, turn=1)

        return comparisons + measure_worker(fleet, conn, numbers, images, change)


def _create_generations(fleet: Fleet, conn: Connection, seed: int) -> list[int]:
    """Two empty generations of one model."""
    checkpoint = UntrainedCheckpoint.write(fleet.services.checkpoints / "untrained", seed)
    numbers = []
    for _ in range(2):
        number = generations.create_generation(
            conn,
            SHAPE,
            codebook_version=checkpoint.codebook,
            checkpoint_path=checkpoint.folder.name,
        )
        numbers.append(number)
    return numbers


def _change(
    conn: Connection, numbers: Sequence[int], stored: StoredPostings, images: int, turn: int
) -> int:
    """Add a share of the images and delete as many that were there; returns how many changed."""
    changed = max(1, int(images * _CHANGED_SHARE))
    fill(conn, numbers, stored, images + turn * changed, changed)
    step = images // changed
    delete_images(conn, [f"bench-{place}" for place in range(turn, images, step)])
    return 2 * changed


def fill(
    conn: Connection,
    numbers: Sequence[int],
    stored: StoredPostings,
    first: int,
    count: int,
    *,
    arriving: bool = False,
) -> list[float]:
    """Load images into generations, one after the other, part by part.

    Returns the postings a second of each: processor time of this process and of the server's, so
    that what else the machine does is not counted. The images' own rows are not counted either;
    those of `arriving` ones are written once, as an index worker does.
    """
    server = psutil.Process(conn.info.backend_pid)
    busy_s = [0.0 for _ in numbers]
    for begin, size in parts(count):
        load = stored.load(store_images(conn, first + begin, size, indexed=arriving))
        for place, number in enumerate(numbers):
            began = processor_s(server)
            bulk_append(conn, number, load, more=True)
            busy_s[place] += processor_s(server) - began
    conn.execute("ANALYZE")
    return [count * POSTINGS / own_s for own_s in busy_s]


def processor_s(server: psutil.Process) -> float:
    """Seconds of the processor that this process and the server's have had."""
    times = server.cpu_times()
    return time.process_time() + times.user + times.system


def checksum(index: GenerationIndex) -> str:
    """A digest of all postings and embeddings, whatever the order in which they came."""
    slots = index.trie.searchable_slots()
    digest = hashlib.sha256()
    for column in _posting_columns(index):
        digest.update(column.tobytes())
    keys = index.gallery.keys(slots)
    digest.update(index.gallery.embeddings[slots[np.argsort(keys)]].tobytes())
    return digest.hexdigest()


def _posting_columns(index: GenerationIndex) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Image key, leaf and weight of each posting, by key and leaf."""
    reached = index.trie.reached(np.arange(index.shape.leaves))
    keys = index.gallery.keys(reached.slots)
    order = np.lexsort((reached.source, keys))
    weights = reached.weights.view(np.int32).astype(np.int64)
    return [keys[order], reached.source[order].astype(np.int64), weights[order]]


def _starts(
    fleet: Fleet, conn: Connection, numbers: Sequence[int], stored: StoredPostings, images: int
) -> list[Comparison]:
    """Fill an index from the database, and then from the snapshot and what came since."""
    folder = fleet.folder / "cache"
    number = numbers[0]
    snapshot = IndexSnapshot(folder, number, fleet.services.connect, least_images=1)
    _, written = _filled(fleet, folder, number, snapshot.fill)
    changed = _change(conn, numbers, stored, images, turn=0)
    resumed_s, resumed = _filled(fleet, folder, number, snapshot.fill)
    fresh_s, fresh = _filled(fleet, folder, number, _load)
    if resumed != fresh or written == fresh:
        raise WorkFailedError("a snapshot and what came since must equal a fresh load, and do not")
    name = f"index ready, {changed:,} of {images:,} changed"
    return [Comparison(name, resumed_s, fresh_s, "without a snapshot", "CPU s", images)]


def _filled(
    fleet: Fleet,
    folder: Path,
    number: int,
    fill_index: Callable[[GenerationIndex, TrieFollower], object],
) -> tuple[float, str]:
    """Seconds of the processor until an index is filled, the server's too, and its checksum."""
    index = GenerationIndex(SHAPE, WIDTH, Gallery.open(folder))
    with fleet.services.connect("bench") as conn:
        server = psutil.Process(conn.info.backend_pid)
        began = processor_s(server)
        fill_index(index, TrieFollower(conn, number))
        took_s = processor_s(server) - began
    found = checksum(index)
    index.close()
    return took_s, found


def _load(index: GenerationIndex, follower: TrieFollower) -> None:
    index.apply(follower.load(sink=index.add_embeddings))
