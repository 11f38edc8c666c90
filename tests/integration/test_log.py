"""The event log in PostgreSQL and in Kafka: order, groups, offsets that commit with the work.

Also dead letters. The same tests run on both logs.
"""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from schemas.errors import RetryLaterError, UsageError
from schemas.events import ARRIVED, REJECTED, ImageArrived, ImageRejected, trace_of
from schemas.service_settings import KafkaSettings
from stream.log.dead_letters import Replay, dead_letter, dead_letters, replay, show
from stream.log.event_log import Batch, Consumer, Event, EventLog, Message, message
from stream.log.kafka import KafkaLog
from stream.log.offsets import lag, rewind, store_offsets
from stream.log.outbox import forward
from stream.log.postgres import PostgresLog
from workers.repository.connection import Connection, connect, transaction
from workers.repository.rejections import reject_image


@pytest.fixture(params=["postgres", "kafka"])
def log(request: pytest.FixtureRequest, database: str) -> Iterator[EventLog]:
    log: EventLog
    if request.param == "postgres":
        log = PostgresLog(database)
    else:
        log = KafkaLog(request.getfixturevalue("kafka"), database)
    log.ensure_topics()
    yield log
    log.close()


class Interrupted(Exception):
    """Stands for any failure in the middle of a transaction."""


def failing(conn: Connection, work: Callable[[], None]) -> None:
    with transaction(conn):
        work()
        raise Interrupted


def send(log: EventLog, names: list[str]) -> None:
    log.publish(None, [Message(ARRIVED, name, name.encode()) for name in names])


def polled(consumer: Consumer, count: int, timeout_s: float = 20) -> Batch:
    """Poll until one batch has `count` events: a member that just joined has no partitions yet."""
    deadline = time.monotonic() + timeout_s
    while True:
        batch = consumer.poll(max_events=100, timeout_s=0.5)
        if len(batch) == count:
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)


def drained(log: EventLog, conn: Connection, group: str, count: int) -> list[str]:
    """Poll and commit `count` events; return their values."""
    values: list[str] = []
    with log.open_consumer(group, [ARRIVED]) as consumer:
        deadline = time.monotonic() + 20
        while len(values) < count and time.monotonic() < deadline:
            batch = consumer.poll(max_events=7, timeout_s=0.5)
            with transaction(conn):
                store_offsets(log, conn, group, batch)
            values += [event.value.decode() for event in batch.events]
    return values


def test_events_of_a_key_keep_their_order_and_every_group_sees_all(
    log: EventLog, conn: Connection
) -> None:
    names = [f"{key}" for _ in range(5) for key in "abcdef"]
    log.publish(
        None,
        [Message(ARRIVED, key, f"{key}{number:02}".encode()) for number, key in enumerate(names)],
    )
    for group in ("one", "two"):
        values = drained(log, conn, group, 30)
        assert len(values) == 30
        for key in "abcdef":
            mine = [value for value in values if value.startswith(key)]
            assert mine == sorted(mine)
            assert len(mine) == 5


def test_without_a_commit_events_come_again_and_with_one_they_do_not(
    log: EventLog, conn: Connection
) -> None:
    send(log, ["same"] * 3)
    with log.open_consumer("g", [ARRIVED]) as consumer:
        first = polled(consumer, 3)
        assert polled(consumer, 3).events == first.events
        with transaction(conn):
            store_offsets(log, conn, "g", first)
        assert not consumer.poll(timeout_s=0.3)
        assert lag(log, conn, "g", [ARRIVED]) == 0
        rewind(log, conn, "g", ARRIVED)
        assert lag(log, conn, "g", [ARRIVED]) == 3
        assert polled(consumer, 3).events == first.events


def test_a_restarted_member_goes_on_where_postgres_says(log: EventLog, conn: Connection) -> None:
    send(log, ["same"] * 4)
    with log.open_consumer("g", [ARRIVED]) as consumer:
        batch = polled(consumer, 4)
        ((partition, (begin, _)),) = batch.positions.items()
        with transaction(conn):
            store_offsets(log, conn, "g", Batch(batch.events[:3], {partition: (begin, begin + 3)}))
    with log.open_consumer("g", [ARRIVED]) as consumer:
        assert polled(consumer, 1).events == batch.events[3:]


def test_offsets_vanish_with_the_transaction_that_failed(log: EventLog, conn: Connection) -> None:
    send(log, ["a"])
    with log.open_consumer("g", [ARRIVED]) as consumer:
        batch = polled(consumer, 1)
        with pytest.raises(Interrupted):
            failing(conn, lambda: store_offsets(log, conn, "g", batch))
        assert polled(consumer, 1).events == batch.events


def test_heartbeats_keep_the_membership_and_lose_no_event(log: EventLog, conn: Connection) -> None:
    send(log, ["same"] * 2)
    with log.open_consumer("g", [ARRIVED]) as consumer:
        batch = polled(consumer, 2)
        send(log, ["same"] * 2)
        for _ in range(5):
            consumer.heartbeat()
            time.sleep(0.1)
        with transaction(conn):
            store_offsets(log, conn, "g", batch)
        assert [event.offset for event in polled(consumer, 2).events] == [2, 3]


def test_a_topic_created_again_is_read_from_its_start(
    database: str, kafka: KafkaSettings, conn: Connection
) -> None:
    for _ in range(2):
        log = KafkaLog(kafka, database)
        send(log, ["same"] * 2)
        assert drained(log, conn, "g", 2) == ["same"] * 2
        with log._admin() as admin:
            admin.delete_topics([ARRIVED])
            deadline = time.monotonic() + 20
            while ARRIVED in admin.list_topics() and time.monotonic() < deadline:
                time.sleep(0.05)
        log.ensure_topics()
        log.close()


def test_two_members_never_commit_the_same_twice(log: EventLog, conn: Connection) -> None:
    send(log, ["same"] * 4)
    with log.open_consumer("g", [ARRIVED]) as first, log.open_consumer("g", [ARRIVED]) as second:
        # A group that rebalances needs both members to poll.
        deadline = time.monotonic() + 20
        batch = Batch()
        while not batch and time.monotonic() < deadline:
            batch = first.poll(max_events=2, timeout_s=0.2) or second.poll(
                max_events=2, timeout_s=0.2
            )
        with transaction(conn):
            store_offsets(log, conn, "g", batch)
        with pytest.raises(RetryLaterError, match="committed first"), transaction(conn):
            store_offsets(log, conn, "g", batch)
        first.close()
        rest = polled(second, 2)
        assert [event.offset for event in rest.events] == [2, 3]


def test_publishing_wakes_a_waiting_consumer(log: EventLog) -> None:
    with log.open_consumer("g", [ARRIVED]) as consumer:
        timer = threading.Timer(0.2, send, (log, ["a"]))
        timer.start()
        assert len(polled(consumer, 1)) == 1
        timer.join()


def test_an_event_exists_only_if_the_transaction_that_published_it_committed(
    log: EventLog, conn: Connection
) -> None:
    with pytest.raises(Interrupted):
        failing(conn, lambda: log.publish(conn, [Message(ARRIVED, "b", b"b")]))
    with transaction(conn):
        log.publish(conn, [Message(ARRIVED, "c", b"c", {"h": "1"})])
    if isinstance(log, KafkaLog):
        assert sum(log.end_offsets([ARRIVED]).values()) == 0
        assert forward(log, conn) == 1
        assert forward(log, conn) == 0
    (event,) = all_arrivals(log)
    assert (event.key, event.value, dict(event.headers)) == ("c", b"c", {"h": "1"})


def test_an_unknown_topic_is_refused(log: EventLog) -> None:
    with pytest.raises(UsageError, match="sigma init"):
        log.publish(None, [Message("nowhere", "k", b"")])


def all_arrivals(log: EventLog) -> list[Event]:
    events = []
    for partition, end in log.end_offsets([ARRIVED]).items():
        if end:
            events += log.read(*partition)
    return events


def arrive_and_reject(log: EventLog, conn: Connection, image_id: str) -> None:
    """Publish an arrival of an image, and its dead letter twice."""
    arrived = ImageArrived(image_id, f"file:///{image_id}.jpg")
    log.publish(None, [message(arrived, image_id)])
    (event,) = [event for event in all_arrivals(log) if event.key == image_id]
    refused = ImageRejected(
        image_id, f"file:///{image_id}.jpg", "truncated", "it is cut short", "intake"
    )
    with transaction(conn):
        reject_image(conn, refused)
    log.publish(None, [dead_letter(event, refused), dead_letter(event, refused)])
    assert trace_of(dead_letter(event, refused).headers) == trace_of(event.headers) != ""


def test_a_dead_letter_names_its_origin_and_replays_do_not_multiply(
    log: EventLog, conn: Connection
) -> None:
    arrive_and_reject(log, conn, "a")
    letters = dead_letters(log)
    assert len(letters) == 2
    for letter in letters:
        assert (letter.image_id, letter.code, letter.stage) == ("a", "truncated", "intake")
        assert (letter.origin_topic, letter.origin_offset) == (ARRIVED, 0)
    shown = show(log, letters[0].place)
    assert shown.headers["__connect.errors.exception.message"] == "it is cut short"
    assert shown.origin is not None
    assert '"image_id":"a"' in shown.origin.value
    for wrong in ("0:99", "7:0", "x"):
        with pytest.raises(UsageError, match="dead letter"):
            show(log, wrong)
    assert replay(log, conn) == Replay(1, 0)
    assert sum(log.end_offsets([ARRIVED]).values()) == 2
    # The copy fails again: that is still one original.
    copy = all_arrivals(log)[-1]
    log.publish(None, [dead_letter(copy, ImageRejected("a", "", "truncated", "still", "intake"))])
    assert replay(log, conn) == Replay(1, 0)
    conn.execute("DELETE FROM rejection")
    assert replay(log, conn) == Replay(0, 0)
    assert sum(log.end_offsets([REJECTED]).values()) == 3


def test_writers_at_once_leave_no_gap_in_postgres(database: str) -> None:
    log = PostgresLog(database)
    log.ensure_topics()

    def write() -> None:
        with connect(database) as own:
            for _ in range(20):
                log.publish(own, [Message(ARRIVED, "k", b"")])

    threads = [threading.Thread(target=write) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    ((topic, number),) = [partition for partition, end in log.end_offsets([ARRIVED]).items() if end]
    assert [event.offset for event in log.read(topic, number, limit=1000)] == list(range(100))
    log.close()
