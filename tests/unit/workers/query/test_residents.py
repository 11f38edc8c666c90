"""Resident generations: which are wanted in memory, and what is said when one fails to load."""

from pathlib import Path

import pytest

from schemas.errors import RefuseToStartError, WorkFailedError
from tests.stubs import services_at
from tests.unit.workers.query.engines import KeysEngine, generation, searcher
from workers.query import residents
from workers.query.residents import (
    problem_of,
    searcher_loader,
    shadow_numbers,
    unwanted_numbers,
    wanted_generations,
)

EVERY = [
    generation(1, "retired", ended_day=3),
    generation(2, "retired", ended_day=9),
    generation(3, "failed"),
    generation(4, "shadow"),
    generation(5, "live"),
    generation(6, "building"),
    generation(7, "shadow"),
]


def test_live_shadows_and_the_newest_retired_one_are_wanted_in_the_order_of_urgency() -> None:
    assert list(wanted_generations(EVERY, keep_fallback=True)) == [5, 4, 7, 2]


def test_the_fallback_generation_can_be_left_out() -> None:
    assert list(wanted_generations(EVERY, keep_fallback=False)) == [5, 4, 7]


def test_before_the_first_training_nothing_is_wanted() -> None:
    assert wanted_generations([], keep_fallback=True) == {}
    assert wanted_generations([generation(1, "building")], keep_fallback=True) == {}


def test_what_is_wanted_no_more_is_unloaded() -> None:
    assert unwanted_numbers({1, 2, 3}, {2, 3}, leading=3) == {1}


def test_the_generation_that_answers_stays_until_another_one_does() -> None:
    assert unwanted_numbers({1, 2}, {2}, leading=1) == set()
    assert unwanted_numbers({1, 2}, {2}, leading=2) == {1}


def test_before_any_generation_answers_all_unwanted_ones_are_unloaded() -> None:
    assert unwanted_numbers({1, 2}, set(), leading=None) == {1, 2}


def test_candidates_are_the_shadow_generations() -> None:
    assert shadow_numbers(EVERY) == {4, 7}


def test_our_own_errors_are_shown_as_they_are_and_others_name_the_generation() -> None:
    assert problem_of(generation(5), RefuseToStartError("the folder is empty")) == (
        "the folder is empty"
    )
    assert "generation 5" in problem_of(generation(5), OSError("no such file"))


def test_a_generation_that_cannot_answer_its_first_query_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # It is tried again every few seconds, and each try would keep an index in memory.
    engine = KeysEngine(1)
    engine.error = WorkFailedError("the generation's model gives NaN")
    monkeypatch.setattr(residents, "open_searcher", lambda *_, **__: searcher(engine))
    load = searcher_loader(services_at("", tmp_path))
    with pytest.raises(WorkFailedError):
        load(generation(1), None, True)
    assert engine.closed
    engine.closed = False
    # Beside warm weights it is asked nothing.
    assert load(generation(1), searcher(KeysEngine(1)), True).engine is engine
    assert not engine.closed
