"""Calibration: how large a statistic gets without drift, and how unlikely a larger one is."""

from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np

from schemas.records import DoubleArray, JsonObject

# Share of the replays that the tail is fitted to: 100 of 2,000 are enough for one scale.
TAIL = 0.05

# Shares of the replays whose quantiles are kept.
_GRID = np.linspace(0.0, 1.0 - TAIL, 20)

# Where the tail of one squared standard normal begins.
_NORMAL_EDGE = NormalDist().inv_cdf(1 - TAIL / 2) ** 2

# How slowly that tail falls: like exp(-x / 2), as the normal's density does.
_NORMAL_SCALE = 2.0


@dataclass(frozen=True, slots=True)
class NullDistribution:
    """A statistic's distribution without drift: measured in its body, exponential in its tail.

    The statistics here are squared distances times the effective sample size: sums of squares of
    nearly normal terms, whose tails fall at least as fast as an exponential's. So a thousand
    replays can speak of one chance in a million, and err towards silence.
    """

    mean: float
    body: tuple[float, ...]
    """Quantiles at the shares of `_GRID`."""
    edge: float
    """Where the tail begins: the quantile at 1 - `TAIL`."""
    scale: float
    """The tail's mean excess over `edge`."""

    @classmethod
    def of(cls, replays: DoubleArray, least: float) -> "NullDistribution":
        """Fit (R,) statistics of drift-free replays.

        No tail is taken for shorter than that of `least` times one squared normal: replays of a
        share that was 0 or 1, or of a single code, are all alike, and anything else would alarm.
        """
        edge = float(np.quantile(replays, 1 - TAIL))
        beyond = replays[replays > edge] - edge
        scale = float(beyond.mean()) if len(beyond) else 0.0
        quantiles = np.quantile(replays, _GRID)
        return cls(
            mean=float(replays.mean()),
            body=tuple(quantiles.tolist()),
            edge=max(edge, least * _NORMAL_EDGE),
            scale=max(scale, least * _NORMAL_SCALE),
        )

    def p_value(self, statistic: float) -> float:
        """The chance that a drift-free window shows this much or more."""
        if statistic > self.edge:
            return float(TAIL * np.exp(-(statistic - self.edge) / self.scale))
        known = np.array([*self.body, self.edge])
        share_below = np.array([*_GRID, 1.0 - TAIL])
        above = int(np.searchsorted(known, statistic, side="left"))
        if above == 0:
            return 1.0
        below = above - 1
        along = (statistic - known[below]) / (known[above] - known[below])
        step = share_below[above] - share_below[below]
        return float(1.0 - share_below[below] - along * step)

    def to_dict(self) -> JsonObject:
        """Plain values for JSON."""
        return asdict(self) | {"body": list(self.body)}

    @classmethod
    def from_dict(cls, stored: JsonObject) -> "NullDistribution":
        """The inverse of `to_dict`."""
        return cls(stored["mean"], tuple(stored["body"]), stored["edge"], stored["scale"])


def holm_limits(p_values: list[float], family: float) -> list[float]:
    """The limit of each p-value so that any false alarm among all has chance `family` (Holm 1979).

    The smallest of m is compared with family/m, the next with family/(m-1), and so on until one is
    larger than its limit. From there on all fail, so all get the limit of the failing step.
    """
    limits = [0.0] * len(p_values)
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    failed_limit: float | None = None
    for rank, place in enumerate(ascending):
        if failed_limit is not None:
            limits[place] = failed_limit
            continue
        limit = family / (len(p_values) - rank)
        limits[place] = limit
        if p_values[place] > limit:
            failed_limit = limit
    return limits
