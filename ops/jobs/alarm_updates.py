"""Alarm updates: drift alarms raised and cleared by monitors, and published as events."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass

from model.drift.monitors import MonitorResult, RecallCount
from schemas.events import OperationsEvent
from stream.log.event_log import EventLog, message
from workers.repository.alarms import Alarm, clear_alarm, open_alarms, raise_alarm
from workers.repository.connection import Connection, transaction

CLEAR_AFTER_WINDOWS = 3
"""Windows in a row without an alarm of a monitor after which its open alarm is cleared: one quiet
window is too easily had by chance."""


@dataclass(frozen=True, slots=True)
class RecallChange:
    """Recall of the most novel images, in the reference and in the window; None if not measured."""

    then: RecallCount | None = None
    now: RecallCount | None = None

    def to_json(self) -> dict[str, object]:
        """The detail stored with an alarm."""
        return {"recall_then": _count_json(self.then), "recall_now": _count_json(self.now)}


def has_recovered(monitor: str, alarming: Sequence[AbstractSet[str]]) -> bool:
    """Whether a monitor was quiet for long enough for its alarm to be cleared.

    `alarming` names the monitors that alarmed in each of the newest windows, as many as are known.
    """
    if len(alarming) < CLEAR_AFTER_WINDOWS:
        return False
    return not any(monitor in monitors for monitors in alarming)


def update_alarms(
    conn: Connection,
    open_log: Callable[[], EventLog],
    generation: int,
    results: Sequence[MonitorResult],
    level: str,
    recall: RecallChange,
    earlier: Sequence[AbstractSet[str]],
) -> int:
    """Raise and clear alarms after a window and publish what changed, all in one transaction.

    `level` is that of the alarms to raise, `earlier` are the monitors that alarmed in the windows
    before this one. Returns how many alarms were raised, or became a page.
    """
    alarming = {result.monitor for result in results if result.alarm}
    # One transaction, so that no alarm stays without its event, and no event without its alarm.
    with transaction(conn), closing(open_log()) as events:
        raised = set()
        for result in results:
            if result.alarm:
                number = _raise(conn, generation, result, level, recall)
                # None for an alarm that was open before: it is announced once for each level.
                if number is not None:
                    raised.add(number)
        still_open = open_alarms(conn)
        notes = []
        for alarm in still_open:
            if alarm.id in raised:
                notes.append(OperationsEvent("alarm", f"{alarm}; see: sigma report drift"))
        for alarm in still_open:
            if has_recovered(alarm.monitor, [alarming, *earlier]) and clear_alarm(conn, alarm.id):
                notes.append(OperationsEvent("alarm-cleared", _recovery(alarm)))
        if notes:
            key = f"generation-{generation}"
            events.publish(conn, [message(note, key) for note in notes])
    return len(raised)


def clear_alarms_of_others(conn: Connection, generation: int) -> None:
    """Clear alarms of generations that are not live any more: no window can show their recovery."""
    for alarm in open_alarms(conn):
        if alarm.generation != generation:
            clear_alarm(conn, alarm.id)


def _raise(
    conn: Connection, generation: int, result: MonitorResult, level: str, recall: RecallChange
) -> int | None:
    return raise_alarm(
        conn,
        generation,
        result.monitor,
        level,
        effect=result.effect,
        effect_limit=result.effect_limit,
        p=result.p,
        p_limit=result.p_limit,
        detail=recall.to_json(),
    )


def _recovery(alarm: Alarm) -> str:
    return (
        f"{alarm.monitor} of generation {alarm.generation} did not alarm in "
        f"{CLEAR_AFTER_WINDOWS} windows"
    )


def _count_json(count: RecallCount | None) -> dict[str, int] | None:
    return None if count is None else {"hits": count.hits, "queries": count.queries}
