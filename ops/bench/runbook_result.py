"""The result of a runbook: figures of every search by every index, and what the steps took."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ops.bench.runbook import Operation
from ops.markdown_table import table_head, table_row
from schemas.records import JsonObject

# Milliseconds of a second, bytes of a mebibyte.
_MS = 1e3
_MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class SearchFigures:
    """One search step of one index. Recall as shares from 0 to 1."""

    step: int
    """Number in the runbook, from 1."""
    alive: int
    """Images that are there."""
    recall: float
    """Recall@10: share of the ten nearest by exact search over what is there that were found."""
    caption_recall_1: float | None
    """R@1 of queries whose image is there; None where none is."""
    caption_recall_10: float | None
    seconds: float
    """Of all queries together."""
    candidates: float | None
    """Images whose similarity was computed for a query; None where the index does not say."""


@dataclass(frozen=True, slots=True)
class IndexResult:
    """All steps of one index."""

    name: str
    setting: str
    searches: tuple[SearchFigures, ...]
    changes_s: tuple[tuple[Operation, int, float], ...]
    """Operation, images and seconds of each insertion and deletion."""
    bytes: int
    """Of the index after the last step, as it would be written."""

    @property
    def mean_recall(self) -> float:
        """Mean recall@10 over the searches."""
        return float(np.mean([search.recall for search in self.searches]))

    @property
    def worst_recall(self) -> float:
        """Lowest recall@10 of a search."""
        return min(search.recall for search in self.searches)

    @property
    def lost(self) -> float:
        """Recall@10 of the first search less that of the last."""
        return self.searches[0].recall - self.searches[-1].recall

    def ms_per_image(self, operation: Operation) -> float:
        """Milliseconds of an insertion or a deletion of one image."""
        images = sum(count for kind, count, _ in self.changes_s if kind == operation)
        seconds = sum(spent for kind, _, spent in self.changes_s if kind == operation)
        return _MS * seconds / max(1, images)

    def mean(self, figure: str) -> float | None:
        """Mean over the searches that have a figure, None where none has."""
        values = [getattr(search, figure) for search in self.searches]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def to_json(self) -> JsonObject:
        """One of `indexes` in the document."""
        return {
            "name": self.name,
            "setting": self.setting,
            "recall@10": {
                "mean": self.mean_recall,
                "worst": self.worst_recall,
                "first less last": self.lost,
            },
            "bytes": self.bytes,
            "insert_ms": self.ms_per_image("insert"),
            "delete_ms": self.ms_per_image("delete"),
            "searches": [asdict(search) for search in self.searches],
        }


@dataclass(frozen=True, slots=True)
class RunbookResult:
    """One runbook run by several indexes, one after the other, in one process."""

    runbook: str
    steps: dict[Operation, int]
    images: int
    queries: int
    trained: int
    """Images that the generation was trained on, none of them in the runbook."""
    seed: int
    assign_ms: float
    """Of one image by the generation's model: ours needs it beside the time of an insertion."""
    indexes: tuple[IndexResult, ...]

    def to_json(self) -> JsonObject:
        """The document of `sigma bench stream --json`."""
        return {
            "runbook": self.runbook,
            "steps": dict(self.steps),
            "images": self.images,
            "queries": self.queries,
            "trained": self.trained,
            "seed": self.seed,
            "assign_ms": self.assign_ms,
            "indexes": [index.to_json() for index in self.indexes],
        }

    def to_markdown(self) -> str:
        """The table for people, as a section of a page."""
        counts = ", ".join(f"{count} {name}" for name, count in self.steps.items())
        lines = [
            f"## {self.runbook}: {counts}",
            "",
            f"{self.images:,} images, {self.queries} queries, seed {self.seed}; the generation was"
            f" trained on {self.trained:,} other images. Assignment by its model takes"
            f" {self.assign_ms:.1f} ms an image beside the insertion.",
            "",
        ]
        titles = ["index", "recall@10 mean", "worst", "first less last", "caption R@1", "R@10"]
        titles += ["scored", "query ms", "insert ms", "delete ms", "MiB"]
        lines += table_head(titles)
        lines += [self._row(index) for index in self.indexes]
        lines += ["", *(f"- {index.name}: {index.setting}" for index in self.indexes), ""]
        return "\n".join(lines)

    def _row(self, index: IndexResult) -> str:
        seconds = index.mean("seconds") or 0.0
        shares = (index.mean_recall, index.worst_recall, index.lost)
        cells = [index.name, *(f"{100 * share:.1f}" for share in shares)]
        for figure in ("caption_recall_1", "caption_recall_10"):
            cells.append(_percent(index.mean(figure)))
        candidates = index.mean("candidates")
        cells.append("" if candidates is None else f"{candidates:.0f}")
        cells.append(f"{_MS * seconds / self.queries:.2f}")
        cells += [f"{index.ms_per_image(kind):.3f}" for kind in ("insert", "delete")]
        cells.append(f"{index.bytes / _MIB:.1f}")
        return table_row(cells)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def recall_against(found: Sequence[Sequence[int]], exact: Sequence[Sequence[int]]) -> float:
    """Mean share of each query's exact neighbours that were found; 1 where there is none."""
    shares: list[float] = []
    for own, nearest in zip(found, exact, strict=True):
        if len(nearest):
            shares.append(len(set(own) & set(nearest)) / len(nearest))
    return float(np.mean(shares)) if shares else 1.0
