"""The faust app against a real broker: each of faust's traps is set off, and no event is lost."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from schemas.events import ACCEPTED, ARRIVED, DELETED
from schemas.service_settings import KafkaSettings
from schemas.settings import Settings
from stream.log.event_log import Batch, Event, EventLog, Message, Partition
from stream.log.faust_app import build_app, run_app
from stream.log.kafka import KafkaLog
from stream.log.offsets import contiguous_batch, store_offsets
from workers.faust_handler import GROUP, FaustHandler
from workers.repository.connection import Connection, transaction
from workers.runtime.metrics import IntakeMetrics
from workers.runtime.services import Services


class HandlerError(Exception):
    """Stands for any failure in a handler."""


class Collector:
    """The intake in these tests: keeps what arrives, can fail or be slow. Its offsets are real."""

    def __init__(self, kafka: KafkaSettings, database: str) -> None:
        self.services = Services(Settings(kafka=kafka), database)
        self.seen: list[Event] = []
        self.metrics = IntakeMetrics()
        self.failures = 0
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def process(self, conn: Connection, log: EventLog, batch: Batch) -> None:
        self.began.set()
        self.go_on.wait(30)
        if self.failures:
            self.failures -= 1
            raise HandlerError
        with transaction(conn):
            store_offsets(log, conn, GROUP, batch)
        self.seen += batch.events

    def handler(self, stop: threading.Event) -> FaustHandler:
        return FaustHandler(
            self.process,
            self.services.open_log(),
            lambda: self.services.connect(GROUP),
            stop,
            self.metrics.lag.set,
        )

    @property
    def values(self) -> list[bytes]:
        return sorted(event.value for event in self.seen)


class RunningApp:
    """The app in a thread, from start to end of one process."""

    def __init__(self, kafka: KafkaSettings, folder: Path, collector: Collector) -> None:
        self.stop = threading.Event()
        self.started = threading.Event()
        self.counts: dict[str, int] = {}
        self._handler = collector.handler(self.stop)
        app = build_app(kafka, folder, self._handler, self.counts.__setitem__)
        self._thread = threading.Thread(
            target=run_app, args=(app, self.stop, self.started.set), daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._handler.close()


def send(kafka: KafkaSettings, topic: str, values: Sequence[bytes]) -> None:
    log = KafkaLog(kafka, "")
    log.publish(
        None, [Message(topic, f"key-{number}", value) for number, value in enumerate(values)]
    )
    log.close()


def until(condition: Callable[[], bool], timeout_s: float = 40) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def only_partition(log: EventLog) -> Partition:
    """The one partition of arrivals that has events."""
    (partition,) = [partition for partition, end in log.end_offsets([ARRIVED]).items() if end]
    return partition


VALUES = [str(number).encode() for number in range(40)]


@pytest.fixture
def collector(kafka: KafkaSettings, database: str) -> Collector:
    return Collector(kafka, database)


def test_events_of_both_topics_arrive_in_order_and_a_restart_repeats_none(
    kafka: KafkaSettings, collector: Collector, tmp_path: Path
) -> None:
    send(kafka, ARRIVED, VALUES)
    send(kafka, DELETED, [b"gone"])
    app = RunningApp(kafka, tmp_path, collector)
    until(lambda: len(collector.seen) == len(VALUES) + 1)
    assert app.started.is_set()
    app.end()
    assert collector.values == sorted([*VALUES, b"gone"])
    for partition in {event.topic_partition for event in collector.seen}:
        events = [event for event in collector.seen if event.topic_partition == partition]
        offsets = [event.offset for event in events]
        assert offsets == list(range(len(offsets)))
    app = RunningApp(kafka, tmp_path, collector)
    send(kafka, ARRIVED, [b"new"])
    until(lambda: len(collector.seen) > len(VALUES) + 1)
    app.end()
    assert collector.values == sorted([*VALUES, b"gone", b"new"])


def test_a_batch_that_failed_is_tried_again_although_faust_went_on(
    kafka: KafkaSettings, collector: Collector, tmp_path: Path
) -> None:
    collector.failures = 3
    send(kafka, ARRIVED, VALUES)
    app = RunningApp(kafka, tmp_path, collector)
    until(lambda: len(collector.seen) == len(VALUES))
    app.end()
    assert collector.values == sorted(VALUES)


def test_a_batch_that_failed_before_a_restart_is_worked_on_after_it(
    kafka: KafkaSettings, collector: Collector, tmp_path: Path
) -> None:
    collector.failures = 10**6
    send(kafka, ARRIVED, VALUES)
    app = RunningApp(kafka, tmp_path, collector)
    assert collector.began.wait(40)
    # Long enough for faust to commit events that it takes for handled.
    time.sleep(2.5)
    app.end()
    assert not collector.seen
    collector.failures = 0
    app = RunningApp(kafka, tmp_path, collector)
    until(lambda: len(collector.seen) == len(VALUES))
    app.end()
    assert collector.values == sorted(VALUES)


def test_a_stop_in_the_middle_of_a_batch_loses_and_doubles_nothing(
    kafka: KafkaSettings, collector: Collector, tmp_path: Path
) -> None:
    collector.go_on.clear()
    send(kafka, ARRIVED, VALUES)
    app = RunningApp(kafka, tmp_path, collector)
    assert collector.began.wait(40)
    app.stop.set()
    time.sleep(1)
    collector.go_on.set()
    app.end()
    app = RunningApp(kafka, tmp_path, collector)
    until(lambda: len(collector.seen) >= len(VALUES))
    app.end()
    assert collector.values == sorted(VALUES)


def test_bytes_that_no_codec_can_read_are_events_like_others(
    kafka: KafkaSettings, collector: Collector, tmp_path: Path
) -> None:
    values = [b"\xff\xfe\x00", b"", b"{", b"[" * 5000, b"good"]
    send(kafka, ARRIVED, values)
    app = RunningApp(kafka, tmp_path, collector)
    until(lambda: len(collector.seen) == len(values))
    app.end()
    assert collector.values == sorted(values)


def test_events_that_a_client_skipped_are_read_from_the_log(kafka: KafkaSettings) -> None:
    log = KafkaLog(kafka, "")
    log.publish(None, [Message(ARRIVED, "same", value) for value in VALUES[:10]])
    partition = only_partition(log)
    events = log.read(*partition)

    def offsets(done: int, *delivered: int) -> list[int]:
        batch = contiguous_batch(log, {partition: done}, [events[offset] for offset in delivered])
        covered = [event.offset for event in batch.events]
        assert batch.positions == ({partition: (done, covered[-1] + 1)} if covered else {})
        return covered

    assert offsets(3, 7, 8, 9) == list(range(3, 10)), "a gap before what was delivered"
    assert offsets(3, 3, 4, 8) == list(range(3, 9)), "a hole inside"
    assert offsets(4, 4, 4) == [4], "one event twice"
    assert offsets(4, 6, 5, 4) == [4, 5, 6], "another order"
    assert offsets(4, 4, 6, 6) == [4, 5, 6], "as many events as offsets, and one missing"
    assert offsets(8, *range(10)) == [8, 9], "some of it committed"
    assert offsets(10, *range(10)) == [], "all of it committed"
    log.close()


def test_a_long_gap_is_worked_on_in_parts(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.log.offsets._MAX_REREAD_EVENTS", 4)
    log = KafkaLog(kafka, "")
    log.publish(None, [Message(ARRIVED, "same", value) for value in VALUES[:10]])
    partition = only_partition(log)
    last = log.read(*partition, first=9)
    done = 0
    seen: list[int] = []
    while batch := contiguous_batch(log, {partition: done}, last):
        assert len(batch) <= 4
        seen += [event.offset for event in batch.events]
        done = batch.positions[partition][1]
    assert seen == list(range(10))
    log.close()


def test_verdicts_are_counted_by_the_minute(
    kafka: KafkaSettings, collector: Collector, tmp_path: Path
) -> None:
    app = RunningApp(kafka, tmp_path, collector)
    send(kafka, ACCEPTED, [b"{}"] * 3)
    until(lambda: "accepted" in app.counts)
    app.end()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_credentials_reach_faust(mechanism: str, collector: Collector, tmp_path: Path) -> None:
    settings = KafkaSettings(
        ("127.0.0.1:9",), username="me", password="secret", mechanism=mechanism, tls=True
    )
    handler = collector.handler(threading.Event())
    app = build_app(settings, tmp_path, handler, lambda *_: None)
    handler.close()
    assert app.conf.broker_credentials.mechanism.value == mechanism
    assert "secret" not in repr(settings)
