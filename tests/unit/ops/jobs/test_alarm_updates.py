"""When an alarm of the drift monitors may be cleared, and what is stored with it."""

from model.drift.monitors import RecallCount
from ops.jobs.alarm_updates import CLEAR_AFTER_WINDOWS, RecallChange, has_recovered

QUIET: frozenset[str] = frozenset()


def test_a_monitor_recovers_after_enough_windows_without_its_alarm() -> None:
    assert has_recovered("id1", [QUIET] * CLEAR_AFTER_WINDOWS)
    assert has_recovered("id1", [{"embedding"}] * CLEAR_AFTER_WINDOWS)
    assert not has_recovered("id1", [QUIET] * (CLEAR_AFTER_WINDOWS - 1))


def test_one_alarm_among_the_windows_keeps_it_open() -> None:
    for position in range(CLEAR_AFTER_WINDOWS):
        windows = [QUIET] * CLEAR_AFTER_WINDOWS
        windows[position] = frozenset({"id1", "embedding"})
        assert not has_recovered("id1", windows), position


def test_recall_that_was_not_measured_is_stored_as_unknown() -> None:
    change = RecallChange(RecallCount(180, 200))
    assert change.to_json() == {
        "recall_then": {"hits": 180, "queries": 200},
        "recall_now": None,
    }
