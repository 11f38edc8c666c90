"""Figures: what `recall-probe` and `drift-report` recorded, read with care. A row that cannot be understood is left out, never a crash."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from model.retrieval.recall import wilson
from workers.repository.job_runs import JobRun

CUTOFFS = ("R@1", "R@5", "R@10")
COHORTS = ("hour", "day", "week", "older", "trained")
"""Ages of an image at the time of the probe, youngest first; `trained` images are those that the generation learned from."""

YOUNG = ("hour", "day")
"""Cohorts younger than a day."""

LEVELS = ("id1", "id2", "id3", "id4")


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall of some queries: `ours` and `exact` (dense search) by cut-off, from 0 to 1. R@10 hits give the 95% interval."""

    queries: int
    ours: Mapping[str, float]
    exact: Mapping[str, float]

    def interval(self, cutoff: str = "R@10") -> tuple[float, float]:
        """95% Wilson interval of our recall."""
        return wilson(round(self.ours[cutoff] * self.queries), self.queries)

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape; intervals are those of R@10."""
        low, high = self.interval()
        return {
            "queries": self.queries,
            "ours": dict(self.ours),
            "exact_dense": dict(self.exact),
            "ours_R@10_95%": [round(low, 4), round(high, 4)],
        }


@dataclass(frozen=True, slots=True)
class Probe:
    """One run of `recall-probe`."""

    at: datetime
    generation: int
    cohorts: Mapping[str, Recall]

    @property
    def queries(self) -> int:
        """Known-item queries asked."""
        return sum(one.queries for one in self.cohorts.values())

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        cohorts = {name: one.to_dict() for name, one in self.cohorts.items()}
        return {
            "at": self.at.isoformat(),
            "generation": self.generation,
            "queries": self.queries,
            "cohorts": cohorts,
        }


@dataclass(frozen=True, slots=True)
class Reading:
    """What one monitor saw in one look, and what it may see before it is an alarm."""

    monitor: str
    effect: float
    limit: float
    p: float | None
    p_limit: float | None
    alarm: bool

    @property
    def ratio(self) -> float:
        """Effect as a share of its limit; 1 is the limit."""
        return self.effect / self.limit if self.limit > 0 else math.inf if self.effect > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape, as the job records it."""
        return {
            "name": self.monitor,
            "effect": self.effect,
            "effect_limit": self.limit,
            "p": self.p,
            "p_limit": self.p_limit,
            "alarm": self.alarm,
        }


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often each code of a level is given, as shares that add up to 1: in the reference, and now."""

    then: tuple[float, ...]
    now: tuple[float, ...]

    @property
    def moved(self) -> float:
        """Share of the images that would have to change their code for both to agree: total variation distance, 0 to 1."""
        return sum(abs(a - b) for a, b in zip(self.then, self.now, strict=True)) / 2

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "then": list(self.then),
            "now": list(self.now),
            "moved": round(self.moved, 4),
            "codes_in_use": {
                "then": round(perplexity(self.then), 2),
                "now": round(perplexity(self.now), 2),
            },
        }


@dataclass(frozen=True, slots=True)
class Look:
    """One run of `drift-report`: its monitors and how full the leaves are. Histograms are read of the newest run only."""

    at: datetime
    generation: int
    images: int
    readings: tuple[Reading, ...]
    leaf: Mapping[str, float]
    suffix_pressure: float | None
    histograms: Mapping[str, Histogram]

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "at": self.at.isoformat(),
            "generation": self.generation,
            "images": self.images,
            "monitors": [one.to_dict() for one in self.readings],
            "leaf": dict(self.leaf),
            "suffix_pressure": self.suffix_pressure,
        }


def probe_of(run: JobRun) -> Probe | None:
    """The probe that a run recorded; None where it had nothing to ask, or its figures are not those of a probe."""
    generation, cohorts = _count(run.figures.get("generation")), run.figures.get("cohorts")
    if generation is None or not isinstance(cohorts, dict):
        return None
    read = {name: _recall(cohorts[name]) for name in COHORTS if name in cohorts}
    found = {name: one for name, one in read.items() if one is not None}
    return Probe(run.started_at, generation, found) if found else None


def look_of(run: JobRun) -> Look | None:
    """The look that a run recorded; None where too little had arrived to look at."""
    figures = run.figures
    generation, monitors = _count(figures.get("generation")), figures.get("monitors")
    if generation is None or not isinstance(monitors, list):
        return None
    leaf, found = figures.get("leaf"), figures.get("histograms")
    loads = (
        {name: number(leaf.get(name)) for name in ("gini", "p99", "max")}
        if isinstance(leaf, dict)
        else {}
    )
    histograms = (
        {name: _histogram(found[name]) for name in LEVELS if name in found}
        if isinstance(found, dict)
        else {}
    )
    readings = tuple(one for one in map(_reading, monitors) if one is not None)
    if not readings:
        return None
    return Look(
        at=run.started_at,
        generation=generation,
        images=_count(figures.get("images")) or 0,
        readings=readings,
        leaf={name: value for name, value in loads.items() if value is not None},
        suffix_pressure=number(figures.get("suffix_pressure")),
        histograms={name: one for name, one in histograms.items() if one is not None},
    )


def pooled(parts: list[Recall]) -> Recall | None:
    """Several cohorts of one probe as one; None without queries. Not for several probes: they ask some images again."""
    total = sum(one.queries for one in parts)
    if not total:
        return None
    ours = {
        cutoff: sum(one.ours[cutoff] * one.queries for one in parts) / total for cutoff in CUTOFFS
    }
    exact = {
        cutoff: sum(one.exact[cutoff] * one.queries for one in parts) / total for cutoff in CUTOFFS
    }
    return Recall(total, ours, exact)


def perplexity(shares: tuple[float, ...]) -> float:
    """As how many equally frequent codes these count: e to the power of their entropy."""
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def number(found: object) -> float | None:
    """A finite number, or None."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def _count(found: object) -> int | None:
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def _recall(found: object) -> Recall | None:
    if not isinstance(found, dict):
        return None
    queries, ours, exact = (
        _count(found.get("queries")),
        _shares(found.get("ours")),
        _shares(found.get("exact_dense")),
    )
    return Recall(queries, ours, exact) if queries and ours and exact else None


def _shares(found: object) -> dict[str, float] | None:
    if not isinstance(found, dict):
        return None
    read = {cutoff: number(found.get(cutoff)) for cutoff in CUTOFFS}
    kept = {
        cutoff: min(1.0, max(0.0, value)) for cutoff, value in read.items() if value is not None
    }
    return kept if len(kept) == len(CUTOFFS) else None


def _reading(found: object) -> Reading | None:
    if not isinstance(found, dict):
        return None
    effect, limit = number(found.get("effect")), number(found.get("effect_limit"))
    if effect is None or limit is None:
        return None
    return Reading(
        monitor=str(found.get("name", "?")),
        effect=effect,
        limit=limit,
        p=number(found.get("p")),
        p_limit=number(found.get("p_limit")),
        alarm=found.get("alarm") is True,
    )


def _histogram(found: object) -> Histogram | None:
    if not isinstance(found, dict):
        return None
    then, now = _normalised(found.get("then")), _normalised(found.get("now"))
    return Histogram(then, now) if then and now and len(then) == len(now) else None


def _normalised(found: object) -> tuple[float, ...]:
    """Counts or shares as shares."""
    values = [number(one) or 0.0 for one in found] if isinstance(found, list) else []
    total = sum(values)
    return tuple(max(0.0, value) / total for value in values) if total > 0 else ()
