"""Comparisons: the figures of most benchmarks, each beside the same figure of a peer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from schemas.records import JsonObject


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of ours beside a peer's. The field names are the keys of the JSON document."""

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    n: int
    """How many things were measured, such as queries, images or windows."""

    @property
    def ratio(self) -> float:
        """Ours divided by the peer's; infinite where the peer's is 0."""
        return self.ours / self.peer if self.peer else float("inf")


def document(comparisons: Sequence[Comparison], **more: Any) -> JsonObject:
    """Return the JSON document of a benchmark; `more` are further keys beside `rows`."""
    rows = []
    for comparison in comparisons:
        row = asdict(comparison)
        # Rounded for the document only: the ratio comes from the full figures.
        row["ours"] = _json_number(comparison.ours)
        row["peer"] = _json_number(comparison.peer)
        row["ratio"] = _json_number(comparison.ratio)
        rows.append(row)
    return {"rows": rows, **more}


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a table for people."""
    lines = [f"{'':<44} {'ours':>10} {'peer':>10} {'ratio':>7}  unit (peer)"]
    for comparison in comparisons:
        figures = f"{comparison.ours:>10.4g} {comparison.peer:>10.4g} {comparison.ratio:>7.2f}"
        note = f"{comparison.unit} ({comparison.peer_name}, n={comparison.n:,})"
        lines.append(f"{comparison.name:<44} {figures}  {note}")
    return "\n".join(lines)


def _json_number(value: float) -> float | None:
    """Five significant digits; None for infinity and NaN, which JSON cannot express."""
    return float(f"{value:.5g}") if isfinite(value) else None
