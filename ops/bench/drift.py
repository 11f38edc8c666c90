"""`sigma bench drift`: the monitors' false-alarm rate, and how soon they notice something new.

Beside them, what Evidently says of the same windows.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.drift.monitors import REFERENCE_IMAGES, WINDOW_IMAGES
from ops.bench.comparison import Comparison, document, table
from ops.bench.drift_pool import DriftPool, make_pool
from ops.bench.drift_scenes import TOPICS
from ops.bench.drift_streams import (
    DAYS,
    MONTH_WINDOWS,
    NEW_SHARE,
    Split,
    TopicSummary,
    drift_free_levels,
    mixed_window,
    significant_share,
    summarise_topic,
)
from ops.bench.peer_process import PeerProcess, PeerShares
from schemas.records import JsonObject

# Where `make peers` puts Evidently.
PEER = Path(".venv-peers/bin/python")

# Images an hour of a small installation: every image is in a window.
FEW_PER_HOUR = 1_000

# Images an hour of a large one.
MANY_PER_HOUR = 100_000

# Share of drifted columns from which the peer alarms. Evidently calls a data set drifted when
# half of its columns are; a person may also look at every column.
PEER_LIMITS = {"half of the columns": 0.5, "any column": 1e-9}

# Ordinary images that streams are drawn from.
_STREAM_IMAGES = 4000

# Images of each new topic.
_TOPIC_IMAGES = 300

# The topic that is compared with the peer: a subject never seen.
_MAIN_TOPIC = next(iter(TOPICS))


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """How many streams."""

    seed: int = 0
    seeds: int = 20
    """Streams with a new topic."""
    months: int = 10
    """Drift-free months."""
    peer: Path | None = PEER
    """A Python that has Evidently; None to measure without the peer."""
    quiet: int = 30
    """Drift-free windows that the peer scores; it needs seconds for each."""


@dataclass(frozen=True, slots=True)
class DriftResult:
    """All that was measured."""

    config: DriftConfig
    pool: DriftPool
    splits: Sequence[Split]
    months: Sequence[Counter[str]]
    """Windows of each drift-free month by alarm level."""
    significant: Mapping[int, float]
    """Images an hour → share of drift-free windows with a significant monitor."""
    topics: Mapping[str, TopicSummary]
    peer: PeerShares | None
    pool_s: float
    """Seconds to make the pool."""
    whole_s: float
    """Seconds of the whole benchmark."""


def drift(config: DriftConfig) -> tuple[JsonObject, str]:
    """Run it; return the JSON document of `sigma bench drift`, and the same for people."""
    result = _measure(config)
    comparisons = _comparisons(result)
    text = "\n".join([table(comparisons), *_lines(result)])
    return document(comparisons, **_details(result)), text


def _measure(config: DriftConfig) -> DriftResult:
    began = time.perf_counter()
    pool = make_pool(config.seed, REFERENCE_IMAGES + _STREAM_IMAGES, _TOPIC_IMAGES)
    pool_s = time.perf_counter() - began
    splits = []
    for number in range(config.seeds):
        splits.append(Split.draw(pool.ordinary, config.seed + number))
    # Started first: it works on another core meanwhile.
    peer = _start_peer(config, splits[0], pool)
    months = []
    for number, split in enumerate(splits[: config.months]):
        months.append(drift_free_levels(split, number))
    significant = {}
    for images_per_hour in (FEW_PER_HOUR, MANY_PER_HOUR):
        share = significant_share(splits[: config.months // 2], images_per_hour)
        significant[images_per_hour] = share
    topics = {}
    for name, images in pool.topics.items():
        topics[name] = summarise_topic(splits, images)
    return DriftResult(
        config=config,
        pool=pool,
        splits=splits,
        months=months,
        significant=significant,
        topics=topics,
        peer=None if peer is None else peer.finish(),
        pool_s=pool_s,
        whole_s=time.perf_counter() - began,
    )


def _start_peer(config: DriftConfig, split: Split, pool: DriftPool) -> PeerProcess | None:
    """Start the peer on drift-free windows, and on as many with a new topic as there are seeds."""
    # Without the peer, ours is measured all the same, and the report says what is missing.
    if config.peer is None or not config.peer.is_file():
        return None
    rng = np.random.default_rng(config.seed)
    topic = pool.topics[_MAIN_TOPIC]
    new = round(NEW_SHARE * WINDOW_IMAGES)
    drift_free = [mixed_window(rng, split, topic, 0) for _ in range(config.quiet)]
    new_topic = [mixed_window(rng, split, topic, new) for _ in range(config.seeds)]
    return PeerProcess.start(config.peer, split.pool, drift_free, new_topic)


def _comparisons(result: DriftResult) -> list[Comparison]:
    comparisons = [
        Comparison(
            name="significant windows, 100k images an hour (peer: 1k)",
            ours=result.significant[MANY_PER_HOUR],
            peer=result.significant[FEW_PER_HOUR],
            peer_name="ours at 1k",
            unit="share",
            n=result.config.months // 2 * MONTH_WINDOWS,
        )
    ]
    if result.peer is not None:
        for label, limit in PEER_LIMITS.items():
            comparisons += _compare_with_peer(result, result.peer, label, limit)
    return comparisons


def _compare_with_peer(
    result: DriftResult, peer: PeerShares, label: str, limit: float
) -> list[Comparison]:
    config = result.config
    alarms = sum(month["ticket"] + month["page"] for month in result.months)
    noticed = result.topics[_MAIN_TOPIC].alarm.within
    return [
        Comparison(
            name=f"alarms in {DAYS} drift-free days, {label}",
            ours=alarms / len(result.months),
            peer=_share_from(peer.drift_free, limit) * MONTH_WINDOWS,
            peer_name="Evidently",
            unit="windows",
            n=config.quiet,
        ),
        Comparison(
            name=f"a tenth of a new topic noticed, {label}",
            ours=noticed / config.seeds,
            peer=_share_from(peer.new_topic, limit),
            peer_name="Evidently",
            unit="share",
            n=config.seeds,
        ),
    ]


def _share_from(values: Sequence[float], least: float) -> float:
    """Share of the values that are at least `least`."""
    return sum(value >= least for value in values) / len(values)


def _details(result: DriftResult) -> JsonObject:
    """The keys of the JSON document beside the comparisons."""
    significant = {}
    for images_per_hour, share in result.significant.items():
        significant[str(images_per_hour)] = share
    return {
        "months": [dict(month) for month in result.months],
        "reference_recall": [split.recall.recall for split in result.splits],
        "recall": _recall(result.pool),
        "topics": {name: topic.to_json() for name, topic in result.topics.items()},
        "significant_windows_by_hour": significant,
        "watched": list(result.splits[0].reference.monitors),
        "seconds": {"pool": round(result.pool_s, 1), "whole": round(result.whole_s, 1)},
    }


def _recall(pool: DriftPool) -> dict[str, float]:
    """Recall at 10 of the ordinary images and of each topic."""
    recall = {"ordinary": float(pool.ordinary.found.mean())}
    for name, images in pool.topics.items():
        recall[name] = float(images.found.mean())
    return recall


def _lines(result: DriftResult) -> list[str]:
    """What people read below the table."""
    months = [dict(month) for month in result.months]
    lines = [f"drift-free months, windows by alarm level: {months}"]
    recall = _recall(result.pool)
    for name, topic in result.topics.items():
        alarm = f"alarm {topic.alarm.within}/{topic.seeds} after {topic.alarm.images} images"
        page = f"page {topic.page.within}/{topic.seeds} after {topic.page.images} images"
        lines.append(f"{name:<24} {alarm}, {page}; first by {topic.by}; R@10 {recall[name]:.3f}")
    if result.peer is None:
        lines.append(
            f"measured without the peer: there is no Python with Evidently at {result.config.peer};"
            " make one with: make peers"
        )
    return lines
