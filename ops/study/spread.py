"""The spread of a figure over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Decimals in `summary.json`: finer than any difference between seeds.
_DECIMALS = 4


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over seeds, rounded."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one value for each seed."""
        mean = round(float(np.mean(values)), _DECIMALS)
        return cls(mean, round(float(np.std(values)), _DECIMALS))

    def to_json(self) -> dict[str, float]:
        """One figure of `summary.json`."""
        return {"mean": self.mean, "sd": self.sd}
