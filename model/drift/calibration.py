"""Calibration: how large a statistic gets without drift, learned from replays, and how unlikely a larger one is."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

DoubleArray = npt.NDArray[np.float64]

TAIL = 0.05
"""Share of the replays that the tail is fitted to; replays beyond it are counted, not fitted."""

_GRID = np.linspace(0.0, 1.0 - TAIL, 20)
"""Shares of the replays whose quantiles are kept."""

_ONE_DEGREE = (float(chi2.isf(TAIL, 1)), 2.0)
"""Edge and scale of a squared normal's tail."""


@dataclass(frozen=True, slots=True)
class NullDistribution:
    """A statistic's distribution without drift: its `mean`, quantiles of its `body`, and an exponential tail beyond `edge`.

    The statistics here are squared distances times the effective sample size, sums of squares of nearly normal terms, whose
    tails fall at least as fast as an exponential's: so a thousand replays can speak of one chance in a million, and err
    towards silence.
    """

    mean: float
    body: tuple[float, ...]
    edge: float
    scale: float

    @classmethod
    def of(cls, replays: DoubleArray, least: float) -> "NullDistribution":
        """From (R,) statistics of drift-free replays.

        No tail is taken for shorter than that of `least` times one squared normal: replays of a share that was 0 or 1, or of a
        single code, are all alike.
        """
        edge = float(np.quantile(replays, 1 - TAIL))
        beyond = replays[replays > edge] - edge
        scale = float(beyond.mean()) if len(beyond) else 0.0
        body = tuple(float(at) for at in np.quantile(replays, _GRID))
        return cls(
            float(replays.mean()),
            body,
            max(edge, least * _ONE_DEGREE[0]),
            max(scale, least * _ONE_DEGREE[1]),
        )

    def p(self, statistic: float) -> float:
        """The chance that a drift-free window shows this much or more."""
        if statistic > self.edge:
            return float(TAIL * np.exp(-(statistic - self.edge) / self.scale))
        known, below = np.array([*self.body, self.edge]), np.array([*_GRID, 1.0 - TAIL])
        above = int(np.searchsorted(known, statistic, side="left"))
        if above == 0:
            return 1.0
        along = (statistic - known[above - 1]) / (known[above] - known[above - 1])
        return float(1.0 - below[above - 1] - along * (below[above] - below[above - 1]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"body": list(self.body)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "NullDistribution":
        """The inverse of `to_dict`."""
        return cls(stored["mean"], tuple(stored["body"]), stored["edge"], stored["scale"])


def holm_limits(chances: list[float], family: float) -> list[float]:
    """The limit that each chance has to stay under so that any false alarm among all has chance `family` (Holm 1979).

    The smallest is held against family/m, the next against family/(m-1), and so on until one fails: from there on all fail,
    which a limit of the failing step says.
    """
    limits = [0.0] * len(chances)
    failed = None
    for done, at in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        limit = family / (len(chances) - done) if failed is None else failed
        if failed is None and chances[at] > limit:
            failed = limit
        limits[at] = limit
    return limits
