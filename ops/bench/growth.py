"""`sigma bench growth`: what an index of 1, 10 and 100 million images takes.

Slopes, so much an image, are measured between two small sizes, on a real PostgreSQL and with the
trie of a query worker. What follows from them is computed, and marked so.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from model.retrieval.trie import Trie
from ops.bench.fleet import open_fleet
from ops.bench.scale import fill, processor_s
from ops.bench.stored_generation import WIDTH, StoredPostings, store_images
from ops.bench.trie import POSTINGS, SHAPE, SkewedPostings
from ops.markdown_table import table_head, table_row
from schemas.events import (
    ACCEPTED,
    ARRIVED,
    INDEXED,
    EventRecord,
    ImageAccepted,
    ImageArrived,
    ImageIndexed,
    now,
)
from schemas.records import Assignment, JsonObject, Posting
from stream.log.event_log import message
from stream.log.topics import TOPICS
from workers.query.slot_map import SlotMap
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.postings import append

# Images of the index to plan.
SIZES = (1_000_000, 10_000_000, 100_000_000)

# Images between which slopes are taken: of the trie, and of the database.
_TRIE_IMAGES = (200_000, 600_000)
_STORED_IMAGES = (10_000, 40_000)

# How much a table grows between two runs of autovacuum, which lets later rows have the room of dead
# ones: what migration 18 sets for those whose rows change.
_VACUUM_SHARE = 0.05

# Images between two runs at least.
_LEAST_ROUND = 250

# Images of the load that is timed.
_LOADED_IMAGES = 30_000

# Images that are appended one batch at a time, as an index worker does, and their batch.
_APPENDED_IMAGES = 1024
_BATCH = 64

# Embeddings of the paper's encoder, beside the narrow ones that are measured.
_WIDE = 2048

# Bytes that Kafka keeps of a record beside key, value and headers, in batches of some.
_RECORD_BYTES = 16

# In how many days an index gets its images: arrivals come evenly.
_DAYS = 365
_DAY_S = 86_400

# Images that a model assigns in a second on one core: what pretrained encoders do.
_MODEL_IMAGES_S = 5

# Generations that a query worker holds: live, fallback and a candidate.
_GENERATIONS = 3

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Slopes:
    """What one image costs, measured."""

    trie_bytes: float
    """Memory of postings, slots and keys in a query worker."""
    trie_base_bytes: float
    """Memory of an empty trie: tables of the shape."""
    stored_bytes: Mapping[str, float]
    """Of PostgreSQL, by table with its indexes."""
    event_bytes: Mapping[str, float]
    """Of the log, by topic."""
    append_s: float
    """Processor time of the worker and of PostgreSQL for an image's postings, without the model."""
    bulk_postings_s: float
    """Postings of stored images that a second of the processor loads by COPY."""


def growth(seed: int) -> tuple[JsonObject, str]:
    """Measure the slopes; returns the document and a page for people."""
    slopes = _measure(seed)
    rows = planned(slopes)
    document = {
        "slopes": {
            "trie_bytes": slopes.trie_bytes,
            "trie_base_bytes": slopes.trie_base_bytes,
            "stored_bytes": dict(slopes.stored_bytes),
            "event_bytes": dict(slopes.event_bytes),
            "append_s": slopes.append_s,
            "bulk_postings_s": slopes.bulk_postings_s,
        },
        "sizes": list(SIZES),
        "rows": [{"name": name, "values": list(values)} for name, values in rows],
    }
    return document, _page(slopes, rows)


def planned(slopes: Slopes) -> list[tuple[str, tuple[float, ...]]]:
    """What each size takes, computed from the slopes."""
    stored = sum(slopes.stored_bytes.values())
    kept = 0.0
    for topic in TOPICS:
        kept += slopes.event_bytes.get(topic.name, 0.0) * topic.days
    per_row: Sequence[tuple[str, Callable[[int], float]]] = (
        ("postings of one generation", lambda n: n * POSTINGS),
        ("postings under a leaf of the paper's codes, mean", lambda n: n * POSTINGS / SHAPE.leaves),
        (
            "memory of a query worker's trie, GiB",
            lambda n: (slopes.trie_base_bytes + n * slopes.trie_bytes) / _GIB,
        ),
        (
            f"the same of {_GENERATIONS} generations, GiB",
            lambda n: _GENERATIONS * (slopes.trie_base_bytes + n * slopes.trie_bytes) / _GIB,
        ),
        (f"embeddings' file, width {WIDTH}, GiB", lambda n: n * (2 * WIDTH + 8) / _GIB),
        (f"embeddings' file, width {_WIDE}, GiB", lambda n: n * (2 * _WIDE + 8) / _GIB),
        (f"PostgreSQL, one generation, width {WIDTH}, GiB", lambda n: n * stored / _GIB),
        (
            f"PostgreSQL, one generation, width {_WIDE}, GiB",
            lambda n: n * (stored + 2 * (_WIDE - WIDTH)) / _GIB,
        ),
        ("arrivals a second, if they come in a year", lambda n: n / _DAYS / _DAY_S),
        ("Kafka, one copy, GiB", lambda n: n / _DAYS * kept / _GIB),
        (
            f"index workers, at {_MODEL_IMAGES_S} images a second each",
            lambda n: math.ceil(n / _DAYS / _DAY_S / _MODEL_IMAGES_S),
        ),
        (
            "share of a core for their postings, PostgreSQL's too",
            lambda n: n / _DAYS / _DAY_S * slopes.append_s,
        ),
        (
            "minutes of a core to load a new generation by COPY",
            lambda n: n * POSTINGS / slopes.bulk_postings_s / 60,
        ),
    )
    return [(name, tuple(value(size) for size in SIZES)) for name, value in per_row]


def _measure(seed: int) -> Slopes:
    small, large = (_trie_bytes(images, seed) for images in _TRIE_IMAGES)
    each = (large - small) / (_TRIE_IMAGES[1] - _TRIE_IMAGES[0])
    with open_fleet(None, stub=False) as fleet, fleet.services.connect("bench") as conn:
        number = generations.create_generation(conn, SHAPE)
        stored = StoredPostings(seed)
        _fill_slowly(conn, number, stored, 0, _STORED_IMAGES[0])
        first = _stored_bytes(conn, number)
        _fill_slowly(conn, number, stored, *_STORED_IMAGES)
        last = _stored_bytes(conn, number)
        more = _STORED_IMAGES[1] - _STORED_IMAGES[0]
        by_table = {table: (last[table] - first[table]) / more for table in first}
        (rate,) = fill(conn, [number], stored, _STORED_IMAGES[1], _LOADED_IMAGES)
        append_s = _append_s(conn, number, seed)
    base = small - each * _TRIE_IMAGES[0]
    return Slopes(each, base, by_table, _event_bytes(), append_s, rate)


def _trie_bytes(images: int, seed: int) -> float:
    trie, keys = Trie(SHAPE), SlotMap()
    SkewedPostings(seed).insert(trie, 0, images)()
    keys.add(np.arange(images) + 1, np.arange(images))
    return float(trie.nbytes + keys.nbytes)


def _fill_slowly(
    conn: Connection, generation: int, stored: StoredPostings, images: int, end: int
) -> None:
    """Grow the database as arrivals do, which autovacuum follows."""
    while images < end:
        count = min(end - images, max(_LEAST_ROUND, round(images * _VACUUM_SHARE)))
        fill(conn, [generation], stored, images, count, arriving=True)
        conn.execute("VACUUM")
        images += count


def _stored_bytes(conn: Connection, generation: int) -> dict[str, float]:
    """Bytes of each table that grows with images, its indexes too."""
    names = {
        "image": "image",
        "placement": f"placement_{generation}",
        "leaf": "leaf",
    }
    conn.execute("VACUUM")
    found = {}
    for label, name in names.items():
        row = conn.execute("SELECT pg_total_relation_size(%s::regclass)", (name,)).fetchone()
        found[label] = float(row[0]) if row else 0.0
    return found


def _append_s(conn: Connection, generation: int, seed: int) -> float:
    """Seconds of the processor for an image that an index worker appends."""
    rng = np.random.default_rng(seed)
    keys = store_images(conn, 1 << 24, _APPENDED_IMAGES, indexed=True).tolist()
    embedding = np.full(WIDTH, 1 / np.sqrt(WIDTH), np.float16)
    server = psutil.Process(conn.info.backend_pid)
    began = processor_s(server)
    for first in range(0, len(keys), _BATCH):
        work = []
        for key in keys[first : first + _BATCH]:
            leaves = rng.choice(SHAPE.leaves, POSTINGS, replace=False).tolist()
            postings = tuple(Posting(leaf, -float(rank)) for rank, leaf in enumerate(leaves))
            work.append(Assignment(key, postings, embedding, -1.0))
        append(conn, generation, SHAPE, work)
    return (processor_s(server) - began) / len(keys)


def _event_bytes() -> dict[str, float]:
    """Bytes of the events that one image causes."""
    moment = now()
    image_id, caption = "collection/image-0123456", "a photograph of a lamp on a table"
    uri = f"https://images.example.org/{image_id}.jpg"
    events: Sequence[EventRecord] = (
        ImageArrived(image_id, uri, captions=(caption, caption)),
        ImageAccepted(
            image_id,
            uri,
            f"store:///{'0' * 64}.png",
            "0" * 64,
            640,
            480,
            arrived_at=moment,
            captions=(caption, caption),
        ),
        ImageIndexed(image_id, 1, 1, (1, 2, 3, 4, 5), (1, 2, 3), -1.5, moment),
    )
    sizes = {}
    for topic, event in zip((ARRIVED, ACCEPTED, INDEXED), events, strict=True):
        sizes[topic] = float(message(event, image_id).size + _RECORD_BYTES)
    return sizes


def _page(slopes: Slopes, rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    measured = [["memory of a query worker's trie, B", f"{slopes.trie_bytes:.1f}"]]
    for table, size in slopes.stored_bytes.items():
        measured.append([f"PostgreSQL, table {table} with its indexes, B", f"{size:,.0f}"])
    for topic, size in slopes.event_bytes.items():
        measured.append([f"log, {topic}, B", f"{size:,.0f}"])
    measured.append(["append, ms of the processor", f"{1e3 * slopes.append_s:.2f}"])
    measured.append(
        ["postings a second of the processor by COPY", f"{slopes.bulk_postings_s:,.0f}"]
    )
    computed = []
    for name, values in rows:
        computed.append([name, *(_figure(value) for value in values)])
    sizes = [f"{size:,}" for size in SIZES]
    lines = table_head(["measured, an image", ""]) + [table_row(cells) for cells in measured]
    lines += ["", *table_head(["computed", *sizes]), *(table_row(cells) for cells in computed)]
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
