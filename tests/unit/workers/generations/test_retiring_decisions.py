"""Retiring: which generations are kept, and the reason that a person is given."""

import pytest

from schemas.generation_config import GateVerdict, GenerationConfig
from schemas.training_record import TrainingRecord
from tests.unit.workers.generation_rows import NOW, generation
from workers.generations.retiring import (
    folder_is_shared,
    has_expired,
    prunable,
    reason_to_keep,
    refused_by_gate,
    training_from,
)
from workers.repository.generations import Generation


def child_of(parent: int, number: int, state: str = "building") -> Generation:
    """A generation that is trained from the weights of another one."""
    config = GenerationConfig(training=TrainingRecord(mode="refresh", parent=parent))
    return generation(number, state, config=config)


@pytest.mark.parametrize(
    ("state", "reason"),
    [("live", "make another one live first"), ("building", "finish it first")],
)
def test_a_generation_in_use_is_kept_even_by_force(state: str, reason: str) -> None:
    wanted = generation(1, state)
    assert reason in (reason_to_keep(wanted, [wanted], force=True) or "")


@pytest.mark.parametrize("state", ["shadow", "failed"])
def test_a_candidate_and_a_failed_generation_can_be_dropped(state: str) -> None:
    wanted = generation(2, state)
    every = [generation(1, "live"), wanted, generation(3, "retired", days_since_end=1)]
    assert reason_to_keep(wanted, every, force=False) is None


def test_the_parent_of_a_training_under_way_is_kept_even_by_force() -> None:
    parent = generation(1)
    reason = reason_to_keep(parent, [parent, child_of(1, 2)], force=True)
    assert reason is not None
    assert "generation 2 is trained from" in reason


def test_a_parent_is_free_when_the_training_has_ended() -> None:
    parent = generation(1)
    assert training_from(parent, [parent, child_of(1, 2, "shadow")]) is None
    assert training_from(parent, [parent, child_of(7, 2)]) is None
    assert reason_to_keep(parent, [parent, child_of(1, 2, "failed")], force=False) is None


def test_only_force_drops_the_fallback_and_the_hint_names_the_command() -> None:
    older = generation(1, "retired", days_since_end=9)
    fallback = generation(2, "retired", days_since_end=1)
    every = [older, fallback, generation(3, "live")]
    reason = reason_to_keep(fallback, every, force=False)
    assert reason is not None
    assert "sigma generations drop 2 --force" in reason
    assert reason_to_keep(fallback, every, force=True) is None
    assert reason_to_keep(older, every, force=False) is None


@pytest.mark.parametrize(
    ("state", "days", "expired"),
    [
        ("retired", 6.9, False),
        ("retired", 7.1, True),
        ("failed", 7.1, True),
        ("failed", None, False),
        ("shadow", 100.0, False),
        ("live", 100.0, False),
    ],
)
def test_a_generation_expires_a_week_after_it_was_retired_or_failed(
    state: str, days: float | None, expired: bool
) -> None:
    assert has_expired(generation(1, state, days_since_end=days), NOW) is expired


def test_pruning_takes_what_expired_but_neither_fallback_nor_parent() -> None:
    old = generation(1, "retired", days_since_end=30)
    parent = generation(2, "retired", days_since_end=20)
    fallback = generation(3, "retired", days_since_end=10)
    failed = generation(4, "failed", days_since_end=8)
    young = generation(5, "failed", days_since_end=1)
    live = generation(6, "live")
    every = [old, parent, fallback, failed, young, live, child_of(2, 7)]
    assert prunable(every, NOW) == [old, failed]


def test_a_folder_stays_while_a_generation_that_is_not_given_up_uses_it() -> None:
    wanted = generation(1, folder="shared")
    assert folder_is_shared(wanted, [wanted, generation(2, "live", folder="shared")])
    assert not folder_is_shared(wanted, [wanted, generation(2, "failed", folder="shared")])
    assert not folder_is_shared(wanted, [wanted, generation(2, "live")])


def test_a_refusal_counts_only_beside_the_generation_that_is_live_now() -> None:
    live = generation(5, "live")
    refused = GenerationConfig(gate=GateVerdict(passed=False, against=5))
    outdated = GenerationConfig(gate=GateVerdict(passed=False, against=4))
    passed = GenerationConfig(gate=GateVerdict(passed=True, against=5))
    assert refused_by_gate(generation(6, config=refused), live)
    assert not refused_by_gate(generation(6, config=outdated), live)
    assert not refused_by_gate(generation(6, config=passed), live)
    assert not refused_by_gate(generation(6), live)
    assert not refused_by_gate(generation(6, config=refused), None)
