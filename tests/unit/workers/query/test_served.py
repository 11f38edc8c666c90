"""Served generations: what each engine update does to who answers, and what is reported of it."""

from dataclasses import dataclass, field
from queue import SimpleQueue

import pytest

from tests.unit.workers.query.engines import KeysEngine, arrivals, searcher
from workers.query.reporter import Report, SearchableImages
from workers.query.served import ServedGenerations, keys_only_in_first
from workers.query.shadowing import ShadowQueue
from workers.query.updates import (
    ChangesApplied,
    EngineUpdate,
    GenerationLoaded,
    GenerationPromoted,
    GenerationUnloaded,
)
from workers.runtime.query_metrics import QueryMetrics


@dataclass
class Served:
    """Served generations and everything they tell."""

    metrics: QueryMetrics = field(default_factory=QueryMetrics)
    reports: list[Report] = field(default_factory=list)
    leading: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shadows = ShadowQueue(1.0, self.metrics, self.reports.append)
        self.generations = ServedGenerations(
            self.metrics, self.shadows, self.reports.append, self.leading.append
        )

    def searchable(self) -> list[list[int]]:
        """Keys of each report of searchable images."""
        return [
            report.keys.tolist() for report in self.reports if isinstance(report, SearchableImages)
        ]

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0


@pytest.fixture
def served() -> Served:
    return Served()


def test_a_loaded_generation_can_answer_and_is_not_live_by_itself(served: Served) -> None:
    first = searcher(KeysEngine(1))
    served.generations.take(GenerationLoaded(first))
    assert list(served.generations.numbers) == [1]
    assert served.generations.get(1) is first
    assert served.generations.live_number is None


def test_updates_that_take_longer_than_their_time_are_left_for_the_next_batch(
    served: Served,
) -> None:
    first = searcher(KeysEngine(1))
    updates: SimpleQueue[EngineUpdate] = SimpleQueue()
    updates.put(GenerationLoaded(first))
    updates.put(GenerationPromoted(first))
    updates.put(ChangesApplied(first, arrivals([5])))
    served.generations.take_waiting(updates, 0.0)
    assert (list(served.generations.numbers), served.generations.live_number) == ([1], None)
    served.generations.take_waiting(updates, 0.0)
    assert served.generations.live_number == 1
    assert served.searchable() == []
    served.generations.take_waiting(updates, 60.0)
    assert served.searchable() == [[5]]
    served.generations.take_waiting(updates, 0.0)


def test_a_promoted_generation_answers_and_is_told_to_the_residents(served: Served) -> None:
    first = searcher(KeysEngine(1, [10, 11]))
    served.generations.take(GenerationLoaded(first))
    served.generations.take(GenerationPromoted(first))
    assert served.generations.live is first
    assert served.leading == [1]
    assert served.value("sigma_trie_images") == 2
    assert served.value("sigma_switches_total") == 0


def test_a_switch_reports_what_only_the_new_generation_has(served: Served) -> None:
    first, second = searcher(KeysEngine(1, [10, 11])), searcher(KeysEngine(2, [10, 11, 12]))
    for loaded in (first, second):
        served.generations.take(GenerationLoaded(loaded))
        served.generations.take(GenerationPromoted(loaded))
    assert served.generations.live_number == 2
    assert served.searchable() == [[12]]
    assert served.value("sigma_switches_total") == 1


def test_a_switch_to_a_generation_that_lacks_images_reports_none(served: Served) -> None:
    first, second = searcher(KeysEngine(1, [10, 11])), searcher(KeysEngine(2, [10]))
    for loaded in (first, second):
        served.generations.take(GenerationLoaded(loaded))
        served.generations.take(GenerationPromoted(loaded))
    assert served.searchable() == []


def test_changes_of_the_live_generation_are_applied_and_reported(served: Served) -> None:
    engine = KeysEngine(1, [10])
    first = searcher(engine)
    served.generations.take(GenerationLoaded(first))
    served.generations.take(GenerationPromoted(first))
    served.generations.take(ChangesApplied(first, arrivals([11, 12])))
    assert engine.keys == [10, 11, 12]
    assert served.searchable() == [[11, 12]]
    assert served.value("sigma_trie_images") == 3


def test_changes_of_a_candidate_are_applied_and_not_reported(served: Served) -> None:
    engine = KeysEngine(2)
    candidate = searcher(engine)
    served.generations.take(GenerationLoaded(candidate))
    served.generations.take(ChangesApplied(candidate, arrivals([11])))
    assert engine.keys == [11]
    assert served.searchable() == []


def test_a_searcher_that_replaces_the_live_one_is_live_and_the_old_one_is_closed(
    served: Served,
) -> None:
    old_engine = KeysEngine(1)
    old, new = searcher(old_engine), searcher(KeysEngine(1))
    served.generations.take(GenerationLoaded(old))
    served.generations.take(GenerationPromoted(old))
    served.generations.take(GenerationLoaded(new))
    assert served.generations.live is new
    assert old_engine.closed
    assert served.value("sigma_switches_total") == 0


def test_updates_of_a_searcher_that_was_replaced_have_no_effect(served: Served) -> None:
    old_engine = KeysEngine(1)
    old, new = searcher(old_engine), searcher(KeysEngine(1))
    served.generations.take(GenerationLoaded(old))
    served.generations.take(GenerationLoaded(new))
    served.generations.take(ChangesApplied(old, arrivals([11])))
    served.generations.take(GenerationPromoted(old))
    served.generations.take(GenerationUnloaded(old))
    assert old_engine.keys == []
    assert served.generations.live is None
    assert served.generations.get(1) is new


def test_an_unloaded_generation_is_closed_and_answers_no_more(served: Served) -> None:
    engine = KeysEngine(1)
    first = searcher(engine)
    served.generations.take(GenerationLoaded(first))
    served.generations.take(GenerationUnloaded(first))
    assert engine.closed
    assert list(served.generations.numbers) == []


def test_the_live_generation_is_not_unloaded(served: Served) -> None:
    engine = KeysEngine(1)
    first = searcher(engine)
    served.generations.take(GenerationLoaded(first))
    served.generations.take(GenerationPromoted(first))
    served.generations.take(GenerationUnloaded(first))
    assert not engine.closed
    assert served.generations.live is first


def test_comparisons_that_wait_are_dropped_when_a_generation_is_unloaded(served: Served) -> None:
    first, second = searcher(KeysEngine(1)), searcher(KeysEngine(2))
    for loaded in (first, second):
        served.generations.take(GenerationLoaded(loaded))
    served.shadows.offer("a query", first, [second])
    assert served.shadows.waiting
    served.generations.take(GenerationUnloaded(second))
    assert not served.shadows.waiting
    assert served.value("sigma_shadow_dropped_total") == 1


def test_only_loaded_generations_are_selected(served: Served) -> None:
    first = searcher(KeysEngine(1))
    served.generations.take(GenerationLoaded(first))
    assert served.generations.select([3, 1]) == [first]


def test_closing_closes_every_engine(served: Served) -> None:
    engines = [KeysEngine(1), KeysEngine(2)]
    for engine in engines:
        served.generations.take(GenerationLoaded(searcher(engine)))
    served.generations.close()
    assert all(engine.closed for engine in engines)


def test_keys_of_the_first_array_alone_are_sorted() -> None:
    first, second = KeysEngine(1, [5, 3, 9]), KeysEngine(2, [3])
    assert keys_only_in_first(first.newest(10), second.newest(10)).tolist() == [5, 9]
