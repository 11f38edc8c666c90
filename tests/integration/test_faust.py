"""The faust app against a real broker: each of faust's traps is stepped on, and nothing is lost by it."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest

from schemas.events import ACCEPTED, ARRIVED, DELETED
from schemas.settings import KafkaSettings, Settings
from stream.faust_app import application, run
from stream.kafka_log import KafkaLog
from stream.log import Batch, Event, EventLog, Message
from stream.offsets import store_offsets
from workers.intake import GROUP, Delivered, Intake, pending
from workers.metrics import IntakeMetrics
from workers.repository.connection import Connection, transaction
from workers.services import Services


class Broken(Exception):
    """In place of whatever may go wrong in a handler."""


class Collector:
    """Stands behind faust: keeps what comes, and can fail or be slow. Its offsets are real."""

    def __init__(self, kafka: KafkaSettings, database: str) -> None:
        self.services = Services(Settings(kafka=kafka), database)
        self.seen: list[Event] = []
        self.metrics = IntakeMetrics()
        self.failures = 0
        self.began, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def process(self, conn: Connection, log: EventLog, batch: Batch) -> None:
        self.began.set()
        self.go_on.wait(30)
        if self.failures:
            self.failures -= 1
            raise Broken
        with transaction(conn):
            store_offsets(log, conn, GROUP, batch)
        self.seen += batch.events

    @property
    def values(self) -> list[bytes]:
        return sorted(event.value for event in self.seen)


class App:
    """One life of the app, in a thread."""

    def __init__(self, kafka: KafkaSettings, folder: Path, collector: Collector) -> None:
        self.stop = threading.Event()
        self.counts: dict[str, int] = {}
        self._handler = Delivered(cast(Intake, collector), self.stop)
        app = application(kafka, folder, self._handler, self.counts.__setitem__)
        self._thread = threading.Thread(target=run, args=(app, self.stop), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._handler.close()


def send(kafka: KafkaSettings, topic: str, values: Sequence[bytes]) -> None:
    log = KafkaLog(kafka, "")
    log.publish(None, [Message(topic, f"key-{number}", value) for number, value in enumerate(values)])
    log.close()


def until(found: Callable[[], bool], timeout_s: float = 40) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


VALUES = [str(number).encode() for number in range(40)]


@pytest.fixture
def collector(kafka: KafkaSettings, database: str) -> Collector:
    return Collector(kafka, database)


def test_events_of_both_topics_arrive_in_order_and_a_new_life_repeats_none(
    kafka: KafkaSettings, collector: Collector, tmp_path: Path
) -> None:
    send(kafka, ARRIVED, VALUES)
    send(kafka, DELETED, [b"gone"])
    app = App(kafka, tmp_path, collector)
    until(lambda: len(collector.seen) == len(VALUES) + 1)
    app.end()
    assert collector.values == sorted([*VALUES, b"gone"])
    for place in {event.place for event in collector.seen}:
        offsets = [event.offset for event in collector.seen if event.place == place]
        assert offsets == list(range(len(offsets)))
    app = App(kafka, tmp_path, collector)
    send(kafka, ARRIVED, [b"new"])
    until(lambda: len(collector.seen) > len(VALUES) + 1)
    app.end()
    assert collector.values == sorted([*VALUES, b"gone", b"new"])


def test_a_batch_that_failed_is_tried_again_although_faust_went_on(kafka: KafkaSettings, collector: Collector, tmp_path: Path) -> None:
    collector.failures = 3
    send(kafka, ARRIVED, VALUES)
    app = App(kafka, tmp_path, collector)
    until(lambda: len(collector.seen) == len(VALUES))
    app.end()
    assert collector.values == sorted(VALUES)


def test_a_batch_that_failed_in_a_life_that_ended_is_worked_on_in_the_next(
    kafka: KafkaSettings, collector: Collector, tmp_path: Path
) -> None:
    collector.failures = 10**6
    send(kafka, ARRIVED, VALUES)
    app = App(kafka, tmp_path, collector)
    assert collector.began.wait(40)
    # Long enough for faust to commit what it takes for done.
    time.sleep(2.5)
    app.end()
    assert not collector.seen
    collector.failures = 0
    app = App(kafka, tmp_path, collector)
    until(lambda: len(collector.seen) == len(VALUES))
    app.end()
    assert collector.values == sorted(VALUES)


def test_a_stop_in_the_middle_of_a_batch_loses_and_doubles_nothing(kafka: KafkaSettings, collector: Collector, tmp_path: Path) -> None:
    collector.go_on.clear()
    send(kafka, ARRIVED, VALUES)
    app = App(kafka, tmp_path, collector)
    assert collector.began.wait(40)
    app.stop.set()
    time.sleep(1)
    collector.go_on.set()
    app.end()
    app = App(kafka, tmp_path, collector)
    until(lambda: len(collector.seen) >= len(VALUES))
    app.end()
    assert collector.values == sorted(VALUES)


def test_bytes_that_no_codec_can_read_are_events_like_others(kafka: KafkaSettings, collector: Collector, tmp_path: Path) -> None:
    values = [b"\xff\xfe\x00", b"", b"{", b"[" * 5000, b"good"]
    send(kafka, ARRIVED, values)
    app = App(kafka, tmp_path, collector)
    until(lambda: len(collector.seen) == len(values))
    app.end()
    assert collector.values == sorted(values)


def test_what_faust_passed_over_is_read_from_the_log(kafka: KafkaSettings) -> None:
    log = KafkaLog(kafka, "")
    log.publish(None, [Message(ARRIVED, "same", value) for value in VALUES[:10]])
    ((place, _),) = [(place, end) for place, end in log.end_offsets([ARRIVED]).items() if end]
    events = log.read(*place)
    batch = pending(log, {place: 3}, events[7:])
    assert [event.offset for event in batch.events] == list(range(3, 10))
    assert batch.positions == {place: (3, 10)}
    assert not pending(log, {place: 10}, events)
    assert [event.offset for event in pending(log, {place: 8}, events).events] == [8, 9]
    log.close()


def test_verdicts_are_counted_by_the_minute(kafka: KafkaSettings, collector: Collector, tmp_path: Path) -> None:
    app = App(kafka, tmp_path, collector)
    send(kafka, ACCEPTED, [b"{}"] * 3)
    until(lambda: "accepted" in app.counts)
    app.end()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_credentials_reach_faust(mechanism: str, collector: Collector, tmp_path: Path) -> None:
    settings = KafkaSettings(("127.0.0.1:9",), username="me", password="secret", mechanism=mechanism, tls=True)
    handler = Delivered(cast(Intake, collector), threading.Event())
    app = application(settings, tmp_path, handler, lambda *_: None)
    handler.close()
    assert app.conf.broker_credentials.mechanism.value == mechanism
    assert "secret" not in repr(settings)
