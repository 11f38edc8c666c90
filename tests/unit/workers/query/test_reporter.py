"""Reporter: reports are written in batches by kind, and dropped with a count when too many."""

import queue
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from schemas.errors import RetryLaterError
from stream.log.event_log import EventLog, Message
from tests.unit.workers.query.engines import MOMENT
from workers.query import reporter
from workers.query.reporter import (
    Report,
    Reporter,
    SearchableImages,
    batch_of,
    take_waiting,
    write_apart,
)
from workers.repository.connection import Connection
from workers.repository.shadow_queries import ShadowQuery
from workers.runtime.query_metrics import QueryMetrics


def served(key: str) -> Message:
    return Message("sigma.queries.served", key, b"{}")


def compared(text: str) -> ShadowQuery:
    return ShadowQuery(2, 1, text, 1.0, 2.0, 0.5, None, None)


def searchable(key: int) -> SearchableImages:
    return SearchableImages(np.array([key]), MOMENT)


def filled(reports: list[Report]) -> "queue.Queue[Report]":
    waiting: queue.Queue[Report] = queue.Queue()
    for report in reports:
        waiting.put(report)
    return waiting


def test_reports_are_sorted_by_kind_and_keep_their_order() -> None:
    first, second = searchable(1), searchable(2)
    batch = batch_of([served("a"), first, compared("x"), served("b"), second, compared("y")])
    assert [message.key for message in batch.messages] == ["a", "b"]
    assert [query.query for query in batch.shadow_queries] == ["x", "y"]
    assert batch.searchable == [first, second]


def test_what_waits_is_taken_together_up_to_the_limit() -> None:
    waiting = filled([served("a"), served("b"), served("c")])
    assert take_waiting(waiting, 2, 0.0) == [served("a"), served("b")]
    assert take_waiting(waiting, 2, 0.0) == [served("c")]


def test_nothing_is_taken_when_nothing_comes_in_time() -> None:
    assert take_waiting(filled([]), 2, 0.01) == []


def test_reports_beyond_the_capacity_are_dropped_and_counted_and_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object) -> Connection | EventLog:
        raise AssertionError("submitting a report connects to nothing")

    monkeypatch.setattr(reporter, "_CAPACITY", 2)
    metrics = QueryMetrics()
    writer = Reporter("worker", unreachable, unreachable, threading.Event(), metrics)
    for key in "abc":
        writer.submit(served(key))
    assert metrics.registry.get_sample_value("sigma_reports_dropped_total") == 1


def test_only_the_report_that_cannot_be_written_is_lost() -> None:
    written: list[int] = []

    def write(numbers: Sequence[int]) -> None:
        if 5 in numbers:
            raise ValueError("five")
        written.extend(numbers)

    assert write_apart(write, list(range(10))) == 1
    assert written == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_an_unavailable_database_is_not_the_fault_of_a_report() -> None:
    def write(_: Sequence[int]) -> None:
        raise RetryLaterError("the database does not answer")

    with pytest.raises(RetryLaterError):
        write_apart(write, [1, 2])
