"""The relevance calibration of a generation: what turns a cosine into a relevance from 0 to 1."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

# Of a text that says nothing of any picture an image is less relevant than this, as a rule; of one
# that was written for it, more.
BORDER = 0.5


@dataclass(frozen=True, slots=True)
class RelevanceCalibration:
    """relevance = 1 / (1 + exp(-(slope · cosine + offset))); see `model.training.relevance`."""

    slope: float
    """Above 0: of one query, the more similar image is never the less relevant one."""
    offset: float
    pairs: int
    """Held-out texts with their images that it was fitted to and measured on."""
    nonsense: int
    """Texts of nonsense, likewise."""
    known_above: float
    """Share of pairs, not fitted to, with a relevance of at least `BORDER`."""
    nonsense_below: float
    """Share of nonsense, not fitted to, whose best image is below `BORDER`."""

    def to_json(self) -> dict[str, float]:
        """The stored form."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> "RelevanceCalibration | None":
        """Read what `to_json` wrote; None where there is none, or none that makes sense."""
        if not isinstance(document, Mapping):
            return None
        numbers: Mapping[str, Any] = document
        try:
            read = cls(
                slope=float(numbers["slope"]),
                offset=float(numbers["offset"]),
                pairs=int(numbers["pairs"]),
                nonsense=int(numbers["nonsense"]),
                known_above=float(numbers["known_above"]),
                nonsense_below=float(numbers["nonsense_below"]),
            )
        except (KeyError, TypeError, ValueError):
            return None
        return read if isfinite(read.offset) and 0 < read.slope < float("inf") else None
