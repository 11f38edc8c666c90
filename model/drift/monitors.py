"""Drift: whether what arrives is still what arrived at the beginning of a generation, and how loudly to say so.

Each monitor compares one *window*, a sample of fixed size of what arrived, with the *reference*, the generation's first
arrivals: images of the same kind, assigned by the same model without training. An alarm needs an effect that matters and a
chance that is too small. The chances are calibrated by drift-free replays and corrected for the number of monitors (Holm), so
that false alarms of all monitors together are `expected_run` windows apart. As windows are samples of one size, that does not
depend on how many images an hour brings. Each window is judged alone: sums over windows (CUSUM) would add up the reference's
own error, which never goes away, until they alarm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import fisher_exact

from model.drift.calibration import NullDistribution, holm_limits
from model.drift.sketches import (
    CodeHistogram,
    HitShare,
    LeafCrowding,
    MeanShift,
    Novelty,
    Sketch,
    SortedValues,
    effective,
    restored,
    statistic,
    stored,
)
from model.identifiers.codebook import pack_all
from schemas.errors import UsageError
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import BoolArray, FloatArray, IntArray

WINDOW_IMAGES, REFERENCE_IMAGES = 1000, 2000
"""Images of a window, and of the reference."""

EXPECTED_RUN = 8760.0
"""Windows between two false alarms of all monitors together: a year of hourly ones."""

LEAST_QUERIES = 200
"""Query scores that a reference needs to watch them; a window needs half as many."""

REPLAYS = 2000
PRESSED = 0.75
"""Share of a leaf's suffixes in use from which an image is said to arrive under pressure."""

RECALL_DROP, RECALL_CHANCE = 0.03, 0.01
"""What a page needs: recall lower by three points, and less than one chance in a hundred that nothing changed."""

NOVEL_SHARE = 0.1
"""Share of a window, and of the reference, whose recall is compared: the images least like the reference. A tenth of arrivals that
nobody finds moves the recall of all of them by less than a sample can show, but that of the most novel tenth by a lot."""

EFFECT_LIMITS: Mapping[str, float] = {
    **{f"id{level}": 0.1 for level in range(1, LEVELS + 1)},
    "embedding": 0.3,
    "novelty": 0.2,
    "confidence": 0.05,
    "agreement": 0.1,
    "leaf-load": 0.4,
    "suffix-pressure": 0.2,
    "query-score": 0.1,
}
"""Effects that matter: Jensen-Shannon distance of codes, standard deviations between mean embeddings, Kolmogorov-Smirnov distance
(confidence, query score), Cohen's h of shares (novelty, agreement, suffix pressure), ln of crowding (leaf load: half as much again)."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrivalWindow:
    """What one look at arrivals holds: n images, and Q served queries."""

    codes: IntArray
    """(n, 4) codes of the primary"""
    embeddings: FloatArray
    """(n, D)"""
    confidences: FloatArray
    """(n,) log-probability of the primary"""
    agreement: BoolArray
    """(n,) whether the model's id1 is the codebook's; (0,) when there is no codebook to ask"""
    leaf_loads: IntArray
    """(n,) how many images stand in the primary leaf of each"""
    query_scores: FloatArray
    """(Q,) best score of each query, may be empty"""

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True, slots=True)
class MonitorResult:
    """What one monitor says of one window. `effect` is what is seen beyond what chance alone would show."""

    monitor: str
    effect: float
    effect_limit: float
    p: float
    p_limit: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class RecallCount:
    """Known-item queries asked for the most novel images (`NOVEL_SHARE`), and how many found theirs among the ten best."""

    hits: int
    queries: int


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedSketch:
    """One monitor's memory of the time before: what it saw and how its statistic varies without drift."""

    sketch: Sketch
    null: NullDistribution


@dataclass(frozen=True, slots=True, eq=False)
class DriftReference:
    """The drift-free state of a generation. `watched` by monitor, `images` and `window` are the sizes it was calibrated for."""

    shape: IdentifierShape
    images: int
    window: int
    expected_run: float
    monitors: Mapping[str, CalibratedSketch]

    def by_novelty(self, embeddings: FloatArray) -> IntArray:
        """(n,) rows of (n, D) embeddings, those least like the reference first."""
        sketch = self.monitors["novelty"].sketch
        assert isinstance(sketch, Novelty)
        return np.argsort(-sketch.away(embeddings), kind="stable").astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a few hundred kilobytes, whatever the number of images."""
        return {
            "shape": {"codes": list(self.shape.codes), "suffixes": self.shape.suffixes},
            "images": self.images,
            "window": self.window,
            "expected_run": self.expected_run,
            "watched": {
                name: {"sketch": stored(one.sketch), "null": one.null.to_dict()}
                for name, one in self.monitors.items()
            },
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "DriftReference":
        """The inverse of `to_dict`."""
        return cls(
            IdentifierShape(tuple(document["shape"]["codes"]), document["shape"]["suffixes"]),
            document["images"],
            document["window"],
            document["expected_run"],
            {
                name: CalibratedSketch(
                    restored(one["sketch"]), NullDistribution.from_dict(one["null"])
                )
                for name, one in document["watched"].items()
            },
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
    """The reference of drift-free images, calibrated for windows of `window` images. `UsageError` when the pool is too small."""
    if len(pool) < window:
        raise UsageError(
            f"a reference of {len(pool)} images cannot judge windows of {window}; wait for more arrivals"
        )
    rng = np.random.default_rng(seed)
    watched = {}
    for name, rows in _inputs(pool, shape).items():
        if len(rows) == 0 or (name == "query-score" and len(rows) < LEAST_QUERIES):
            continue
        sketch = _sketch(name, rows, shape, seed)
        looked_at = len(rows) if name == "query-score" else window
        watched[name] = CalibratedSketch(
            sketch, NullDistribution.of(sketch.replay(rows, rng, looked_at, replays), sketch.LEAST)
        )
    return DriftReference(shape, len(pool), window, expected_run, watched)


def examine(reference: DriftReference, window: ArrivalWindow) -> tuple[MonitorResult, ...]:
    """What each monitor says of a window; those without input, now or in the reference, say nothing."""
    inputs = _inputs(window, reference.shape)
    least = {"query-score": LEAST_QUERIES // 2}
    names = [name for name in reference.monitors if len(inputs[name]) >= least.get(name, 1)]
    seen = [_look(reference.monitors[name], inputs[name]) for name in names]
    limits = holm_limits([p for _, p in seen], 1 / reference.expected_run)
    return tuple(
        MonitorResult(
            name,
            effect,
            EFFECT_LIMITS[name],
            p,
            limit,
            effect >= EFFECT_LIMITS[name] and p <= limit,
        )
        for name, (effect, p), limit in zip(names, seen, limits, strict=True)
    )


def alarm_level(
    findings: Sequence[MonitorResult],
    recall_then: RecallCount | None,
    recall_now: RecallCount | None,
) -> str:
    """How loudly to speak of a window: "none", "ticket" for an alarm, "page" when recall has fallen too.

    Recall has fallen when it is at least three points lower and a one-sided Fisher test gives that less than one chance in a
    hundred. Unknown recall makes no page.
    """
    if not any(finding.alarm for finding in findings):
        return "none"
    if (
        recall_then is None
        or recall_now is None
        or not recall_then.queries
        or not recall_now.queries
    ):
        return "ticket"
    lost = recall_then.hits / recall_then.queries - recall_now.hits / recall_now.queries
    table = [[one.hits, one.queries - one.hits] for one in (recall_now, recall_then)]
    return (
        "page"
        if lost >= RECALL_DROP and fisher_exact(table, alternative="less").pvalue < RECALL_CHANCE
        else "ticket"
    )


def code_shares(
    reference: DriftReference, window: ArrivalWindow
) -> dict[str, dict[str, list[float]]]:
    """Shares of the codes of each level, `then` and `now`, for a reader's eye."""
    found = {}
    for level, count in enumerate(reference.shape.codes):
        sketch = reference.monitors[f"id{level + 1}"].sketch
        assert isinstance(sketch, CodeHistogram)
        now = np.bincount(window.codes[:, level], minlength=count) / max(1, len(window))
        found[f"id{level + 1}"] = {
            "then": (sketch.counts / sketch.size).tolist(),
            "now": now.tolist(),
        }
    return found


def under_suffix_pressure(window: ArrivalWindow, shape: IdentifierShape) -> BoolArray:
    """(n,) whether each image's primary leaf has little room left."""
    return np.asarray(window.leaf_loads >= PRESSED * shape.suffixes)


def _look(watched: CalibratedSketch, rows: npt.NDArray[Any]) -> tuple[float, float]:
    """Effect and chance of one monitor's rows."""
    sketch, null = watched.sketch, watched.null
    squared = sketch.distance(rows)
    excess = squared - null.mean / effective(len(rows), sketch.size)
    return sqrt(max(0.0, excess)), null.p(statistic(squared, len(rows), sketch.size))


def _inputs(window: ArrivalWindow, shape: IdentifierShape) -> dict[str, npt.NDArray[Any]]:
    """What each monitor looks at, in the order of reports."""
    return {
        **{f"id{level + 1}": window.codes[:, level] for level in range(LEVELS)},
        "embedding": window.embeddings,
        "novelty": window.embeddings,
        "confidence": window.confidences,
        "agreement": window.agreement,
        "leaf-load": pack_all(window.codes, shape),
        "suffix-pressure": under_suffix_pressure(window, shape),
        "query-score": window.query_scores,
    }


def _sketch(name: str, rows: npt.NDArray[Any], shape: IdentifierShape, seed: int) -> Sketch:
    if name.startswith("id"):
        return CodeHistogram.of(rows, shape.codes[int(name[2:]) - 1])
    if name == "embedding":
        return MeanShift.of(rows)
    if name == "novelty":
        return Novelty.of(rows, seed)
    if name == "agreement":
        return HitShare.of(rows)
    if name == "suffix-pressure":
        return HitShare.of(rows, rising=True)
    return LeafCrowding.of(rows) if name == "leaf-load" else SortedValues.of(rows)
