"""Streams of the drift benchmark: what the monitors say of drift-free months and of new topics."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.drift.monitors import (
    REFERENCE_IMAGES,
    WINDOW_IMAGES,
    DriftReference,
    RecallCount,
    alarm_level,
    examine,
    fit_reference,
)
from model.network.profiles import profile
from ops.bench.drift_pool import PooledImages
from schemas.records import JsonObject

# A month, with an hourly job.
DAYS = 30
HOURS = 24

# Hourly windows of a month.
MONTH_WINDOWS = DAYS * HOURS

# Share of a new topic among the arrivals once it has begun.
NEW_SHARE = 0.1

# Images of the new stream within which an alarm or a page is in time.
_NOTICED_WITHIN = 2000

# Windows of a stream with a new topic: the first one that is too late is among them.
_TOPIC_WINDOWS = 3

# Expected windows between false alarms when significance is counted: at the product's year, a few
# months would show none and no two rates could be compared.
_FREQUENT_RUN = 4.0

# Added to the seeds of the streams whose rates are compared, so that they are not the months.
_RATE_SEED = 100

# Makes the random numbers of topics differ from those of months.
_TOPIC_SEED = 7


@dataclass(frozen=True, slots=True)
class Split:
    """One division of the ordinary images: a reference, and a stream drawn from the others."""

    reference: DriftReference
    recall: RecallCount
    """Of the reference's images."""
    pool: PooledImages
    """Images that the reference was made of."""
    stream: PooledImages

    @classmethod
    def draw(cls, ordinary: PooledImages, seed: int) -> "Split":
        """Divide the images at random and fit the reference."""
        order = np.random.default_rng(seed).permutation(len(ordinary))
        part = ordinary.take(order[:REFERENCE_IMAGES])
        reference = fit_reference(part.window, profile("tiny").shape, seed=seed)
        stream = ordinary.take(order[REFERENCE_IMAGES:])
        return cls(reference, part.recall(reference), part, stream)


@dataclass(frozen=True, slots=True)
class WindowVerdict:
    """What the hourly job would say of a window."""

    level: str
    """none, ticket or page"""
    monitors: list[str]
    """Monitors that alarm."""


@dataclass(frozen=True, slots=True)
class NoticeDelay:
    """After how many images of its stream a new topic was noticed."""

    alarm: int | None
    """Images until the first alarm; None when there was none."""
    page: int | None
    """Images until the first page."""
    monitors: list[str]
    """Monitors of the first alarm."""


@dataclass(frozen=True, slots=True)
class DelaySummary:
    """Delays that were in time, over all streams of a topic."""

    within: int
    """How many were in time."""
    images: list[int]
    """Least, median and most images until then; empty when none was in time."""

    @classmethod
    def of(cls, delays: Sequence[int | None]) -> "DelaySummary":
        """Summarise the delays of all streams."""
        in_time = [delay for delay in delays if delay is not None and delay <= _NOTICED_WITHIN]
        if not in_time:
            return cls(0, [])
        return cls(len(in_time), [min(in_time), int(np.median(in_time)), max(in_time)])

    def to_json(self) -> JsonObject:
        """Plain values for JSON."""
        return {"within": self.within, "images": self.images}


@dataclass(frozen=True, slots=True)
class TopicSummary:
    """How one new topic was noticed in the streams of all seeds."""

    seeds: int
    by: dict[str, int]
    """How often each monitor was part of a first alarm."""
    alarm: DelaySummary
    page: DelaySummary

    def to_json(self) -> JsonObject:
        """Plain values for JSON."""
        return {
            "seeds": self.seeds,
            "by": self.by,
            "alarm": self.alarm.to_json(),
            "page": self.page.to_json(),
        }


def drift_free_levels(split: Split, seed: int) -> Counter[str]:
    """Windows of a drift-free month by their alarm level."""
    levels: Counter[str] = Counter()
    for window in _drift_free_windows(split, seed, WINDOW_IMAGES):
        levels[_judge(split, window).level] += 1
    return levels


def significant_share(splits: Sequence[Split], images_per_hour: int) -> float:
    """Share of drift-free windows in which some monitor's p-value is below its limit.

    It must not depend on the images an hour. The limits are those of one false alarm in four
    windows.
    """
    windows = 0
    significant = 0
    for number, split in enumerate(splits):
        reference = replace(split.reference, expected_run=_FREQUENT_RUN)
        for window in _drift_free_windows(split, _RATE_SEED + number, images_per_hour):
            results = examine(reference, window.window)
            significant += any(result.p <= result.p_limit for result in results)
            windows += 1
    return significant / windows


def summarise_topic(splits: Sequence[Split], topic: PooledImages) -> TopicSummary:
    """Bring a new topic into the stream of each split and see how soon it is noticed."""
    delays = []
    by: Counter[str] = Counter()
    for seed, split in enumerate(splits):
        delay = _notice(split, topic, seed)
        by.update(delay.monitors)
        delays.append(delay)
    return TopicSummary(
        seeds=len(splits),
        by=dict(by),
        alarm=DelaySummary.of([delay.alarm for delay in delays]),
        page=DelaySummary.of([delay.page for delay in delays]),
    )


def mixed_window(
    rng: np.random.Generator, split: Split, topic: PooledImages, new: int
) -> PooledImages:
    """A window of ordinary images of the stream and `new` ones of a topic."""
    ordinary_rows = rng.integers(0, len(split.stream), WINDOW_IMAGES - new)
    topic_rows = rng.integers(0, len(topic), new)
    return split.stream.take(ordinary_rows).join(topic.take(topic_rows))


def _notice(split: Split, topic: PooledImages, seed: int) -> NoticeDelay:
    """Count the images from the topic's begin to the first alarm and to the first page.

    The topic begins somewhere in the first window.
    """
    # A generator of its own: a stream is the same for every topic, up to the topic.
    rng = np.random.default_rng((seed, _TOPIC_SEED))
    onset = int(rng.integers(0, WINDOW_IMAGES))
    alarm = None
    monitors: list[str] = []
    for number in range(_TOPIC_WINDOWS):
        exposed = WINDOW_IMAGES - onset if number == 0 else WINDOW_IMAGES
        new = int(rng.binomial(exposed, NEW_SHARE))
        verdict = _judge(split, mixed_window(rng, split, topic, new))
        delay = (number + 1) * WINDOW_IMAGES - onset
        if verdict.level != "none" and alarm is None:
            alarm = delay
            monitors = verdict.monitors
        # A page ends the stream: a person looks, and no later window is news.
        if verdict.level == "page":
            return NoticeDelay(alarm, page=delay, monitors=monitors)
    return NoticeDelay(alarm, page=None, monitors=monitors)


def _judge(split: Split, images: PooledImages) -> WindowVerdict:
    results = examine(split.reference, images.window)
    level = alarm_level(results, split.recall, images.recall(split.reference))
    return WindowVerdict(level, [result.monitor for result in results if result.alarm])


def _drift_free_windows(split: Split, seed: int, images_per_hour: int) -> Iterator[PooledImages]:
    """The hourly windows of a drift-free month.

    Each hour brings so many images, of which the job samples its window.
    """
    rng = np.random.default_rng((seed, images_per_hour))
    for _ in range(MONTH_WINDOWS):
        # With replacement: a month has more arrivals than the pool has images.
        hour = rng.integers(0, len(split.stream), images_per_hour)
        sampled = rng.choice(images_per_hour, WINDOW_IMAGES, replace=False)
        yield split.stream.take(hour[sampled])
