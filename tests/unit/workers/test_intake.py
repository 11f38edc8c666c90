"""Intake: stuck partitions, how much waits, and the messages of a batch of verdicts."""

from datetime import UTC, datetime

from schemas.events import (
    ACCEPTED,
    ARRIVED,
    REJECTED,
    ImageAccepted,
    ImageDeleted,
    ImageRejected,
    decode,
)
from stream.log.event_log import Event
from workers.faust_handler import backlog, stuck_partitions
from workers.intake import JudgedEvent, Verdict, outgoing_messages
from workers.runtime.metrics import IntakeMetrics, verdict_name

FIRST = ("arrived", 0)
SECOND = ("arrived", 1)


def accepted(name: str) -> ImageAccepted:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    return ImageAccepted(name, f"file:///{name}", "images/x.png", "0" * 64, 8, 8, moment)


def rejected(name: str) -> ImageRejected:
    return ImageRejected(name, f"file:///{name}", "too-large", "it is too large", "intake")


def judged(verdict: Verdict, offset: int = 0) -> JudgedEvent:
    event = Event(ARRIVED, 0, offset, "key", b"{}", {}, datetime(2026, 1, 2, tzinfo=UTC))
    return JudgedEvent(event, verdict)


def test_the_backlog_counts_what_every_partition_has_beyond_its_offset() -> None:
    assert backlog({FIRST: 10, SECOND: 4}, {FIRST: 7}) == 3 + 4
    assert backlog({FIRST: 10}, {FIRST: 10}) == 0


def test_an_offset_beyond_the_end_does_not_hide_the_backlog_of_another_partition() -> None:
    # The end is read before the offset, so a commit in between may pass it.
    assert backlog({FIRST: 5, SECOND: 2}, {FIRST: 8}) == 2


def test_a_partition_that_has_events_left_and_did_not_move_is_stuck() -> None:
    ends = {FIRST: 10, SECOND: 10}
    done = {FIRST: 4, SECOND: 6}
    assert stuck_partitions(ends, done, {FIRST: 4, SECOND: 5}) == [FIRST]


def test_a_partition_whose_first_event_never_came_is_stuck_at_offset_zero() -> None:
    assert stuck_partitions({FIRST: 3}, {}, {FIRST: 0}) == [FIRST]


def test_a_partition_seen_for_the_first_time_is_not_stuck() -> None:
    assert stuck_partitions({FIRST: 3}, {}, {}) == []


def test_a_partition_without_events_left_is_not_stuck() -> None:
    assert stuck_partitions({FIRST: 3}, {FIRST: 3}, {FIRST: 3}) == []


def test_verdicts_become_messages_in_their_order_and_deletions_none() -> None:
    verdicts = [
        judged(accepted("a"), 0),
        judged(ImageDeleted("b"), 1),
        judged(rejected("c"), 2),
        judged(accepted("d"), 3),
    ]
    messages = outgoing_messages(verdicts)
    assert [(message.topic, message.key) for message in messages] == [
        (ACCEPTED, "a"),
        (REJECTED, "c"),
        (ACCEPTED, "d"),
    ]
    assert decode(ACCEPTED, messages[0].value) == accepted("a")


def test_a_dead_letter_names_the_place_of_the_event_that_was_refused() -> None:
    (message,) = outgoing_messages([judged(rejected("c"), 17)])
    assert "17" in message.headers.values()
    assert ARRIVED in message.headers.values()


def test_verdicts_are_counted_by_name_and_rejections_by_their_code() -> None:
    assert verdict_name(accepted("a")) == "accepted"
    assert verdict_name(rejected("c")) == "too-large"
    metrics = IntakeMetrics()
    metrics.count_verdict(rejected("c"))
    metrics.count_verdict(rejected("d"))
    counted = metrics.registry.get_sample_value(
        "sigma_intake_verdicts_total", {"verdict": "too-large"}
    )
    assert counted == 2
