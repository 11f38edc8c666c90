"""Rows: what every benchmark reports."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of ours beside a peer's; `ratio` is ours divided by the peer's, `n` what was measured."""

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    n: int

    @property
    def ratio(self) -> float:
        """Ours to the peer's."""
        return self.ours / self.peer if self.peer else float("inf")


def document(rows: Sequence[Row], **more: Any) -> dict[str, Any]:
    """The JSON document of `sigma bench`."""
    shown = [
        asdict(row)
        | {"ours": _short(row.ours), "peer": _short(row.peer), "ratio": _short(row.ratio)}
        for row in rows
    ]
    return {"rows": shown, **more}


def table(rows: Sequence[Row]) -> str:
    """The same for people."""
    lines = [f"{'':<44} {'ours':>10} {'peer':>10} {'ratio':>7}  unit (peer)"]
    lines += [
        f"{r.name:<44} {r.ours:>10.4g} {r.peer:>10.4g} {r.ratio:>7.2f}  {r.unit} ({r.peer_name}, n={r.n:,})"
        for r in rows
    ]
    return "\n".join(lines)


def _short(value: float) -> float | None:
    """Five digits; nothing where there is no number, which JSON has no word for."""
    return float(f"{value:.5g}") if isfinite(value) else None
