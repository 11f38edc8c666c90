"""`sigma bench query --images N`: whole answers of one query at a time, beside a gallery of 50,000.

Seconds are of the decode thread's processor, so that what else the machine does is not counted: a
query, and what it waits for before, the changes of the index between two batches.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ops.bench.clustered_gallery import RESULTS, ClusteredGallery
from ops.bench.comparison import Comparison
from workers.query.residents import SLICE_IMAGES

# Images of the gallery that the other one is compared with.
BASE_IMAGES = 50_000

# Numbers of an embedding, without `--width`.
DEFAULT_WIDTH = 128

# Queries of each phase, those compared with exact search, and those of a cold gallery.
_QUERIES = 1000
_EXACT_QUERIES = 50
_COLD_QUERIES = 100

# Arrivals a second of the decode thread's processor, while queries are asked all the time.
_ARRIVALS_S = 1000

# Images that come, and that go, in an hour: ten a second, thirty times what fills ten million in
# a year.
_HOUR_IMAGES = 36_000

# Milliseconds that a query may wait for changes at worst, and that it may take from a cold gallery.
_STALL_GOAL_MS = 20.0
_COLD_GOAL_MS = 50.0

_MS = 1e3


def query_growth(images: int, width: int, seed: int) -> list[Comparison]:
    """Compare a gallery of so many images with one of `BASE_IMAGES`, in turns."""
    with ExitStack() as stack:
        galleries = []
        for size in (BASE_IMAGES, images):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sigma-bench-")))
            gallery = ClusteredGallery(size, width, seed, folder)
            stack.callback(gallery.engine.close)
            galleries.append(gallery)
        base, large = galleries
        name = f"{images:,} x {width}"
        rows = _compare_growth(base, large, name, seed)
        for gallery in galleries:
            label = f"{gallery.size:,} x {width}"
            rows += _compare_arrivals(gallery, label, seed)
            rows += _compare_churn(gallery, label, seed)
            rows += _compare_cold(gallery, label, seed)
        return rows


def _compare_growth(
    base: ClusteredGallery, large: ClusteredGallery, name: str, seed: int
) -> list[Comparison]:
    """The same queries to both, in turns."""
    took: dict[int, list[float]] = {0: [], 1: []}
    texts = [gallery.texts(_QUERIES, seed) for gallery in (base, large)]
    for pair in zip(*texts, strict=True):
        for place, gallery in enumerate((base, large)):
            took[place].append(gallery.ask(pair[place])[1])
    rows = []
    for quantile, percent in (("p50", 50), ("p99", 99)):
        ours, peer = (float(np.percentile(took[place], percent)) for place in (1, 0))
        peer_name = f"{base.size:,} images"
        rows.append(Comparison(f"query, {name}, {quantile}", ours, peer, peer_name, "ms", _QUERIES))
    recalls = [
        gallery.recall(own[:_EXACT_QUERIES])
        for gallery, own in zip((base, large), texts, strict=True)
    ]
    rows.append(
        Comparison(
            f"recall@{RESULTS} of exact search, {name}",
            recalls[1],
            recalls[0],
            f"{base.size:,} images",
            "share",
            _EXACT_QUERIES,
        )
    )
    return rows


def _compare_arrivals(gallery: ClusteredGallery, name: str, seed: int) -> list[Comparison]:
    """Queries while images arrive beside quiet ones, in turns."""
    quiet, busy, held = list[float](), list[float](), list[float]()
    due = 0.0
    for text in gallery.texts(_QUERIES, seed + 1):
        # Twice the same query, so that both have the same work.
        quiet.append(gallery.ask(text)[1])
        while due >= SLICE_IMAGES:
            due -= SLICE_IMAGES
            gallery.change(SLICE_IMAGES, 0)
        waited, took = gallery.ask(text)
        held.append(waited)
        busy.append(took)
        due += took / _MS * _ARRIVALS_S
    rows = []
    for quantile, percent in (("p50", 50), ("p99", 99), ("worst", 100)):
        ours, peer = float(np.percentile(busy, percent)), float(np.percentile(quiet, percent))
        label = f"query, {_ARRIVALS_S:,} arrivals a second, {name}, {quantile}"
        rows.append(Comparison(label, ours, peer, "quiet", "ms", _QUERIES))
    label = f"wait for changes, {_ARRIVALS_S:,} arrivals a second, {name}, worst"
    rows.append(Comparison(label, max(held), _STALL_GOAL_MS, "goal", "ms", _QUERIES))
    return rows


def _compare_churn(gallery: ClusteredGallery, name: str, seed: int) -> list[Comparison]:
    """An hour's images come and go as fast as queries let them."""
    gallery.change(_HOUR_IMAGES, min(_HOUR_IMAGES, gallery.size // 2))
    texts = gallery.texts(_QUERIES, seed + 2)
    held: list[float] = []
    while not gallery.updates.empty():
        held.append(gallery.ask(texts[len(held) % _QUERIES])[0])
    rows = []
    for quantile, percent in (("p50", 50), ("p99", 99), ("worst", 100)):
        value = float(np.percentile(held, percent))
        label = f"wait for changes, an hour's at once, {name}, {quantile}"
        rows.append(Comparison(label, value, _STALL_GOAL_MS, "goal", "ms", len(held)))
    return rows


def _compare_cold(gallery: ClusteredGallery, name: str, seed: int) -> list[Comparison]:
    """Queries whose candidates lie on the disk; time by the clock, for it is waited for."""
    warm: list[float] = []
    cold: list[float] = []
    for text in gallery.texts(_COLD_QUERIES, seed + 3):
        for times in (cold, warm):
            if times is cold:
                gallery.engine.gallery.cool()
            began_s = time.monotonic()
            gallery.ask(text)
            times.append((time.monotonic() - began_s) * _MS)
    rows = []
    for quantile, percent in (("p50", 50), ("p99", 99)):
        ours, peer = float(np.percentile(cold, percent)), float(np.percentile(warm, percent))
        label = f"query, cold gallery, {name}, {quantile}"
        rows.append(Comparison(label, ours, peer, "warm", "ms", _COLD_QUERIES))
    label = f"query, cold gallery, {name}, p99"
    rows.append(Comparison(label, rows[-1].ours, _COLD_GOAL_MS, "goal", "ms", _COLD_QUERIES))
    return rows
