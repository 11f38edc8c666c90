"""Sketches: what is kept of a drift-free sample, one kind for each kind of input, and how far a later sample is from it.

Every distance is squared and dimensionless, so that its square root is an effect size with a name. Times the effective sample
size n·K/(n+K) of a window of n beside a reference of K it is a statistic whose spread does not depend on either.
A sketch is of bounded size whatever it was made from, and `replay` draws that statistic without drift: a new reference and a
new window from the same sample, so that the uncertainty of both counts.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import log
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from model.drift.calibration import DoubleArray
from schemas.records import BoolArray, FloatArray, IntArray

COMPONENTS = 64
"""Principal components that a shift is measured in, at most."""

LANDMARKS = 64
FAR = 0.02
"""Share of the reference that counts as far from every landmark."""

KEPT_VALUES = 2000
_LEAST_VARIANCE = 1e-3
"""Components count as having at least this share of the largest one's variance: rounding must not pass for a shift."""


class Sketch(Protocol):
    """One kind of input, remembered. Arrays it takes have one row an image (or query)."""

    KIND: ClassVar[str]
    LEAST: ClassVar[float]
    """What its statistic is, without drift and at the least, in squared normals of variance 1."""

    @property
    def size(self) -> int:
        """K, how many rows it was made of."""

    def distance(self, rows: npt.NDArray[Any]) -> float:
        """Squared effect size of a window's rows."""

    def replay(
        self, rows: npt.NDArray[Any], rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """(replays,) statistics of drift-free windows of `window` rows; `rows` are those that the sketch was made of."""


def statistic(squared: float, window: int, reference: int) -> float:
    """A squared effect as a statistic of windows of any size."""
    return squared * effective(window, reference)


def effective(window: int, reference: int) -> float:
    """n·K/(n+K): the rows that two samples together are worth when they are compared."""
    return window * reference / (window + reference)


@dataclass(frozen=True, slots=True, eq=False)
class CodeHistogram:
    """Counts (C,) int64 of codes. Its effect is the Jensen-Shannon distance, base 2: 0 is alike, 1 is no code in common."""

    KIND: ClassVar[str] = "histogram"
    LEAST: ClassVar[float] = 1 / (8 * log(2))
    counts: IntArray

    @classmethod
    def of(cls, codes: IntArray, count: int) -> "CodeHistogram":
        """From (K,) codes below `count`."""
        return cls(np.bincount(codes, minlength=count).astype(np.int64))

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return int(self.counts.sum())

    def distance(self, rows: npt.NDArray[Any]) -> float:
        """See `Sketch`. Codes beyond the known ones are a mistake of the caller."""
        now = np.bincount(rows, minlength=len(self.counts))
        return float(_divergence(self.counts / self.size, now / len(rows)))

    def replay(
        self, rows: npt.NDArray[Any], rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        share = self.counts / self.size
        then = rng.multinomial(self.size, share, replays) / self.size
        now = rng.multinomial(window, share, replays) / window
        return _divergence(then, now) * effective(window, self.size)


@dataclass(frozen=True, slots=True, eq=False)
class SortedValues:
    """Sorted values (at most `KEPT_VALUES`) of K rows. Its effect is the Kolmogorov-Smirnov distance: the share of rows that
    would have to change sides of some value."""

    KIND: ClassVar[str] = "values"
    LEAST: ClassVar[float] = 0.25
    values: DoubleArray
    rows: int

    @classmethod
    def of(cls, values: FloatArray | DoubleArray) -> "SortedValues":
        """From (K,) values."""
        ordered = np.sort(np.asarray(values, np.float64))
        if len(ordered) > KEPT_VALUES:
            ordered = np.quantile(ordered, np.linspace(0, 1, KEPT_VALUES))
        return cls(ordered, len(values))

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return self.rows

    def distance(self, rows: npt.NDArray[Any]) -> float:
        """See `Sketch`."""
        at = np.concatenate([self.values, np.asarray(rows, np.float64)])
        then = np.searchsorted(self.values, at, side="right") / len(self.values)
        now = np.searchsorted(np.sort(rows), at, side="right") / len(rows)
        return float(np.abs(then - now).max() ** 2)

    def replay(
        self, rows: npt.NDArray[Any], rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        _, ties = np.unique(self.values, return_counts=True)
        share = ties / len(self.values)
        then = rng.multinomial(self.size, share, replays).cumsum(1) / self.size
        now = rng.multinomial(window, share, replays).cumsum(1) / window
        return np.asarray(np.abs(then - now).max(1) ** 2 * effective(window, self.size))


@dataclass(frozen=True, slots=True, eq=False)
class HitShare:
    """`hits` of `rows`. Its effect is Cohen's h, the difference of two shares on the arcsine scale; `rising` counts a rise only."""

    KIND: ClassVar[str] = "share"
    LEAST: ClassVar[float] = 1.0
    hits: int
    rows: int
    rising: bool = False

    @classmethod
    def of(cls, hits: BoolArray, *, rising: bool = False) -> "HitShare":
        """From (K,) booleans."""
        return cls(int(hits.sum()), len(hits), rising)

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return self.rows

    def distance(self, rows: npt.NDArray[Any]) -> float:
        """See `Sketch`."""
        return float(self._squared(self.hits / self.rows, np.asarray(rows.mean())))

    def replay(
        self, rows: npt.NDArray[Any], rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        share = self.hits / self.rows
        then, now = (
            rng.binomial(self.rows, share, replays) / self.rows,
            rng.binomial(window, share, replays) / window,
        )
        return self._squared(then, now) * effective(window, self.size)

    def _squared(self, then: float | DoubleArray, now: DoubleArray) -> DoubleArray:
        apart = 2 * np.arcsin(np.sqrt(now)) - 2 * np.arcsin(np.sqrt(then))
        return np.asarray((np.maximum(apart, 0) if self.rising else apart) ** 2)


@dataclass(frozen=True, slots=True, eq=False)
class MeanShift:
    """Mean (D,) of `rows` rows, and directions (D, C) that give each principal component variance 1.

    Its effect is the distance of two means in standard deviations (Cohen's d in many dimensions, Mahalanobis 1936).
    """

    KIND: ClassVar[str] = "shift"
    LEAST: ClassVar[float] = 1.0
    mean: FloatArray
    directions: FloatArray
    rows: int

    @classmethod
    def of(cls, embeddings: FloatArray) -> "MeanShift":
        """From (K, D) embeddings."""
        mean = embeddings.mean(0)
        _, singular, axes = np.linalg.svd(embeddings - mean, full_matrices=False)
        variance = np.maximum(
            singular**2 / len(embeddings),
            _LEAST_VARIANCE * max(float(singular[0]) ** 2 / len(embeddings), 1e-12),
        )
        directions = (axes[:COMPONENTS] / np.sqrt(variance[:COMPONENTS])[:, None]).T
        return cls(mean.astype(np.float32), directions.astype(np.float32), len(embeddings))

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return self.rows

    def distance(self, rows: npt.NDArray[Any]) -> float:
        """See `Sketch`."""
        apart = (rows.mean(0) - self.mean) @ self.directions
        return float(apart @ apart)

    def replay(
        self, rows: npt.NDArray[Any], rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        projected, even = (rows - self.mean) @ self.directions, np.full(self.size, 1 / self.size)
        then = rng.multinomial(self.size, even, replays) @ projected / self.size
        now = rng.multinomial(window, even, replays) @ projected / window
        return np.asarray(((then - now) ** 2).sum(1) * effective(window, self.size), np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Novelty:
    """Landmarks (L, D), the middles of one half of the reference, and the distance to the nearest of them that `FAR` of the
    other half exceed. Its effect is Cohen's h of the share beyond it. Halves, because rows are nearer to their own middles."""

    KIND: ClassVar[str] = "novelty"
    LEAST: ClassVar[float] = 1.0
    landmarks: FloatArray
    distance_limit: float
    share: HitShare

    @classmethod
    def of(cls, embeddings: FloatArray, seed: int) -> "Novelty":
        """From (K, D) embeddings, at least two."""
        order = np.random.default_rng(seed).permutation(len(embeddings))
        one, other = embeddings[order[::2]], embeddings[order[1::2]]
        fitted = KMeans(min(LANDMARKS, len(one)), n_init=1, random_state=seed).fit(one)
        landmarks = fitted.cluster_centers_.astype(np.float32)
        away = _to_nearest(other, landmarks)
        limit = float(np.quantile(away, 1 - FAR))
        return cls(landmarks, limit, HitShare.of(away > limit, rising=True))

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return self.share.size

    def distance(self, rows: npt.NDArray[Any]) -> float:
        """See `Sketch`."""
        return self.share.distance(self.away(rows) > self.distance_limit)

    def away(self, embeddings: FloatArray) -> DoubleArray:
        """(n,) distances of (n, D) embeddings to their nearest landmark."""
        return _to_nearest(embeddings, self.landmarks)

    def replay(
        self, rows: npt.NDArray[Any], rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        return self.share.replay(rows, rng, window, replays)


@dataclass(frozen=True, slots=True, eq=False)
class LeafCrowding:
    """Counts (L,) of the occupied leaves. Its effect is |ln| of how many times likelier two images share a leaf than before.

    Loads of the whole index grow with it, drift or not; the chance that two images of one window meet does not.
    """

    KIND: ClassVar[str] = "crowding"
    LEAST: ClassVar[float] = 0.01
    counts: IntArray

    @classmethod
    def of(cls, leaves: IntArray) -> "LeafCrowding":
        """From (K,) leaves."""
        return cls(np.unique(leaves, return_counts=True)[1].astype(np.int64))

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return int(self.counts.sum())

    def distance(self, rows: npt.NDArray[Any]) -> float:
        """See `Sketch`."""
        now = np.unique(rows, return_counts=True)[1]
        return float((_log_meeting(now) - _log_meeting(self.counts)) ** 2)

    def replay(
        self, rows: npt.NDArray[Any], rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`. Drawn with replacement, images meet themselves: each side is compared with its own mean."""
        share = self.counts / self.size
        then = _log_meeting(rng.multinomial(self.size, share, replays))
        now = _log_meeting(rng.multinomial(window, share, replays))
        return np.asarray(
            ((now - now.mean()) - (then - then.mean())) ** 2 * effective(window, self.size)
        )


KINDS: dict[str, Callable[..., Sketch]] = {
    kind.KIND: kind
    for kind in (CodeHistogram, SortedValues, HitShare, MeanShift, Novelty, LeafCrowding)
}


def stored(sketch: Any) -> dict[str, Any]:
    """A sketch as plain values for JSON; arrays as base64 of their little-endian bytes."""
    return {"kind": sketch.KIND} | {
        field.name: _plain(getattr(sketch, field.name)) for field in fields(sketch)
    }


def restored(document: dict[str, Any]) -> Sketch:
    """The inverse of `stored`."""
    return KINDS[document["kind"]](
        **{name: _live(value) for name, value in document.items() if name != "kind"}
    )


def _plain(value: Any) -> Any:
    if isinstance(value, HitShare):
        return stored(value)
    if not isinstance(value, np.ndarray):
        return value
    array = value.astype(value.dtype.newbyteorder("<"))
    return {
        "type": array.dtype.str,
        "shape": list(array.shape),
        "bytes": base64.b64encode(array.tobytes()).decode("ascii"),
    }


def _live(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "kind" in value:
        return restored(value)
    return np.frombuffer(base64.b64decode(value["bytes"]), np.dtype(value["type"])).reshape(
        value["shape"]
    )


def _divergence(then: DoubleArray, now: DoubleArray) -> DoubleArray:
    """Jensen-Shannon divergence, base 2, over the last axis: the square of the distance of the same name."""
    middle = (then + now) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(one > 0, one * np.log2(one / middle), 0.0) for one in (then, now)]
    return np.asarray(np.maximum((parts[0] + parts[1]).sum(-1) / 2, 0.0))


def _to_nearest(rows: FloatArray, landmarks: FloatArray) -> DoubleArray:
    squared = (rows**2).sum(1)[:, None] - 2 * rows @ landmarks.T + (landmarks**2).sum(1)[None]
    return np.sqrt(np.maximum(squared.min(1), 0)).astype(np.float64)


def _log_meeting(counts: IntArray) -> DoubleArray:
    """ln of the chance that two of the images share a leaf, unbiased, with half a pair added: no pair at all has a logarithm too."""
    rows = counts.sum(-1)
    return np.asarray(np.log(((counts * (counts - 1)).sum(-1) + 1) / (rows * (rows - 1) + 1)))
