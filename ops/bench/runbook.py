"""Runbooks: insertions, deletions and searches in an order that is data.

The format and the protocol are those of the streaming track of big-ann-benchmarks (Simhadri et al.
2024, "Results of the Big ANN: NeurIPS'23 competition"): YAML or JSON with one numbered entry a
step. An id stands for one image, and every search asks the same queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from schemas.errors import UsageError
from schemas.records import BoolArray, IntArray

Operation = Literal["insert", "delete", "search"]

# Runbooks that come with the project, by name.
SHIPPED = Path(__file__).resolve().parent / "runbooks"

# Clusters and rounds of the final runbook: 320 insertions, 320 deletions, 640 searches.
FINAL_CLUSTERS = 64
FINAL_ROUNDS = 5

# Largest share of a cluster's images that one deletion of the final runbook takes.
_MOST_DELETED = 0.9

# Cycles of the churn runbook, each of which replaces one image in so many.
CHURN_CYCLES = 10
_CHURN_SHARE = 100


@dataclass(frozen=True, slots=True)
class RunbookStep:
    """One step: the ids from `start` up to but not with `end`; a search has none."""

    operation: Operation
    start: int = 0
    end: int = 0

    @property
    def ids(self) -> IntArray:
        """(n,) ids of the step, ascending."""
        return np.arange(self.start, self.end, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Runbook:
    """Steps in order. Each id is inserted once at most, and deleted only while it is there."""

    name: str
    steps: tuple[RunbookStep, ...]

    def __post_init__(self) -> None:
        state = np.zeros(self.images, np.int8)  # 0 unknown, 1 there, 2 deleted
        for number, step in enumerate(self.steps, start=1):
            if step.operation == "search":
                continue
            is_insert = step.operation == "insert"
            if bool((state[step.start : step.end] != (0 if is_insert else 1)).any()):
                wanted = "ids that never came" if is_insert else "ids that are there"
                raise UsageError(
                    f"step {number} of runbook {self.name} must {step.operation} {wanted}, got"
                    f" {step.start}..{step.end - 1}; correct its range"
                )
            state[step.start : step.end] = 1 if is_insert else 2

    @property
    def images(self) -> int:
        """How many ids the runbook has, 0 to this less one."""
        return max((step.end for step in self.steps), default=0)

    def count(self, operation: Operation) -> int:
        """How many steps have this operation."""
        return sum(step.operation == operation for step in self.steps)

    def scaled(self, images: int) -> "Runbook":
        """The same steps on fewer or more ids: each bound moves in proportion."""
        total = self.images
        steps = []
        for step in self.steps:
            bounds = (step.start * images // total, step.end * images // total)
            steps.append(RunbookStep(step.operation, *bounds))
        return Runbook(self.name, tuple(steps))


def read_runbook(file: Path, dataset: str | None = None) -> Runbook:
    """Read a runbook as it is published; `dataset` names one where the file holds several."""
    import yaml

    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the runbook {file} cannot be read: {error}") from error
    if not isinstance(document, dict) or not document:
        raise UsageError(f"the runbook {file} must map a data set to its steps; correct it")
    names = [str(name) for name in document]
    chosen = dataset or names[0]
    if chosen not in names or (dataset is None and len(names) > 1):
        raise UsageError(
            f"--dataset must be one of {', '.join(names)} of {file}, got {dataset}; name one"
        )
    return Runbook(file.stem, tuple(_steps(document[chosen], file)))


def _steps(numbered: Any, file: Path) -> list[RunbookStep]:
    """Entries 1, 2, … up to the first that is missing; YAML has numbers, JSON texts as keys."""
    if not isinstance(numbered, dict):
        raise UsageError(f"a data set of the runbook {file} must have numbered steps; correct it")
    entries = {str(key): value for key, value in numbered.items()}
    steps: list[RunbookStep] = []
    while (key := str(len(steps) + 1)) in entries:
        steps.append(_step(entries[key], f"step {key} of {file}"))
    if not steps:
        raise UsageError(f"the runbook {file} must have a step 1; correct it")
    return steps


def _step(entry: Any, where: str) -> RunbookStep:
    # The published generator writes a list of one-entry mappings.
    fields: Mapping[str, Any] = {}
    if isinstance(entry, list):
        fields = {name: value for part in entry for name, value in part.items()}
    elif isinstance(entry, dict):
        fields = entry
    operation = fields.get("operation")
    if operation not in get_args(Operation):
        raise UsageError(
            f"{where} must be one of {', '.join(get_args(Operation))}, got {operation!r}"
        )
    known = cast(Operation, operation)
    if known == "search":
        return RunbookStep(known)
    try:
        start, end = int(fields["start"]), int(fields["end"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{where} must have a start and an end; add them") from error
    if not 0 <= start <= end:
        raise UsageError(f"{where} must have 0 <= start <= end, got {start} and {end}")
    return RunbookStep(known, start, end)


def final_runbook(sizes: Sequence[int], seed: int) -> Runbook:
    """The final runbook's protocol on clusters of these sizes, whose ids follow each other.

    In each of five rounds a fifth of every cluster comes, then a random share of up to nine tenths
    of what is there of it goes, oldest first; a search follows each step.
    """
    rng = np.random.default_rng((seed, 11))
    starts = np.concatenate([[0], np.cumsum(sizes)])[:-1].tolist()
    inserted = [0] * len(sizes)
    deleted = [0] * len(sizes)
    steps: list[RunbookStep] = []
    for number in range(1, FINAL_ROUNDS + 1):
        for cluster, size in enumerate(sizes):
            before, after = inserted[cluster], number * size // FINAL_ROUNDS
            steps += _searched("insert", starts[cluster], before, after)
            inserted[cluster] = after
        for cluster in range(len(sizes)):
            share = rng.uniform(0, _MOST_DELETED)
            before = deleted[cluster]
            after = before + int(share * (inserted[cluster] - before))
            steps += _searched("delete", starts[cluster], before, after)
            deleted[cluster] = after
    return Runbook("final", tuple(steps))


def churn_runbook(images: int) -> Runbook:
    """Ten cycles that delete the oldest hundredth of what is there and insert as many new ones."""
    step = max(1, images // (_CHURN_SHARE + CHURN_CYCLES))
    there = images - CHURN_CYCLES * step
    steps = [RunbookStep("insert", 0, there), RunbookStep("search")]
    for cycle in range(CHURN_CYCLES):
        steps.append(RunbookStep("delete", cycle * step, (cycle + 1) * step))
        steps += _searched("insert", there, cycle * step, (cycle + 1) * step)
    return Runbook("churn", tuple(steps))


def _searched(operation: Operation, first: int, start: int, end: int) -> list[RunbookStep]:
    return [RunbookStep(operation, first + start, first + end), RunbookStep("search")]


def alive_after(alive: BoolArray, step: RunbookStep) -> BoolArray:
    """(N,) which ids are there after a step."""
    changed = alive.copy()
    if step.operation != "search":
        changed[step.start : step.end] = step.operation == "insert"
    return changed
