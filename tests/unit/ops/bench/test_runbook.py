"""Runbooks: what is published is read, and what is made follows the protocol."""

import json
from pathlib import Path

import numpy as np
import pytest

from ops.bench.runbook import (
    SHIPPED,
    Runbook,
    RunbookStep,
    alive_after,
    churn_runbook,
    final_runbook,
    read_runbook,
)
from ops.bench.runbook_result import recall_against
from schemas.errors import UsageError


def test_the_delete_runbook_has_the_published_steps() -> None:
    runbook = read_runbook(SHIPPED / "delete.yaml")
    counts = [runbook.count(name) for name in ("insert", "search", "delete")]
    assert (runbook.images, counts) == (10_000, [32, 32, 12])
    alive = np.zeros(runbook.images, np.bool_)
    most = 0
    for step in runbook.steps:
        alive = alive_after(alive, step)
        most = max(most, int(alive.sum()))
    assert (int(alive.sum()), most) == (4900, 6400)


def test_steps_as_the_published_generator_writes_them_are_read_and_json_too(tmp_path: Path) -> None:
    steps = {
        "1": [{"operation": "insert"}, {"start": 0}, {"end": 40}],
        "2": [{"operation": "search"}],
        "3": {"operation": "delete", "start": 10, "end": 20},
    }
    file = tmp_path / "book.json"
    file.write_text(json.dumps({"data": {"max_pts": 40, **steps}, "other": {"1": steps["2"]}}))
    runbook = read_runbook(file, "data")
    assert runbook.steps == (
        RunbookStep("insert", 0, 40),
        RunbookStep("search"),
        RunbookStep("delete", 10, 20),
    )
    halved = runbook.scaled(20)
    assert [(step.start, step.end) for step in halved.steps] == [(0, 20), (0, 0), (5, 10)]
    with pytest.raises(UsageError, match="--dataset must be one of data, other"):
        read_runbook(file)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ({1: {"operation": "replace"}}, "one of insert, delete, search, got 'replace'"),
        ({1: {"operation": "insert", "start": 3}}, "a start and an end"),
        ({1: {"operation": "insert", "start": 3, "end": 1}}, "0 <= start <= end"),
        ({2: {"operation": "search"}}, "must have a step 1"),
        ({1: {"operation": "delete", "start": 0, "end": 1}}, "delete ids that are there"),
    ],
)
def test_a_runbook_that_cannot_be_run_is_one_sentence(
    tmp_path: Path, steps: dict[int, object], told: str
) -> None:
    file = tmp_path / "book.yaml"
    file.write_text(json.dumps({"data": steps}))
    with pytest.raises(UsageError, match=told):
        read_runbook(file)


def test_an_id_comes_once() -> None:
    with pytest.raises(UsageError, match=r"insert ids that never came, got 1\.\.2"):
        Runbook("twice", (RunbookStep("insert", 0, 2), RunbookStep("insert", 1, 3)))


def test_the_final_runbook_inserts_every_cluster_in_five_rounds_and_deletes_the_oldest() -> None:
    sizes = [7, 50, 31]
    runbook = final_runbook(sizes, seed=0)
    counts = [runbook.count(name) for name in ("insert", "delete", "search")]
    assert counts == [15, 15, 30]
    assert runbook.images == sum(sizes)
    inserted = np.concatenate([step.ids for step in runbook.steps if step.operation == "insert"])
    assert sorted(inserted.tolist()) == list(range(sum(sizes)))
    assert final_runbook(sizes, seed=0) == runbook != final_runbook(sizes, seed=1)


def test_churn_replaces_a_hundredth_ten_times() -> None:
    runbook = churn_runbook(1100)
    alive = np.zeros(1100, np.bool_)
    sizes = []
    for step in runbook.steps:
        alive = alive_after(alive, step)
        if step.operation == "search":
            sizes.append(int(alive.sum()))
    assert sizes == [1000] * 11
    assert not alive[:100].any(), "the oldest tenth went"


def test_recall_counts_the_neighbours_that_were_found() -> None:
    assert recall_against([[1, 2, 3], [9]], [[3, 4], [9]]) == 0.75
    assert recall_against([[]], [[]]) == 1.0
