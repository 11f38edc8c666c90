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

from model.drift import REFERENCE, SAMPLE, Reference, Window, examine, reference_of
from model.profiles import profile
from ops.bench.drift_pool import TOPICS, Pool, joined, pool, taken
from ops.bench.rows import Row, document, table
from schemas.errors import WorkFailedError

PEER = Path(".venv-peers/bin/python")
"""Where `make peers` puts Evidently."""

DAYS, HOURS = 30, 24
_SHARE, _WITHIN = 0.1, 2000
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

    reference: Reference
    pool: Window
    stream: Window


def drift(config: DriftConfig) -> tuple[dict[str, Any], str]:
    """The document of `sigma bench drift`, and the same for people."""
    began = time.perf_counter()
    found = pool(config.seed, REFERENCE + _STREAMED, _TOPICAL)
    made = time.perf_counter() - began
    splits = [_split(found.ordinary, config.seed + at) for at in range(config.seeds)]
    peer = _start(config, splits[0], found) if config.peer is not None and config.peer.is_file() else None
    months = [_month(split, at) for at, split in enumerate(splits[: config.months])]
    rates = {hour: _rate(splits[: config.months // 2], hour) for hour in (1_000, 100_000)}
    topics = {name: _noticed(splits, window) for name, window in found.topics.items()}
    rows = _rows(config, months, topics, rates, None if peer is None else _finish(peer))
    seconds = {"pool": round(made, 1), "whole": round(time.perf_counter() - began, 1)}
    more = {
        "alarms_by_month": months,
        "topics": topics,
        "significant_windows_by_hour": {str(hour): rate for hour, rate in rates.items()},
        "watched": list(splits[0].reference.watched),
        "seconds": seconds,
    }
    lines = [
        f"{name:<24} noticed {one['noticed']}/{one['seeds']}, within {one['delays']} images, by {one['by']}" for name, one in topics.items()
    ]
    if peer is None:
        lines.append(f"Evidently is not there ({config.peer}), so nothing stands beside our alarms: make peers")
    return document(rows, **more), "\n".join([table(rows), *lines])


def _split(ordinary: Window, seed: int) -> _Split:
    order = np.random.default_rng(seed).permutation(len(ordinary))
    part = taken(ordinary, order[:REFERENCE])
    return _Split(reference_of(part, profile("tiny").shape, seed=seed), part, taken(ordinary, order[REFERENCE:]))


def _hours(split: _Split, seed: int, images: int) -> Iterator[Window]:
    """A drift-free month of hourly windows: each hour brings so many images, of which the job samples its window."""
    rng = np.random.default_rng((seed, images))
    for _ in range(DAYS * HOURS):
        hour = rng.integers(0, len(split.stream), images)
        yield taken(split.stream, hour[rng.choice(images, SAMPLE, replace=False)])


def _month(split: _Split, seed: int) -> int:
    """Windows of a drift-free month in which any monitor alarms: no page can come of the others."""
    return sum(any(one.alarm for one in examine(split.reference, window)) for window in _hours(split, seed, SAMPLE))


def _rate(splits: Sequence[_Split], images: int) -> float:
    """Share of drift-free windows in which some chance is too small for a false alarm in four: often enough to be compared."""
    found = [
        any(one.p <= one.p_limit for one in examine(replace(split.reference, expected_run=4.0), window))
        for at, split in enumerate(splits)
        for window in _hours(split, 100 + at, images)
    ]
    return sum(found) / len(found)


def _noticed(splits: Sequence[_Split], topic: Window) -> dict[str, Any]:
    """Streams in which a tenth is new from some image on: how many images later the monitors alarm."""
    delays: list[int | None] = []
    by: Counter[str] = Counter()
    for at, split in enumerate(splits):
        rng = np.random.default_rng((at, 7))
        onset = int(rng.integers(0, SAMPLE))
        delay = None
        for number in range(3):
            new = int(rng.binomial(SAMPLE - (0 if number else onset), _SHARE))
            alarms = [one.monitor for one in examine(split.reference, _mixed(rng, split, topic, new)) if one.alarm]
            if alarms:
                delay = (number + 1) * SAMPLE - onset
                by.update(alarms)
                break
        delays.append(delay)
    within = [delay for delay in delays if delay is not None and delay <= _WITHIN]
    return {
        "seeds": len(delays),
        "noticed": len(within),
        "delays": [min(within), int(np.median(within)), max(within)] if within else [],
        "by": dict(by),
    }


def _mixed(rng: np.random.Generator, split: _Split, topic: Window, new: int) -> Window:
    ordinary = taken(split.stream, rng.integers(0, len(split.stream), SAMPLE - new))
    return joined(ordinary, taken(topic, rng.integers(0, len(topic), new)))


def _columns(window: Window) -> Any:
    """(n, C): the codes and the agreement as categories, then confidence and the embedding's first components."""
    return np.column_stack([window.codes, window.agreement, window.confidences, window.embeddings[:, :_EMBEDDED]])


def _start(config: DriftConfig, split: _Split, found: Pool) -> "tuple[subprocess.Popen[str], tempfile.TemporaryDirectory[str], int]":
    """The peer at work beside us, on drift-free windows and on as many with a new topic as there are seeds."""
    rng = np.random.default_rng(config.seed)
    topic = found.topics[next(iter(TOPICS))]
    windows = [_mixed(rng, split, topic, 0 if at < config.quiet else round(_SHARE * SAMPLE)) for at in range(config.quiet + config.seeds)]
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "windows.npz"
    np.savez(path, reference=_columns(split.pool), windows=np.stack([_columns(one) for one in windows]), categories=_CATEGORIES)
    script = Path(__file__).with_name("drift_peer.py")
    process = subprocess.Popen([str(config.peer), str(script), str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return process, folder, config.quiet


def _finish(peer: "tuple[subprocess.Popen[str], tempfile.TemporaryDirectory[str], int]") -> tuple[list[float], list[float]]:
    """Shares of drifted columns in the drift-free windows, and in those with a new topic."""
    process, folder, quiet = peer
    out, problem = process.communicate()
    folder.cleanup()
    if process.returncode:
        raise WorkFailedError(f"the peer failed ({problem.strip()[-300:]}); make its environment again with: make peers")
    shares = json.loads(out.strip().splitlines()[-1])
    return shares[:quiet], shares[quiet:]


def _rows(
    config: DriftConfig,
    months: Sequence[int],
    topics: dict[str, dict[str, Any]],
    rates: dict[int, float],
    peer: tuple[list[float], list[float]] | None,
) -> list[Row]:
    alarms = sum(months) / len(months)
    few, many = rates.values()
    rows = [Row("significant windows, 100k images an hour (peer: 1k)", many, few, "ours at 1k", "share", len(months) // 2 * DAYS * HOURS)]
    if peer is None:
        return rows
    noticed = topics[next(iter(TOPICS))]["noticed"] / config.seeds
    # Evidently calls a data set drifted when half of its columns are; a person may also be told of every column.
    for name, least in (("half of the columns", 0.5), ("any column", 1e-9)):
        false, true = (sum(share >= least for share in shares) / len(shares) for shares in peer)
        rows.append(Row(f"alarms in {DAYS} drift-free days, {name}", alarms, false * DAYS * HOURS, "Evidently", "windows", config.quiet))
        rows.append(Row(f"a tenth of a new topic noticed, {name}", noticed, true, "Evidently", "share", config.seeds))
    return rows
