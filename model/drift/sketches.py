"""Sketches: what is kept of a drift-free sample, and how far a later sample is from it.

There is one kind of sketch for each kind of input. Every distance is squared and dimensionless, so
its square root is an effect size with a name. Times the effective sample size n·K/(n+K) of a window
of n beside a reference of K it is a statistic whose spread depends on neither.

A sketch is of bounded size whatever it was made from. `replay` draws the statistic without drift:
each time a new reference and a new window from the same sample, so the uncertainty of both counts.
The fields of a sketch are the keys of its stored document (`model.drift.sketch_documents`).
"""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from model.identifiers.kmeans import kmeans_centres
from schemas.records import BoolArray, DoubleArray, FloatArray, IntArray

# (n, …) one row an image or query; its dtype is the sketch's own.
Rows = npt.NDArray[Any]

# Principal components that a shift is measured in, at most: each adds to its noise.
COMPONENTS = 64

# Places of the embedding space that count as known, at most.
LANDMARKS = 64

# Share of the reference that counts as far from every landmark.
FAR = 0.02

# Values kept of a long sample, as quantiles: steps of 0.05%, finer than a window can show.
KEPT_VALUES = 2000

# A component's least variance, as a share of the largest: rounding must not pass for a shift.
_MIN_VARIANCE = 1e-3


class Sketch(Protocol):
    """One kind of input, remembered."""

    KIND: ClassVar[str]
    """The name of the kind in stored documents."""

    MIN_NULL_SCALE: ClassVar[float]
    """Its drift-free statistic at the least, in squares of standard normals."""

    @property
    def size(self) -> int:
        """K, how many rows it was made of."""

    def distance(self, rows: Rows) -> float:
        """Squared effect size of a window's rows."""

    def replay(
        self, rows: Rows, rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """(replays,) statistics of drift-free windows of `window` rows.

        `rows` are those that the sketch was made of.
        """


def statistic(squared: float, window: int, reference: int) -> float:
    """A squared effect as a statistic that compares between windows of any size."""
    return squared * effective_size(window, reference)


def effective_size(window: int, reference: int) -> float:
    """n·K/(n+K): the rows that two samples together are worth when they are compared."""
    return window * reference / (window + reference)


@dataclass(frozen=True, slots=True, eq=False)
class CodeHistogram:
    """Counts of codes.

    Its effect is the Jensen-Shannon distance, base 2: 0 is alike, 1 is no code in common.
    """

    KIND: ClassVar[str] = "histogram"
    MIN_NULL_SCALE: ClassVar[float] = 1 / (8 * log(2))
    counts: IntArray
    """(C,)"""

    @classmethod
    def of(cls, codes: IntArray, count: int) -> "CodeHistogram":
        """Count (K,) codes below `count`."""
        return cls(np.bincount(codes, minlength=count).astype(np.int64))

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return int(self.counts.sum())

    def distance(self, rows: Rows) -> float:
        """See `Sketch`. `rows` (n,) are codes; one that the sketch does not know is an error."""
        now = np.bincount(rows, minlength=len(self.counts))
        return float(_divergence(self.counts / self.size, now / len(rows)))

    def replay(
        self, rows: Rows, rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        share = self.counts / self.size
        then = rng.multinomial(self.size, share, replays) / self.size
        now = rng.multinomial(window, share, replays) / window
        return _divergence(then, now) * effective_size(window, self.size)


@dataclass(frozen=True, slots=True, eq=False)
class SortedValues:
    """Values of K rows, sorted.

    Its effect is the Kolmogorov-Smirnov distance: the share of rows that would have to change sides
    of some value.
    """

    KIND: ClassVar[str] = "values"
    MIN_NULL_SCALE: ClassVar[float] = 0.25
    values: DoubleArray
    """(at most `KEPT_VALUES`,) ascending"""
    rows: int

    @classmethod
    def of(cls, values: FloatArray | DoubleArray) -> "SortedValues":
        """Keep (K,) values."""
        ordered = np.sort(np.asarray(values, np.float64))
        if len(ordered) > KEPT_VALUES:
            ordered = np.quantile(ordered, np.linspace(0, 1, KEPT_VALUES))
        return cls(ordered, len(values))

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return self.rows

    def distance(self, rows: Rows) -> float:
        """See `Sketch`. `rows` (n,) are values."""
        # Both distributions are steps, so their largest difference lies at one of the values.
        steps = np.concatenate([self.values, np.asarray(rows, np.float64)])
        then = np.searchsorted(self.values, steps, side="right") / len(self.values)
        now = np.searchsorted(np.sort(rows), steps, side="right") / len(rows)
        return float(np.abs(then - now).max() ** 2)

    def replay(
        self, rows: Rows, rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        _, ties = np.unique(self.values, return_counts=True)
        share = ties / len(self.values)
        then = rng.multinomial(self.size, share, replays).cumsum(1) / self.size
        now = rng.multinomial(window, share, replays).cumsum(1) / window
        squared = np.abs(then - now).max(1) ** 2
        return np.asarray(squared * effective_size(window, self.size))


@dataclass(frozen=True, slots=True, eq=False)
class HitShare:
    """`hits` of `rows`.

    Its effect is Cohen's h, the difference of two shares on the arcsine scale, where the variance
    of a share does not depend on the share. With `rising`, a fall has no effect.
    """

    KIND: ClassVar[str] = "share"
    MIN_NULL_SCALE: ClassVar[float] = 1.0
    hits: int
    rows: int
    rising: bool = False

    @classmethod
    def of(cls, hits: BoolArray, *, rising: bool = False) -> "HitShare":
        """Count (K,) booleans."""
        return cls(int(hits.sum()), len(hits), rising)

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return self.rows

    def distance(self, rows: Rows) -> float:
        """See `Sketch`. `rows` (n,) are booleans."""
        return float(self._squared_h(self.hits / self.rows, np.asarray(rows.mean())))

    def replay(
        self, rows: Rows, rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        share = self.hits / self.rows
        then = rng.binomial(self.rows, share, replays) / self.rows
        now = rng.binomial(window, share, replays) / window
        return self._squared_h(then, now) * effective_size(window, self.size)

    def _squared_h(self, then: float | DoubleArray, now: DoubleArray) -> DoubleArray:
        difference = 2 * np.arcsin(np.sqrt(now)) - 2 * np.arcsin(np.sqrt(then))
        if self.rising:
            difference = np.maximum(difference, 0)
        return np.asarray(difference**2)


@dataclass(frozen=True, slots=True, eq=False)
class MeanShift:
    """The mean of `rows` embeddings, and the directions that they vary in.

    Its effect is the distance of two means in standard deviations (Cohen's d in many dimensions,
    Mahalanobis 1936).
    """

    KIND: ClassVar[str] = "shift"
    MIN_NULL_SCALE: ClassVar[float] = 1.0
    mean: FloatArray
    """(D,)"""
    directions: FloatArray
    """(D, C) principal components, scaled so that each has variance 1"""
    rows: int

    @classmethod
    def of(cls, embeddings: FloatArray) -> "MeanShift":
        """Measure (K, D) embeddings."""
        mean = embeddings.mean(0)
        _, singular, axes = np.linalg.svd(embeddings - mean, full_matrices=False)
        largest = max(float(singular[0]) ** 2 / len(embeddings), 1e-12)
        variance = np.maximum(singular**2 / len(embeddings), _MIN_VARIANCE * largest)
        directions = (axes[:COMPONENTS] / np.sqrt(variance[:COMPONENTS])[:, None]).T
        return cls(mean.astype(np.float32), directions.astype(np.float32), len(embeddings))

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return self.rows

    def distance(self, rows: Rows) -> float:
        """See `Sketch`. `rows` (n, D) are embeddings."""
        difference = (rows.mean(0) - self.mean) @ self.directions
        return float(difference @ difference)

    def replay(
        self, rows: Rows, rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        projected = (rows - self.mean) @ self.directions
        # A bootstrap: how often each row is drawn, times the rows, is the sum of the drawn ones.
        even = np.full(self.size, 1 / self.size)
        then = rng.multinomial(self.size, even, replays) @ projected / self.size
        now = rng.multinomial(window, even, replays) @ projected / window
        squared = ((then - now) ** 2).sum(1)
        return np.asarray(squared * effective_size(window, self.size), np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Novelty:
    """The share of rows that are far from every landmark.

    Landmarks are the cluster centres of one half of the reference; far is what `FAR` of the other
    half is. Halves, because rows are nearer to centres that were fitted to them. Its effect is
    Cohen's h of that share.
    """

    KIND: ClassVar[str] = "novelty"
    MIN_NULL_SCALE: ClassVar[float] = 1.0
    landmarks: FloatArray
    """(L, D)"""
    distance_limit: float
    """Distance to the nearest landmark beyond which a row is far."""
    share: HitShare

    @classmethod
    def of(cls, embeddings: FloatArray, seed: int) -> "Novelty":
        """Measure (K, D) embeddings, at least two."""
        order = np.random.default_rng(seed).permutation(len(embeddings))
        fitted_half = embeddings[order[::2]]
        measured_half = embeddings[order[1::2]]
        clusters = min(LANDMARKS, len(fitted_half))
        centres = kmeans_centres(fitted_half, clusters, starts=1, seed=seed)
        landmarks = centres.astype(np.float32)
        distances = _to_nearest(measured_half, landmarks)
        limit = float(np.quantile(distances, 1 - FAR))
        return cls(landmarks, limit, HitShare.of(distances > limit, rising=True))

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return self.share.size

    def distance(self, rows: Rows) -> float:
        """See `Sketch`. `rows` (n, D) are embeddings."""
        return self.share.distance(self.to_landmarks(rows) > self.distance_limit)

    def to_landmarks(self, embeddings: FloatArray) -> DoubleArray:
        """(n,) distances of (n, D) embeddings to their nearest landmark."""
        return _to_nearest(embeddings, self.landmarks)

    def replay(
        self, rows: Rows, rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        return self.share.replay(rows, rng, window, replays)


@dataclass(frozen=True, slots=True, eq=False)
class LeafCrowding:
    """Counts of the occupied leaves.

    Its effect is |ln| of how many times likelier two images of one window share a leaf than before.
    Loads of the whole index grow with it, drift or not; that chance does not.
    """

    KIND: ClassVar[str] = "crowding"
    MIN_NULL_SCALE: ClassVar[float] = 0.01
    counts: IntArray
    """(L,)"""

    @classmethod
    def of(cls, leaves: IntArray) -> "LeafCrowding":
        """Count (K,) leaves."""
        _, counts = np.unique(leaves, return_counts=True)
        return cls(counts.astype(np.int64))

    @property
    def size(self) -> int:
        """See `Sketch`."""
        return int(self.counts.sum())

    def distance(self, rows: Rows) -> float:
        """See `Sketch`. `rows` (n,) are leaves."""
        _, now = np.unique(rows, return_counts=True)
        return float((_log_sharing(now) - _log_sharing(self.counts)) ** 2)

    def replay(
        self, rows: Rows, rng: np.random.Generator, window: int, replays: int
    ) -> DoubleArray:
        """See `Sketch`."""
        share = self.counts / self.size
        then = _log_sharing(rng.multinomial(self.size, share, replays))
        now = _log_sharing(rng.multinomial(window, share, replays))
        # Drawn with replacement, an image shares its leaf with itself, in the smaller sample more
        # often. So each side is compared with its own mean.
        difference = (now - now.mean()) - (then - then.mean())
        return np.asarray(difference**2 * effective_size(window, self.size))


def _divergence(then: DoubleArray, now: DoubleArray) -> DoubleArray:
    """Jensen-Shannon divergence of shares (…, C), base 2: the square of the distance."""
    middle = (then + now) / 2
    total = _relative_entropy(then, middle) + _relative_entropy(now, middle)
    # Rounding may leave the divergence of equal shares a hair below 0.
    return np.asarray(np.maximum(total.sum(-1) / 2, 0.0))


def _relative_entropy(shares: DoubleArray, middle: DoubleArray) -> DoubleArray:
    """Terms of the Kullback-Leibler divergence, bits: 0 where the share is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(shares > 0, shares * np.log2(shares / middle), 0.0)


def _to_nearest(rows: FloatArray, landmarks: FloatArray) -> DoubleArray:
    """(n,) Euclidean distances of (n, D) rows to the nearest of (L, D) landmarks."""
    row_lengths = (rows**2).sum(1)[:, None]
    landmark_lengths = (landmarks**2).sum(1)[None]
    squared = row_lengths - 2 * rows @ landmarks.T + landmark_lengths
    return np.sqrt(np.maximum(squared.min(1), 0)).astype(np.float64)


def _log_sharing(counts: IntArray) -> DoubleArray:
    """ln of the chance that two images share a leaf, of (…, L) counts, unbiased.

    Half a pair is added, so that a sample in which no two images meet has a logarithm too.
    """
    rows = counts.sum(-1)
    pairs_together = (counts * (counts - 1)).sum(-1)
    pairs = rows * (rows - 1)
    return np.asarray(np.log((pairs_together + 1) / (pairs + 1)))
