"""Drift: how often the monitors cry wolf, how soon they notice something new, and what Evidently says of the same windows."""

import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from ops.bench.drift_pool import TOPICS, Images, Pool, pool
from ops.bench.rows import Row, document, table
from schemas.errors import WorkFailedError

PEER = Path(".venv-peers/bin/python")
"""Where `make peers` puts Evidently."""

DAYS, HOURS = 30, 24
_SHARE, _WITHIN = 0.1, 2000
_WINDOWS, _NEVER = 3, 10**9
_STREAMED, _TOPICAL = 4000, 300
_EMBEDDED, _CATEGORIES = 16, 5


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """`seeds` streams with a new topic, `months` drift-free ones. `peer` is a Python that has Evidently, or None."""

    seed: int = 0
    seeds: int = 20
    months: int = 10
    peer: Path | None = PEER
    quiet: int = 30
    """Drift-free windows that the peer scores; it needs seconds for each."""


@dataclass(frozen=True, slots=True)
class _Split:
    """One draw of the pool: a reference made of one part, and streams that are drawn from the other."""

    reference: DriftReference
    recall: RecallCount
    pool: Images
    stream: Images


def drift(config: DriftConfig) -> tuple[dict[str, Any], str]:
    """The document of `sigma bench drift`, and the same for people."""
    began = time.perf_counter()
    found = pool(config.seed, REFERENCE_IMAGES + _STREAMED, _TOPICAL)
    made = time.perf_counter() - began
    splits = [_split(found.ordinary, config.seed + at) for at in range(config.seeds)]
    peer = (
        _start(config, splits[0], found)
        if config.peer is not None and config.peer.is_file()
        else None
    )
    months = [_month(split, at) for at, split in enumerate(splits[: config.months])]
    rates = {hour: _rate(splits[: config.months // 2], hour) for hour in (1_000, 100_000)}
    topics = {name: _noticed(splits, window) for name, window in found.topics.items()}
    rows = _rows(config, months, topics, rates, None if peer is None else _finish(peer))
    seconds = {"pool": round(made, 1), "whole": round(time.perf_counter() - began, 1)}
    more: dict[str, Any] = {
        "months": [dict(month) for month in months],
        "reference_recall": [split.recall.hits / split.recall.queries for split in splits],
        "recall": {
            name: float(images.found.mean())
            for name, images in (("ordinary", found.ordinary), *found.topics.items())
        },
        "topics": topics,
        "significant_windows_by_hour": {str(hour): rate for hour, rate in rates.items()},
        "watched": list(splits[0].reference.monitors),
        "seconds": seconds,
    }
    lines = [f"drift-free months, windows by what they raise: {more['months']}"]
    for name, one in topics.items():
        shown = ", ".join(
            f"{what} {one[what]['within']}/{one['seeds']} after {one[what]['images']} images"
            for what in ("alarm", "page")
        )
        lines.append(f"{name:<24} {shown}; first by {one['by']}; R@10 {more['recall'][name]:.3f}")
    if peer is None:
        lines.append(
            f"Evidently is not there ({config.peer}), so nothing stands beside our alarms: make peers"
        )
    return document(rows, **more), "\n".join([table(rows), *lines])


def _split(ordinary: Images, seed: int) -> _Split:
    order = np.random.default_rng(seed).permutation(len(ordinary))
    part = ordinary.taken(order[:REFERENCE_IMAGES])
    learned = fit_reference(part.window, profile("tiny").shape, seed=seed)
    return _Split(learned, part.recall(learned), part, ordinary.taken(order[REFERENCE_IMAGES:]))


def _level(split: _Split, images: Images) -> tuple[str, list[str]]:
    """How loudly the hourly job would speak of a window, and which monitors alarm."""
    findings = examine(split.reference, images.window)
    return alarm_level(findings, split.recall, images.recall(split.reference)), [
        one.monitor for one in findings if one.alarm
    ]


def _hours(split: _Split, seed: int, images: int) -> Iterator[Images]:
    """A drift-free month of hourly windows: each hour brings so many images, of which the job samples its window."""
    rng = np.random.default_rng((seed, images))
    for _ in range(DAYS * HOURS):
        hour = rng.integers(0, len(split.stream), images)
        yield split.stream.taken(hour[rng.choice(images, WINDOW_IMAGES, replace=False)])


def _month(split: _Split, seed: int) -> Counter[str]:
    """Windows of a drift-free month by how loudly the job would speak of them."""
    return Counter(_level(split, window)[0] for window in _hours(split, seed, WINDOW_IMAGES))


def _rate(splits: Sequence[_Split], images: int) -> float:
    """Share of drift-free windows in which some chance is too small for a false alarm in four: often enough to be compared."""
    found = [
        any(
            one.p <= one.p_limit
            for one in examine(replace(split.reference, expected_run=4.0), window.window)
        )
        for at, split in enumerate(splits)
        for window in _hours(split, 100 + at, images)
    ]
    return sum(found) / len(found)


def _noticed(splits: Sequence[_Split], topic: Images) -> dict[str, Any]:
    """Streams in which a tenth is new from some image on: how many images later there is an alarm, and how many later a page."""
    alarmed: list[int] = []
    paged: list[int] = []
    by: Counter[str] = Counter()
    for at, split in enumerate(splits):
        rng = np.random.default_rng((at, 7))
        onset = int(rng.integers(0, WINDOW_IMAGES))
        for number in range(_WINDOWS):
            new = int(rng.binomial(WINDOW_IMAGES - (0 if number else onset), _SHARE))
            level, monitors = _level(split, _mixed(rng, split, topic, new))
            delay = (number + 1) * WINDOW_IMAGES - onset
            if level != "none" and len(alarmed) <= at:
                by.update(monitors)
                alarmed.append(delay)
            if level == "page":
                paged.append(delay)
                break
        # What never came came too late.
        alarmed += [_NEVER] * (at + 1 - len(alarmed))
        paged += [_NEVER] * (at + 1 - len(paged))
    return {"seeds": len(splits), "by": dict(by), "alarm": _delays(alarmed), "page": _delays(paged)}


def _delays(found: Sequence[int]) -> dict[str, Any]:
    """How many were in time; least, median and most images until then."""
    within = [delay for delay in found if delay <= _WITHIN]
    return {
        "within": len(within),
        "images": [min(within), int(np.median(within)), max(within)] if within else [],
    }


def _mixed(rng: np.random.Generator, split: _Split, topic: Images, new: int) -> Images:
    ordinary = split.stream.taken(rng.integers(0, len(split.stream), WINDOW_IMAGES - new))
    return ordinary.joined(topic.taken(rng.integers(0, len(topic), new)))


def _columns(images: Images) -> Any:
    """(n, C): the codes and the agreement as categories, then confidence and the embedding's first components."""
    window = images.window
    return np.column_stack(
        [window.codes, window.agreement, window.confidences, window.embeddings[:, :_EMBEDDED]]
    )


def _start(
    config: DriftConfig, split: _Split, found: Pool
) -> "tuple[subprocess.Popen[str], tempfile.TemporaryDirectory[str], int]":
    """The peer at work beside us, on drift-free windows and on as many with a new topic as there are seeds."""
    rng = np.random.default_rng(config.seed)
    topic = found.topics[next(iter(TOPICS))]
    windows = [
        _mixed(rng, split, topic, 0 if at < config.quiet else round(_SHARE * WINDOW_IMAGES))
        for at in range(config.quiet + config.seeds)
    ]
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "windows.npz"
    np.savez(
        path,
        reference=_columns(split.pool),
        windows=np.stack([_columns(one) for one in windows]),
        categories=_CATEGORIES,
    )
    script = Path(__file__).with_name("evidently_peer.py")
    process = subprocess.Popen(
        [str(config.peer), str(script), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, folder, config.quiet


def _finish(
    peer: "tuple[subprocess.Popen[str], tempfile.TemporaryDirectory[str], int]",
) -> tuple[list[float], list[float]]:
    """Shares of drifted columns in the drift-free windows, and in those with a new topic."""
    process, folder, quiet = peer
    out, problem = process.communicate()
    folder.cleanup()
    if process.returncode:
        raise WorkFailedError(
            f"the peer failed ({problem.strip()[-300:]}); make its environment again with: make peers"
        )
    shares = json.loads(out.strip().splitlines()[-1])
    return shares[:quiet], shares[quiet:]


def _rows(
    config: DriftConfig,
    months: Sequence[Counter[str]],
    topics: dict[str, dict[str, Any]],
    rates: dict[int, float],
    peer: tuple[list[float], list[float]] | None,
) -> list[Row]:
    alarms = sum(month["ticket"] + month["page"] for month in months) / len(months)
    few, many = rates.values()
    rows = [
        Row(
            "significant windows, 100k images an hour (peer: 1k)",
            many,
            few,
            "ours at 1k",
            "share",
            len(months) // 2 * DAYS * HOURS,
        )
    ]
    if peer is None:
        return rows
    noticed = topics[next(iter(TOPICS))]["alarm"]["within"] / config.seeds
    # Evidently calls a data set drifted when half of its columns are; a person may also be told of every column.
    for name, least in (("half of the columns", 0.5), ("any column", 1e-9)):
        false, true = (sum(share >= least for share in shares) / len(shares) for shares in peer)
        rows.append(
            Row(
                f"alarms in {DAYS} drift-free days, {name}",
                alarms,
                false * DAYS * HOURS,
                "Evidently",
                "windows",
                config.quiet,
            )
        )
        rows.append(
            Row(
                f"a tenth of a new topic noticed, {name}",
                noticed,
                true,
                "Evidently",
                "share",
                config.seeds,
            )
        )
    return rows
