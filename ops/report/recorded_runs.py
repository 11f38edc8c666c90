"""What the runs of `recall-probe` and `drift-report` recorded, with their times.

A run whose figures cannot be understood is left out, so that an old or damaged row never fails a
report.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from model.retrieval.recall import wilson
from schemas.job_results import (
    RECALL_CUTOFFS,
    CodeShares,
    CohortRecall,
    DriftReportResult,
    RecallProbeResult,
)
from workers.repository.job_runs import JobRun

# Cohorts of images younger than a day: they show first when new images are hard to find.
YOUNG_COHORTS = ("hour", "day")


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """One run of `recall-probe` that asked something."""

    at: datetime
    result: RecallProbeResult

    @property
    def generation(self) -> int:
        """The generation that was live."""
        return self.result.generation

    def to_dict(self) -> dict[str, object]:
        """The JSON shape."""
        cohorts = {}
        for name, recall in self.result.cohorts.items():
            cohorts[name] = recall_document(recall)
        return {
            "at": self.at.isoformat(),
            "generation": self.generation,
            "queries": self.result.queries,
            "cohorts": cohorts,
        }


@dataclass(frozen=True, slots=True)
class DriftCheck:
    """One run of `drift-report` that compared a window of arrivals with the reference."""

    at: datetime
    result: DriftReportResult

    @property
    def generation(self) -> int:
        """The generation that was live."""
        return self.result.generation

    def to_dict(self) -> dict[str, object]:
        """The JSON shape; histograms are shown of the newest check only, see `documents`."""
        return {
            "at": self.at.isoformat(),
            "generation": self.generation,
            "images": self.result.images,
            "monitors": [reading.to_json() for reading in self.result.monitors],
            "leaf": self.result.leaf.to_json(),
            "suffix_pressure": self.result.suffix_pressure,
        }


def probe_run(run: JobRun) -> ProbeRun | None:
    """The probe that a run recorded; None where it asked nothing or cannot be understood."""
    result = RecallProbeResult.from_json(run.figures)
    return None if result is None else ProbeRun(run.started_at, result)


def probe_runs(runs: Iterable[JobRun]) -> list[ProbeRun]:
    """The probes that runs recorded, in their order; other runs are left out."""
    probes = map(probe_run, runs)
    return [probe for probe in probes if probe is not None]


def drift_check(run: JobRun) -> DriftCheck | None:
    """The check that a run recorded; None where too little had arrived, or it is unreadable."""
    result = DriftReportResult.from_json(run.figures)
    return None if result is None else DriftCheck(run.started_at, result)


def drift_checks(runs: Iterable[JobRun]) -> list[DriftCheck]:
    """The drift checks that runs recorded, in their order; other runs are left out."""
    checks = map(drift_check, runs)
    return [check for check in checks if check is not None]


def pooled_recall(parts: Sequence[CohortRecall]) -> CohortRecall | None:
    """Several cohorts of one probe as one, weighted by their queries; None without queries.

    Not for several probes: they ask some images again, so their queries are not independent.
    """
    queries = sum(part.queries for part in parts)
    if not queries:
        return None
    ours = {}
    exact = {}
    for cutoff in RECALL_CUTOFFS:
        ours[cutoff] = sum(part.ours[cutoff] * part.queries for part in parts) / queries
        exact[cutoff] = sum(part.exact[cutoff] * part.queries for part in parts) / queries
    return CohortRecall(queries, ours, exact)


def recall_interval(recall: CohortRecall, cutoff: str = "R@10") -> tuple[float, float]:
    """95% Wilson interval (low, high) of our recall at a cut-off.

    It is computed anew: rows record that of R@10 only, and a pooled recall records none.
    """
    return wilson(round(recall.ours[cutoff] * recall.queries), recall.queries)


def recall_document(recall: CohortRecall) -> dict[str, object]:
    """The JSON shape of a recall, with the interval of R@10."""
    low, high = recall_interval(recall)
    return {
        "queries": recall.queries,
        "ours": dict(recall.ours),
        "exact_dense": dict(recall.exact),
        "ours_R@10_95%": [round(low, 4), round(high, 4)],
    }


def histogram_document(histogram: CodeShares) -> dict[str, object]:
    """The JSON shape of a code histogram."""
    return {
        **histogram.to_json(),
        "moved": round(histogram.moved, 4),
        "codes_in_use": {
            "then": round(perplexity(histogram.then), 2),
            "now": round(perplexity(histogram.now), 2),
        },
    }


def perplexity(shares: Sequence[float]) -> float:
    """How many equally frequent codes would have the same entropy: e to the power of it.

    `shares` add up to 1.
    """
    entropy = 0.0
    for share in shares:
        # The limit of x log x at 0 is 0; the logarithm of 0 does not exist.
        if share > 0:
            entropy -= share * math.log(share)
    return math.exp(entropy)
