"""The load result: what clients saw in each phase, beside what the server counted and used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ops.bench.load_tally import LoadPhase, LoadTally
from schemas.records import JsonObject

# Share of a phase at its begin in which memory may grow: connections and caches are made.
_SETTLING_SHARE = 0.2

_MIB = 2**20

# Columns of the table, each with its width.
_COLUMNS = {
    "phase": 22,
    "sent/s": 8,
    "answered/s": 11,
    "p50 ms": 8,
    "p99 ms": 8,
    "refused": 8,
    "p50 ms ": 8,
    "p99 ms ": 8,
    "failed": 7,
    "MiB": 6,
    "MiB/min": 8,
}


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Memory of the server's process at one moment."""

    at_s: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """One phase."""

    phase: LoadPhase
    tally: LoadTally
    counted: Mapping[str, int]
    """Answers by HTTP status, as the server counted them."""
    memory: Sequence[MemorySample]
    server_cpu_s: float
    answers_afterwards: bool

    @property
    def agrees(self) -> bool:
        """Whether client and server counted the same answers and refusals."""
        tally = self.tally
        told = (len(tally.answered_ms), len(tally.refused_ms))
        return told == (self.counted.get("200", 0), self.counted.get("429", 0))

    @property
    def answered_per_s(self) -> float:
        """Answers a second."""
        return len(self.tally.answered_ms) / self.tally.elapsed_s

    @property
    def growth_mib_per_min(self) -> float:
        """Slope of the server's memory after it has settled; 0 for a phase of a few samples."""
        settled = [
            sample
            for sample in self.memory
            if sample.at_s - self.memory[0].at_s >= _SETTLING_SHARE * self.phase.seconds
        ]
        if len(settled) < 2:
            return 0.0
        minutes = np.array([sample.at_s for sample in settled]) / 60
        sizes = np.array([sample.rss_bytes for sample in settled]) / _MIB
        return float(np.polyfit(minutes - minutes[0], sizes, 1)[0])

    def to_json(self) -> JsonObject:
        """Return the JSON document."""
        tally = self.tally
        return {
            **self.phase.to_json(),
            "clients": tally.clients,
            "begun": tally.begun,
            "answered": len(tally.answered_ms),
            "refused": len(tally.refused_ms),
            "failures": dict(tally.failures),
            "answered_per_s": round(self.answered_per_s, 1),
            "answered_ms": _percentiles(tally.answered_ms),
            "refused_ms": _percentiles(tally.refused_ms),
            "late_ms": _percentiles(tally.late_ms),
            "server_counted": dict(self.counted),
            "server_agrees": self.agrees,
            "server_cores": round(self.server_cpu_s / tally.elapsed_s, 2),
            "client_cores": round(tally.cpu_s / tally.elapsed_s, 2),
            "rss_mib": [round(sample.rss_bytes / _MIB, 1) for sample in self.memory],
            "rss_growth_mib_per_min": round(self.growth_mib_per_min, 2),
            "answers_afterwards": self.answers_afterwards,
        }

    def row(self) -> Sequence[str]:
        """Return the cells of the table."""
        tally = self.tally
        answered, refused = _percentiles(tally.answered_ms), _percentiles(tally.refused_ms)
        return (
            self.phase.name,
            f"{tally.begun / tally.elapsed_s:,.0f}",
            f"{self.answered_per_s:,.0f}",
            *_cells(answered),
            f"{len(tally.refused_ms) / max(1, tally.begun):.1%}",
            *_cells(refused),
            f"{tally.failed:,}",
            f"{self.memory[-1].rss_bytes / _MIB:,.0f}" if self.memory else "-",
            f"{self.growth_mib_per_min:+.1f}",
        )


@dataclass(frozen=True, slots=True)
class LoadBenchResult:
    """All phases."""

    phases: Sequence[PhaseResult]
    images: int
    """In the index."""
    cores: int
    seed: int

    def to_json(self) -> JsonObject:
        """Return the JSON document."""
        return {
            "images": self.images,
            "cores": self.cores,
            "seed": self.seed,
            "phases": [phase.to_json() for phase in self.phases],
        }

    def table(self) -> str:
        """Return the figures for people."""
        lines = [_line(list(_COLUMNS))]
        for phase in self.phases:
            lines.append(_line(phase.row()))
            if phase.tally.clients < phase.phase.clients:
                lines.append(f"  {phase.tally.clients:,} clients: no more open files are allowed")
        dead = [result.phase.name for result in self.phases if not result.answers_afterwards]
        lines.append(f"no answer after: {', '.join(dead)}" if dead else "alive after each phase")
        return "\n".join(lines)


def _percentiles(values: Sequence[float]) -> JsonObject:
    """Median, 99th percentile and the largest; empty without values."""
    if not values:
        return {}
    p50, p99, largest = np.percentile(values, [50, 99, 100]).tolist()
    return {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(largest, 1)}


def _cells(percentiles: JsonObject) -> tuple[str, str]:
    if not percentiles:
        return "-", "-"
    return f"{percentiles['p50']:,.0f}", f"{percentiles['p99']:,.0f}"


def _line(cells: Sequence[str]) -> str:
    first, *others = cells
    widths = list(_COLUMNS.values())
    aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
    return first.ljust(widths[0]) + " ".join(aligned)
