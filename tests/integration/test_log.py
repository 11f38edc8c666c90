"""The event log in Postgres: order, groups, offsets that commit with the work, dead letters."""

import threading
from collections.abc import Callable, Iterator

import pytest

from schemas.errors import RetryLaterError, UsageError
from schemas.events import ARRIVED, REJECTED, ImageArrived, ImageRejected
from stream.dead_letters import dead_letter, dead_letters, replay
from stream.log import Message, message
from stream.offsets import lag, rewind, store_offsets
from stream.postgres_log import PostgresLog
from workers.repository.connection import Connection, connect, transaction


@pytest.fixture
def log(database: str) -> Iterator[PostgresLog]:
    made = PostgresLog(database)
    made.ensure_topics()
    yield made
    made.close()


class Interrupted(Exception):
    """In place of whatever may go wrong in the middle of a transaction."""


def failing(conn: Connection, work: Callable[[], None]) -> None:
    with transaction(conn):
        work()
        raise Interrupted


def send(log: PostgresLog, names: list[str]) -> None:
    log.publish(None, [Message(ARRIVED, name, name.encode()) for name in names])


def test_events_of_a_key_keep_their_order_and_every_group_sees_all(log: PostgresLog) -> None:
    names = [f"{key}" for _ in range(5) for key in "abcdef"]
    log.publish(None, [Message(ARRIVED, key, str(number).encode()) for number, key in enumerate(names)])
    for group in ("one", "two"):
        with log.consumer(group, [ARRIVED]) as consumer:
            batch = consumer.poll(max_events=100)
        assert len(batch) == 30
        for key in "abcdef":
            values = [int(event.value) for event in batch.events if event.key == key]
            assert values == sorted(values)


def test_without_a_commit_events_come_again_and_with_one_they_do_not(log: PostgresLog, conn: Connection) -> None:
    send(log, ["a", "b", "c"])
    with log.consumer("g", [ARRIVED]) as consumer:
        first = consumer.poll()
        assert consumer.poll().events == first.events
        with transaction(conn):
            store_offsets(conn, "g", first)
        assert not consumer.poll(timeout_s=0.05)
    assert lag(conn, "g", [ARRIVED]) == 0
    rewind(conn, "g", ARRIVED)
    with log.consumer("g", [ARRIVED]) as consumer:
        assert consumer.poll().events == first.events


def test_offsets_vanish_with_the_transaction_that_failed(log: PostgresLog, conn: Connection) -> None:
    send(log, ["a"])
    with log.consumer("g", [ARRIVED]) as consumer:
        batch = consumer.poll()
        with pytest.raises(Interrupted):
            failing(conn, lambda: store_offsets(conn, "g", batch))
        assert consumer.poll().events == batch.events


def test_two_members_never_work_on_one_partition_and_a_late_commit_is_refused(log: PostgresLog, conn: Connection) -> None:
    send(log, ["same"] * 4)
    with log.consumer("g", [ARRIVED]) as one, log.consumer("g", [ARRIVED]) as two:
        batch = one.poll(max_events=2)
        assert not two.poll(timeout_s=0.05)
        one.close()
        again = two.poll(max_events=2, timeout_s=5)
        assert again.events == batch.events
        with transaction(conn):
            store_offsets(conn, "g", again)
        with pytest.raises(RetryLaterError, match="committed first"), transaction(conn):
            store_offsets(conn, "g", batch)


def test_publishing_wakes_a_waiting_consumer_and_joins_the_callers_transaction(log: PostgresLog, conn: Connection) -> None:
    with log.consumer("g", [ARRIVED]) as consumer:
        timer = threading.Timer(0.2, send, (log, ["a"]))
        timer.start()
        assert len(consumer.poll(timeout_s=5)) == 1
        timer.join()
        with pytest.raises(Interrupted):
            failing(conn, lambda: log.publish(conn, [Message(ARRIVED, "b", b"b")]))
    assert sum(log.end_offsets([ARRIVED]).values()) == 1


def test_writers_at_once_leave_no_gap(log: PostgresLog, database: str) -> None:
    def write() -> None:
        with connect(database) as own:
            for _ in range(20):
                log.publish(own, [Message(ARRIVED, "k", b"")])

    threads = [threading.Thread(target=write) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    ((topic, partition),) = [place for place, end in log.end_offsets([ARRIVED]).items() if end]
    assert [event.offset for event in log.read(topic, partition, limit=1000)] == list(range(100))


def test_an_unknown_topic_is_refused(log: PostgresLog) -> None:
    with pytest.raises(UsageError, match="sigma init"):
        log.publish(None, [Message("nowhere", "k", b"")])


def test_a_dead_letter_names_its_origin_and_replays_it_once(log: PostgresLog, conn: Connection) -> None:
    arrived = ImageArrived("a", "file:///a.jpg")
    log.publish(None, [message(arrived, "a")])
    with log.consumer("g", [ARRIVED]) as consumer:
        (event,) = consumer.poll().events
    refused = ImageRejected("a", "file:///a.jpg", "truncated", "it is cut short", "intake")
    log.publish(None, [dead_letter(event, refused), dead_letter(event, refused)])
    letters = dead_letters(conn)
    assert {(one.image_id, one.code, one.stage, one.origin_topic, one.origin_offset) for one in letters} == {
        ("a", "truncated", "intake", ARRIVED, 0)
    }
    assert replay(log) == 1
    assert sum(log.end_offsets([ARRIVED]).values()) == 2
    assert sum(log.end_offsets([REJECTED]).values()) == 2
