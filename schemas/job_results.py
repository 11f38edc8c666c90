"""Job results: what each scheduled job reports, and its JSON in the column `job_run.figures`.

Here are the jobs that observe, `recall-probe` and `drift-report`; those that change something are
in `schemas.maintenance_results`.

Every type has one writer, `to_json`, and one reader, `from_json`. Rows outlive the versions that
wrote them, so a reader never raises: it leaves out the parts that it cannot understand and returns
None when nothing usable is left. The keys of the JSON are stored data and do not change.

A run that found nothing to do records a `...Skipped` value, whose `why` says the reason. A run that
failed records a `JobFailure`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from schemas.json_values import StoredJson, finite_number, list_of, object_of, text, whole_number

# Keys of the recalls of a probe: share of queries whose image is among the first k answers.
RECALL_CUTOFFS = ("R@1", "R@5", "R@10")

# Cohorts of a probe's queries: the age of the image, youngest first, and `trained` for images
# that the generation was trained on.
COHORTS = ("hour", "day", "week", "older", "trained")

# Levels of an identifier whose code histograms a drift report records.
CODE_LEVELS = ("id1", "id2", "id3", "id4")


class JobResult(Protocol):
    """What a job's work returns: anything that can be stored as the figures of its run."""

    def to_json(self) -> dict[str, object]:
        """The figures as stored in `job_run.figures`."""
        ...


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A run that failed, with the message of its error."""

    error: str

    def to_json(self) -> dict[str, object]:
        """`{"error": ...}`."""
        return {"error": self.error}

    @classmethod
    def from_json(cls, figures: StoredJson) -> "JobFailure | None":
        """The failure that a run recorded; None for a run without an error."""
        error = text(figures.get("error"))
        return None if error is None else cls(error)


def skip_reason(figures: StoredJson) -> str | None:
    """Why a run of any job had nothing to do; None where it did its work."""
    return text(figures.get("why"))


@dataclass(frozen=True, slots=True)
class CohortRecall:
    """Recall of the queries of one cohort, or of several together."""

    queries: int
    ours: Mapping[str, float]
    """Share of queries, 0 to 1, whose image our search finds, by the keys of `RECALL_CUTOFFS`."""
    exact: Mapping[str, float]
    """The same for exact dense search with the same encoder."""
    interval: tuple[float, float] | None = None
    """95% Wilson interval of our R@10; None in rows that did not record it."""

    def to_json(self) -> dict[str, object]:
        """One value of `cohorts` in a recall probe's figures."""
        document: dict[str, object] = {
            "queries": self.queries,
            "ours": dict(self.ours),
            "exact_dense": dict(self.exact),
        }
        if self.interval is not None:
            document["ours_R@10_95%"] = list(self.interval)
        return document

    @classmethod
    def from_json(cls, document: object) -> "CohortRecall | None":
        """None without queries, or where one of the recalls is missing."""
        recorded = object_of(document)
        queries = whole_number(recorded.get("queries"))
        ours = _recalls(recorded.get("ours"))
        exact = _recalls(recorded.get("exact_dense"))
        if not queries or ours is None or exact is None:
            return None
        return cls(queries, ours, exact, _interval(recorded.get("ours_R@10_95%")))


@dataclass(frozen=True, slots=True)
class RecallProbeResult:
    """`recall-probe`: how well the live generation finds images that it holds."""

    generation: int
    cohorts: Mapping[str, CohortRecall]
    """By the names of `COHORTS`, in that order when read; a cohort without queries is left out."""
    candidates: float | None = None
    """Images scored for one query, on average; None in rows that did not record it."""
    by_picture: int = 0
    """Queries for images without captions: they were asked for by their own pictures."""

    @property
    def queries(self) -> int:
        """Known-item queries of all cohorts."""
        return sum(cohort.queries for cohort in self.cohorts.values())

    def to_json(self) -> dict[str, object]:
        """The figures of a probe."""
        document: dict[str, object] = {
            "generation": self.generation,
            "queries": self.queries,
            "cohorts": {name: cohort.to_json() for name, cohort in self.cohorts.items()},
        }
        if self.candidates is not None:
            document["candidates"] = self.candidates
        if self.by_picture:
            document["by_picture"] = self.by_picture
        return document

    @classmethod
    def from_json(cls, figures: StoredJson) -> "RecallProbeResult | None":
        """None for a run that had nothing to ask, or without any readable cohort."""
        generation = whole_number(figures.get("generation"))
        recorded = object_of(figures.get("cohorts"))
        cohorts = {}
        # In this order: the database does not keep the order of keys.
        for name in COHORTS:
            cohort = CohortRecall.from_json(recorded.get(name))
            if cohort is not None:
                cohorts[name] = cohort
        if generation is None or not cohorts:
            return None
        candidates = finite_number(figures.get("candidates"))
        by_picture = whole_number(figures.get("by_picture")) or 0
        return cls(generation, cohorts, candidates, by_picture)


@dataclass(frozen=True, slots=True)
class RecallProbeSkipped:
    """`recall-probe` without a generation to probe."""

    why: str

    def to_json(self) -> dict[str, object]:
        """The figures of a probe that asked nothing."""
        return {"queries": 0, "why": self.why}

    @classmethod
    def from_json(cls, figures: StoredJson) -> "RecallProbeSkipped | None":
        """None for a probe that was done."""
        why = skip_reason(figures)
        return None if why is None else cls(why)


@dataclass(frozen=True, slots=True)
class MonitorReading:
    """What one drift monitor saw in one window of arrivals, and its limits."""

    monitor: str
    effect: float
    """Size of the difference beyond what chance alone shows, in the monitor's own unit."""
    effect_limit: float
    """Effect from which the monitor can alarm."""
    p: float | None
    """Chance of such a window without drift; None in rows that did not record it."""
    p_limit: float | None
    """Chance below which the monitor can alarm."""
    alarm: bool

    @property
    def ratio(self) -> float:
        """Effect as a share of its limit; infinite where the limit is 0 and there is an effect."""
        if self.effect_limit > 0:
            return self.effect / self.effect_limit
        return math.inf if self.effect > 0 else 0.0

    def to_json(self) -> dict[str, object]:
        """One element of `monitors` in a drift report's figures."""
        return {
            "name": self.monitor,
            "effect": self.effect,
            "effect_limit": self.effect_limit,
            "p": self.p,
            "p_limit": self.p_limit,
            "alarm": self.alarm,
        }

    @classmethod
    def from_json(cls, document: object) -> "MonitorReading | None":
        """None where effect or limit is missing."""
        recorded = object_of(document)
        effect = finite_number(recorded.get("effect"))
        effect_limit = finite_number(recorded.get("effect_limit"))
        if effect is None or effect_limit is None:
            return None
        return cls(
            monitor=str(recorded.get("name", "?")),
            effect=effect,
            effect_limit=effect_limit,
            p=finite_number(recorded.get("p")),
            p_limit=finite_number(recorded.get("p_limit")),
            alarm=recorded.get("alarm") is True,
        )


@dataclass(frozen=True, slots=True)
class CodeShares:
    """How often each code of one level is assigned, as shares that add up to 1."""

    then: tuple[float, ...]
    """In the generation's reference."""
    now: tuple[float, ...]
    """In the window examined; as many codes as `then`."""

    @property
    def moved(self) -> float:
        """Total variation distance, 0 to 1: the share of images that would have to move."""
        differences = (abs(a - b) for a, b in zip(self.then, self.now, strict=True))
        return sum(differences) / 2

    def to_json(self) -> dict[str, object]:
        """One value of `histograms` in a drift report's figures."""
        return {"then": list(self.then), "now": list(self.now)}

    @classmethod
    def from_json(cls, document: object) -> "CodeShares | None":
        """Reads shares or counts; None where a side is empty or the lengths differ."""
        recorded = object_of(document)
        then = _shares(recorded.get("then"))
        now = _shares(recorded.get("now"))
        if not then or len(then) != len(now):
            return None
        return cls(then, now)


@dataclass(frozen=True, slots=True)
class LeafLoads:
    """Images in the occupied leaves of a window. None where a row did not record a number."""

    gini: float | None = None
    """Gini coefficient: 0 when all leaves hold equally many."""
    p99: float | None = None
    """99th percentile."""
    max: float | None = None

    def to_json(self) -> dict[str, object]:
        """`leaf` in a drift report's figures, without what is unknown."""
        loads = {"gini": self.gini, "p99": self.p99, "max": self.max}
        return {name: load for name, load in loads.items() if load is not None}

    @classmethod
    def from_json(cls, document: object) -> "LeafLoads":
        """Reads what is there."""
        recorded = object_of(document)
        return cls(
            finite_number(recorded.get("gini")),
            finite_number(recorded.get("p99")),
            finite_number(recorded.get("max")),
        )


@dataclass(frozen=True, slots=True)
class DriftReportResult:
    """`drift-report` of one examined window of arrivals of the live generation."""

    generation: int
    images: int
    monitors: tuple[MonitorReading, ...]
    """In the order of reports; never empty."""
    first_key: int | None = None
    last_key: int | None = None
    """Image keys that the window spans; the next window begins after the last one."""
    histograms: Mapping[str, CodeShares] = field(default_factory=dict)
    """By the names of `CODE_LEVELS`; empty in rows that were read without their histograms."""
    leaf: LeafLoads = LeafLoads()
    suffix_pressure: float | None = None
    """Share of images, 0 to 1, whose leaf has little room left."""
    pages: int = 0
    """Alarms of level page that this window raised."""
    tickets: int = 0
    """Alarms of level ticket that this window raised."""

    @property
    def alarming(self) -> frozenset[str]:
        """Names of the monitors that alarmed in this window."""
        return frozenset(reading.monitor for reading in self.monitors if reading.alarm)

    def to_json(self) -> dict[str, object]:
        """The figures of a report."""
        return {
            "generation": self.generation,
            "images": self.images,
            "first_key": self.first_key,
            "last_key": self.last_key,
            "monitors": [reading.to_json() for reading in self.monitors],
            "histograms": {name: codes.to_json() for name, codes in self.histograms.items()},
            "leaf": self.leaf.to_json(),
            "suffix_pressure": self.suffix_pressure,
            "pages": self.pages,
            "tickets": self.tickets,
        }

    @classmethod
    def from_json(cls, figures: StoredJson) -> "DriftReportResult | None":
        """None for a run that examined no window, or without any readable monitor."""
        generation = whole_number(figures.get("generation"))
        monitors = _readings(figures.get("monitors"))
        if generation is None or not monitors:
            return None
        return cls(
            generation=generation,
            images=whole_number(figures.get("images")) or 0,
            monitors=monitors,
            first_key=whole_number(figures.get("first_key")),
            last_key=whole_number(figures.get("last_key")),
            histograms=_histograms(figures.get("histograms")),
            leaf=LeafLoads.from_json(figures.get("leaf")),
            suffix_pressure=finite_number(figures.get("suffix_pressure")),
            pages=whole_number(figures.get("pages")) or 0,
            tickets=whole_number(figures.get("tickets")) or 0,
        )


@dataclass(frozen=True, slots=True)
class DriftCalibration:
    """The run in which a generation got its reference."""

    watched: tuple[str, ...]
    """Monitors that the reference can judge."""
    recall: tuple[int, int] | None
    """(hits, queries) of known items, the most novel reference images; None if not measured."""


@dataclass(frozen=True, slots=True)
class DriftReportSkipped:
    """`drift-report` without a window: too few arrivals, or the reference was just made."""

    generation: int | None
    why: str
    calibration: DriftCalibration | None = None

    def to_json(self) -> dict[str, object]:
        """The figures of a report that examined nothing."""
        document: dict[str, object] = {
            "generation": self.generation,
            "images": 0,
            "monitors": [],
            "pages": 0,
            "tickets": 0,
            "why": self.why,
        }
        if self.calibration is not None:
            recall = self.calibration.recall
            document["watched"] = list(self.calibration.watched)
            document["recall"] = None if recall is None else list(recall)
        return document

    @classmethod
    def from_json(cls, figures: StoredJson) -> "DriftReportSkipped | None":
        """None for a report that examined a window."""
        why = skip_reason(figures)
        if why is None:
            return None
        watched = figures.get("watched")
        calibration = None
        if isinstance(watched, list):
            names = tuple(str(name) for name in watched)
            calibration = DriftCalibration(names, _hits_and_queries(figures.get("recall")))
        return cls(whole_number(figures.get("generation")), why, calibration)


def _recalls(document: object) -> dict[str, float] | None:
    """All of `RECALL_CUTOFFS`, clamped to 0 to 1; None where one is missing."""
    recorded = object_of(document)
    recalls = {}
    for cutoff in RECALL_CUTOFFS:
        recall = finite_number(recorded.get(cutoff))
        if recall is None:
            return None
        # A share outside 0 to 1 would break every interval and plot that is made of it.
        recalls[cutoff] = min(1.0, max(0.0, recall))
    return recalls


def _interval(value: object) -> tuple[float, float] | None:
    bounds = [finite_number(bound) for bound in list_of(value)]
    match bounds:
        case [float(low), float(high)]:
            return low, high
        case _:
            return None


def _hits_and_queries(value: object) -> tuple[int, int] | None:
    counts = [whole_number(count) for count in list_of(value)]
    match counts:
        case [int(hits), int(queries)]:
            return hits, queries
        case _:
            return None


def _readings(value: object) -> tuple[MonitorReading, ...]:
    readings = map(MonitorReading.from_json, list_of(value))
    return tuple(reading for reading in readings if reading is not None)


def _histograms(value: object) -> dict[str, CodeShares]:
    recorded = object_of(value)
    histograms = {}
    for level in CODE_LEVELS:
        histogram = CodeShares.from_json(recorded.get(level))
        if histogram is not None:
            histograms[level] = histogram
    return histograms


def _shares(value: object) -> tuple[float, ...]:
    """Counts or shares as shares; empty where nothing is counted."""
    # A histogram with a hole keeps its other codes at their places.
    counts = [finite_number(count) or 0.0 for count in list_of(value)]
    total = sum(counts)
    if total <= 0:
        return ()
    return tuple(max(0.0, count) / total for count in counts)
