"""Drift monitors: whether what arrives is still what arrived at the beginning of a generation.

Each monitor compares one *window*, a sample of fixed size of what arrived, with the *reference*,
the generation's first arrivals: images of the same kind, assigned by the same model without
training. An alarm needs an effect that matters and a p-value that is too small. The p-values are
calibrated by drift-free replays and corrected for the number of monitors (Holm), so that false
alarms of all monitors together are `expected_run` windows apart. As windows are samples of one
size, that does not depend on how many images an hour brings.

Each window is judged alone: sums over windows (CUSUM) would add up the reference's own error, which
never goes away, until they alarm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from model.drift.calibration import NullDistribution, holm_limits
from model.drift.sketch_documents import sketch_from_dict, sketch_to_dict
from model.drift.sketches import (
    CodeHistogram,
    HitShare,
    LeafCrowding,
    MeanShift,
    Novelty,
    Rows,
    Sketch,
    SortedValues,
    effective_size,
    statistic,
)
from model.identifiers.codebook import pack_all
from schemas.errors import UsageError
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import BoolArray, FloatArray, IntArray, JsonObject

# Images of a window: a tenth of something new is noticed in one.
WINDOW_IMAGES = 1000

# Images of the reference: more than a window, for every comparison has its error.
REFERENCE_IMAGES = 2000

# Windows between two false alarms of all monitors together: a year of hourly ones.
EXPECTED_RUN = 8760.0

# Query scores that a reference needs to watch them; a window needs half as many.
MIN_QUERIES = 200

# Drift-free replays that calibrate a monitor: they take seconds, and 100 of them are its tail.
REPLAYS = 2000

# Share of a leaf's suffixes in use from which an image arrives under pressure.
PRESSED = 0.75

# Recall that a page needs to be lost: three points.
RECALL_DROP = 0.03

# The p-value of that loss that a page needs: below one in a hundred.
RECALL_P = 0.01

# Share of a window, and of the reference, whose recall is compared: the most novel images.
#
# A tenth of arrivals that no query finds moves the recall of all of them by less than a sample
# can show, but that of the most novel tenth by a lot.
NOVEL_SHARE = 0.1

# Effects that matter, by monitor.
EFFECT_LIMITS: Mapping[str, float] = {
    # Jensen-Shannon distance between the codes of a level.
    **{f"id{level}": 0.1 for level in range(1, LEVELS + 1)},
    # Standard deviations between the mean embeddings.
    "embedding": 0.3,
    # Cohen's h between shares.
    "novelty": 0.2,
    # Kolmogorov-Smirnov distance between log-probabilities.
    "confidence": 0.05,
    # Cohen's h between shares.
    "agreement": 0.1,
    # ln of crowding: half as much again.
    "leaf-load": 0.4,
    # Cohen's h between shares.
    "suffix-pressure": 0.2,
    # Kolmogorov-Smirnov distance between best scores.
    "query-score": 0.1,
}


@dataclass(frozen=True, slots=True, eq=False)
class ArrivalWindow:
    """What one look at arrivals takes in: n images, and Q served queries."""

    codes: IntArray
    """(n, 4) codes of the primary"""
    embeddings: FloatArray
    """(n, D)"""
    confidences: FloatArray
    """(n,) log-probability of the primary"""
    agreement: BoolArray
    """(n,) whether the model's id1 is the codebook's; (0,) when there is no codebook to ask"""
    leaf_loads: IntArray
    """(n,) images in the primary leaf of each"""
    query_scores: FloatArray
    """(Q,) best score of each query, may be empty"""

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True, slots=True)
class MonitorResult:
    """What one monitor says of one window."""

    monitor: str
    effect: float
    """What is seen beyond what chance alone would show."""
    effect_limit: float
    p: float
    p_limit: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class RecallCount:
    """Known-item queries for the most novel images (`NOVEL_SHARE`)."""

    hits: int
    """Queries that found their image among the ten best."""
    queries: int

    @property
    def recall(self) -> float:
        """Share of hits; only with queries."""
        return self.hits / self.queries


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedSketch:
    """One monitor's memory of the time before."""

    sketch: Sketch
    null: NullDistribution
    """How its statistic varies without drift."""


@dataclass(frozen=True, slots=True, eq=False)
class DriftReference:
    """The drift-free state of a generation."""

    shape: IdentifierShape
    images: int
    """Images that it was made of."""
    window: int
    """Images of a window that it was calibrated for."""
    expected_run: float
    monitors: Mapping[str, CalibratedSketch]
    """In the order of reports."""

    def by_novelty(self, embeddings: FloatArray) -> IntArray:
        """(n,) rows of (n, D) embeddings, those least like the reference first."""
        sketch = self.monitors["novelty"].sketch
        assert isinstance(sketch, Novelty)
        return np.argsort(-sketch.to_landmarks(embeddings), kind="stable").astype(np.int64)

    def to_dict(self) -> JsonObject:
        """Plain values for JSON; a few hundred kilobytes, whatever the number of images."""
        monitors = {}
        for name, monitor in self.monitors.items():
            monitors[name] = {
                "sketch": sketch_to_dict(monitor.sketch),
                "null": monitor.null.to_dict(),
            }
        return {
            "shape": {"codes": list(self.shape.codes), "suffixes": self.shape.suffixes},
            "images": self.images,
            "window": self.window,
            "expected_run": self.expected_run,
            "watched": monitors,
        }

    @classmethod
    def from_dict(cls, document: JsonObject) -> "DriftReference":
        """The inverse of `to_dict`."""
        shape = document["shape"]
        monitors = {}
        for name, stored in document["watched"].items():
            sketch = sketch_from_dict(stored["sketch"])
            monitors[name] = CalibratedSketch(sketch, NullDistribution.from_dict(stored["null"]))
        return cls(
            IdentifierShape(tuple(shape["codes"]), shape["suffixes"]),
            document["images"],
            document["window"],
            document["expected_run"],
            monitors,
        )


def fit_reference(
    pool: ArrivalWindow,
    shape: IdentifierShape,
    *,
    seed: int = 0,
    window: int = WINDOW_IMAGES,
    expected_run: float = EXPECTED_RUN,
    replays: int = REPLAYS,
) -> DriftReference:
    """The reference of drift-free images, calibrated for windows of `window` images.

    A monitor without input in the pool is left out. `UsageError` when the pool is too small.
    """
    if len(pool) < window:
        raise UsageError(
            f"a reference needs at least the {window} images of a window, got {len(pool)};"
            " wait for more arrivals"
        )
    rng = np.random.default_rng(seed)
    monitors = {}
    for name, rows in _inputs(pool, shape).items():
        is_queries = name == "query-score"
        if len(rows) < (MIN_QUERIES if is_queries else 1):
            continue
        sketch = _make_sketch(name, rows, shape, seed)
        # How many queries a window will have is not known; the reference's own number is a guess.
        window_rows = len(rows) if is_queries else window
        replayed = sketch.replay(rows, rng, window_rows, replays)
        null = NullDistribution.of(replayed, sketch.MIN_NULL_SCALE)
        monitors[name] = CalibratedSketch(sketch, null)
    return DriftReference(shape, len(pool), window, expected_run, monitors)


def examine(reference: DriftReference, window: ArrivalWindow) -> tuple[MonitorResult, ...]:
    """What each monitor says of a window; one without input, now or then, says nothing."""
    inputs = _inputs(window, reference.shape)
    names: list[str] = []
    effects: list[float] = []
    p_values: list[float] = []
    for name, monitor in reference.monitors.items():
        rows = inputs[name]
        if len(rows) >= (MIN_QUERIES // 2 if name == "query-score" else 1):
            effect, p_value = _measure(monitor, rows)
            names.append(name)
            effects.append(effect)
            p_values.append(p_value)
    results = []
    p_limits = holm_limits(p_values, 1 / reference.expected_run)
    for name, effect, p_value, p_limit in zip(names, effects, p_values, p_limits, strict=True):
        limit = EFFECT_LIMITS[name]
        alarm = effect >= limit and p_value <= p_limit
        results.append(MonitorResult(name, effect, limit, p_value, p_limit, alarm))
    return tuple(results)


def alarm_level(
    results: Sequence[MonitorResult],
    recall_then: RecallCount | None,
    recall_now: RecallCount | None,
) -> str:
    """How urgent a window is: "none", "ticket" for an alarm, "page" when recall has fallen too.

    Recall has fallen when it is at least three points lower and a one-sided Fisher test gives that
    less than one chance in a hundred. Unknown recall makes no page.
    """
    if not any(result.alarm for result in results):
        return "none"
    if recall_then is None or recall_now is None:
        return "ticket"
    if not recall_then.queries or not recall_now.queries:
        return "ticket"
    return "page" if _has_fallen(recall_then, recall_now) else "ticket"


def code_shares(
    reference: DriftReference, window: ArrivalWindow
) -> dict[str, dict[str, list[float]]]:
    """Shares of the codes of each level, `then` and `now`, for a reader's eye."""
    shares = {}
    for level, count in enumerate(reference.shape.codes):
        name = f"id{level + 1}"
        sketch = reference.monitors[name].sketch
        assert isinstance(sketch, CodeHistogram)
        then = sketch.counts / sketch.size
        now = np.bincount(window.codes[:, level], minlength=count) / max(1, len(window))
        shares[name] = {"then": then.tolist(), "now": now.tolist()}
    return shares


def under_suffix_pressure(window: ArrivalWindow, shape: IdentifierShape) -> BoolArray:
    """(n,) whether each image's primary leaf has little room left."""
    return np.asarray(window.leaf_loads >= PRESSED * shape.suffixes)


def _has_fallen(then: RecallCount, now: RecallCount) -> bool:
    if then.recall - now.recall < RECALL_DROP:
        return False
    table = [[now.hits, now.queries - now.hits], [then.hits, then.queries - then.hits]]
    # SciPy's statistics take a second to load, and every command of the command line loads this.
    from scipy.stats import fisher_exact

    return bool(fisher_exact(table, alternative="less").pvalue < RECALL_P)


def _measure(monitor: CalibratedSketch, rows: Rows) -> tuple[float, float]:
    """Effect and p-value of one monitor's rows."""
    sketch = monitor.sketch
    squared = sketch.distance(rows)
    # Two samples differ without drift too; only what is beyond their mean difference is an effect.
    excess = squared - monitor.null.mean / effective_size(len(rows), sketch.size)
    p_value = monitor.null.p_value(statistic(squared, len(rows), sketch.size))
    return sqrt(max(0.0, excess)), p_value


def _inputs(window: ArrivalWindow, shape: IdentifierShape) -> dict[str, Rows]:
    """What each monitor looks at, in the order of reports."""
    inputs: dict[str, Rows] = {}
    for level in range(LEVELS):
        inputs[f"id{level + 1}"] = window.codes[:, level]
    inputs["embedding"] = window.embeddings
    inputs["novelty"] = window.embeddings
    inputs["confidence"] = window.confidences
    inputs["agreement"] = window.agreement
    inputs["leaf-load"] = pack_all(window.codes, shape)
    inputs["suffix-pressure"] = under_suffix_pressure(window, shape)
    inputs["query-score"] = window.query_scores
    return inputs


def _make_sketch(name: str, rows: Rows, shape: IdentifierShape, seed: int) -> Sketch:
    match name:
        case "embedding":
            return MeanShift.of(rows)
        case "novelty":
            return Novelty.of(rows, seed)
        case "agreement":
            return HitShare.of(rows)
        case "suffix-pressure":
            return HitShare.of(rows, rising=True)
        case "leaf-load":
            return LeafCrowding.of(rows)
        case "confidence" | "query-score":
            return SortedValues.of(rows)
    level = int(name.removeprefix("id"))
    return CodeHistogram.of(rows, shape.codes[level - 1])
