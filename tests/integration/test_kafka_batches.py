"""What foreign producers do to batches in Kafka: compress, abort, outgrow; and what disks do."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from kafka import KafkaProducer, TopicPartition

from schemas.errors import RejectInputError
from schemas.events import ARRIVED, INDEXED, REJECTED
from schemas.service_settings import KafkaSettings
from schemas.settings import Settings
from stream.log.dead_letters import Replay, dead_letters, replay
from stream.log.event_log import Batch, Event, EventLog, Message, Partition, record_of
from stream.log.faust_app import build_app, run_app
from stream.log.kafka import KafkaLog
from stream.log.kafka_consumer import KafkaGroupConsumer
from stream.log.offsets import committed, contiguous_batch, lag, store_offsets
from stream.log.outbox import forward, outbox_size
from tests.batch_damage import (
    LENGTH,
    LENGTH_END,
    Damage,
    flip_content,
    lie_about_a_value,
    name_codec_7,
)
from workers.faust_handler import GROUP, FaustHandler
from workers.intake import JudgedEvent, commit, read_record
from workers.repository.connection import Connection, transaction
from workers.runtime.services import Services

CODECS = ("gzip", "snappy", "lz4", "zstd")


@pytest.fixture
def log(kafka: KafkaSettings, database: str) -> Iterator[KafkaLog]:
    made = KafkaLog(kafka, database)
    yield made
    made.close()


def produce(
    kafka: KafkaSettings,
    values: Sequence[bytes],
    *,
    partition: int = 0,
    codec: str | None = None,
) -> None:
    """Publish in one batch, if it fits."""
    producer = KafkaProducer(
        bootstrap_servers=list(kafka.bootstrap), compression_type=codec, linger_ms=50
    )
    sent = [producer.send(ARRIVED, value, partition=partition) for value in values]
    for delivery in sent:
        delivery.get(20)
    producer.close()


def transact(kafka: KafkaSettings, name: str, values: Sequence[bytes], *, commit: bool) -> None:
    """Publish in a transaction, to partition 0."""
    producer = KafkaProducer(bootstrap_servers=list(kafka.bootstrap), transactional_id=name)
    producer.init_transactions()
    producer.begin_transaction()
    for value in values:
        producer.send(ARRIVED, value, partition=0).get(20)
    if commit:
        producer.commit_transaction()
    else:
        producer.abort_transaction()
    producer.close()


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def consumed(log: EventLog, conn: Connection, group: str = "g") -> list[Event]:
    """Consume and commit as a worker does, until the group has no lag."""
    events: list[Event] = []
    deadline = time.monotonic() + 60
    with log.open_consumer(group, [ARRIVED]) as consumer:
        while lag(log, conn, group, [ARRIVED]):
            assert time.monotonic() < deadline, lag(log, conn, group, [ARRIVED])
            batch = consumer.poll(max_events=100, timeout_s=0.5)
            if batch:
                with transaction(conn):
                    store_offsets(log, conn, group, batch)
                events += batch.events
    return events


class FaustIntake:
    """The faust app in a thread with the real handler; keeps what it is given."""

    def __init__(self, kafka: KafkaSettings, database: str, folder: Path) -> None:
        self.services = Services(Settings(kafka=kafka), database)
        self.stop = threading.Event()
        self.seen: list[Event] = []
        self.lags: list[float] = []
        self._handler = FaustHandler(
            self._process,
            self.services.open_log(),
            lambda: self.services.connect(GROUP),
            self.stop,
            self.lags.append,
        )
        app = build_app(kafka, folder, self._handler, lambda verdict, count: None)
        self._thread = threading.Thread(
            target=run_app, args=(app, self.stop, lambda: None), daemon=True
        )
        self._thread.start()

    def _process(self, conn: Connection, log: EventLog, batch: Batch) -> None:
        with transaction(conn):
            store_offsets(log, conn, GROUP, batch)
        self.seen += batch.events

    @property
    def values(self) -> list[bytes]:
        return sorted(event.value for event in self.seen)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._handler.close()


@pytest.fixture
def faust_intake(kafka: KafkaSettings, database: str, tmp_path: Path) -> Iterator[FaustIntake]:
    made = FaustIntake(kafka, database, tmp_path)
    yield made
    made.end()


def test_batches_of_every_codec_are_read(
    kafka: KafkaSettings, log: KafkaLog, conn: Connection, faust_intake: FaustIntake
) -> None:
    values = []
    for codec in CODECS:
        batch = [f"{codec} {number}".encode() for number in range(50)]
        # Beyond 1 MiB once unpacked, as only a compressed batch can be.
        batch += [codec.encode() + b"x" * 700_000, codec.encode() + b"y" * 700_000]
        produce(kafka, batch, codec=codec)
        values += batch
    assert sorted(event.value for event in consumed(log, conn)) == sorted(values)
    until(lambda: len(faust_intake.seen) == len(values))
    assert faust_intake.values == sorted(values)


def test_events_of_aborted_transactions_are_never_read(
    kafka: KafkaSettings, log: KafkaLog, conn: Connection, faust_intake: FaustIntake
) -> None:
    transact(kafka, "one", [b"aborted 1", b"aborted 2"], commit=False)
    produce(kafka, [b"plain"])
    transact(kafka, "two", [b"committed"], commit=True)
    transact(kafka, "three", [b"aborted 3"], commit=False)
    good = [b"committed", b"plain"]
    # The partition ends with the marker of an aborted transaction, and still nothing is missing.
    assert sorted(event.value for event in consumed(log, conn)) == good
    assert [event.value for event in log.read(ARRIVED, 0)] == [b"plain", b"committed"]
    until(lambda: lag(log, conn, GROUP, [ARRIVED]) == 0)
    assert faust_intake.values == good
    assert committed(log, conn, GROUP, [ARRIVED]) == committed(log, conn, "g", [ARRIVED])


def test_a_partition_with_nothing_but_aborted_events_has_no_lag(
    kafka: KafkaSettings, log: KafkaLog, conn: Connection, faust_intake: FaustIntake
) -> None:
    transact(kafka, "one", [b"aborted"] * 20, commit=False)
    assert log.end_offsets([ARRIVED])[ARRIVED, 0] == 21
    assert consumed(log, conn) == []
    until(lambda: lag(log, conn, GROUP, [ARRIVED]) == 0)
    assert faust_intake.seen == []


def test_what_a_client_brought_beyond_a_long_gap_is_not_waited_for(
    kafka: KafkaSettings, log: KafkaLog, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.log.offsets._MAX_REREAD_EVENTS", 4)
    values = [str(number).encode() for number in range(10)]
    produce(kafka, values)
    seen: list[bytes] = []

    def work(consumer: KafkaGroupConsumer, amount: int) -> None:
        batch = consumer.poll(max_events=amount, timeout_s=0.5)
        with transaction(conn):
            store_offsets(log, conn, "g", batch)
        seen.extend(event.value for event in batch.events)

    with log.open_consumer("g", [ARRIVED]) as consumer:
        while not seen:
            work(consumer, 1)
        # As after a rebalance that dropped what was fetched.
        consumer._consumer.seek(TopicPartition(ARRIVED, 0), 8)
        deadline = time.monotonic() + 20
        while len(seen) < len(values) and time.monotonic() < deadline:
            work(consumer, 100)
    assert seen == values


@dataclass(frozen=True)
class DamagedLog:
    """Partition 0 as the broker keeps it, with batches that were damaged and can be repaired."""

    file: Path
    good: bytes

    def write(self, content: bytes) -> None:
        # In place: the broker keeps the file open.
        with self.file.open("r+b") as disk:
            disk.write(content)

    def damage(self, value: bytes, damage: Damage) -> None:
        """Damage the batch that has a value."""
        content = bytearray(self.file.read_bytes())
        begin = 0
        while begin < len(content):
            length = int.from_bytes(content[begin + LENGTH : begin + LENGTH_END], "big")
            end = begin + LENGTH_END + length
            if value in content[begin:end]:
                batch = content[begin:end]
                damage(batch)
                content[begin:end] = batch
            begin = end
        self.write(content)

    def repair(self) -> None:
        self.write(self.good)


@pytest.fixture
def damaged(request: pytest.FixtureRequest, kafka: KafkaSettings) -> DamagedLog:
    """Partition 0: good events, and four batches of which each is wrong in another way.

    1: ten good ones.
    """
    if not os.environ.get("SIGMA_TEST_KAFKA_BOOTSTRAP"):
        data = request.getfixturevalue("kafka_server").data
    elif "SIGMA_TEST_KAFKA_DATA" in os.environ:
        data = Path(os.environ["SIGMA_TEST_KAFKA_DATA"])
    else:
        pytest.skip("the broker's disk is out of reach: name it in SIGMA_TEST_KAFKA_DATA")
    produce(kafka, [f"before {number}".encode() for number in range(10)])
    produce(kafka, [f"value flipped {number}".encode() for number in range(7)])
    produce(kafka, [b"between"])
    produce(kafka, [f"value packed {number}".encode() for number in range(3)])
    produce(kafka, [f"value lying {number}".encode() for number in range(2)])
    produce(kafka, [f"behind {number}".encode() for number in range(10)])
    transact(kafka, "damaged", [b"value of a transaction"], commit=True)
    produce(kafka, [f"beside {number}".encode() for number in range(10)], partition=1)
    file = data / f"{ARRIVED}-0" / f"{0:020}.log"
    made = DamagedLog(file, file.read_bytes())
    made.damage(b"value flipped", flip_content)
    made.damage(b"value packed", name_codec_7)
    made.damage(b"value lying", lie_about_a_value)
    made.damage(b"value of a transaction", flip_content)
    return made


def good_values() -> list[bytes]:
    names = ("before", "behind", "beside")
    values = [f"{name} {number}".encode() for name in names for number in range(10)]
    return sorted([*values, b"between"])


# First and last offset of the batches that are wrong.
BAD = [(10, 16), (18, 20), (21, 22), (33, 33)]


def require_named(events: Sequence[Event]) -> None:
    """One event stands for each damaged batch, and names it."""
    spans = []
    for event in events:
        if event.unreadable is not None:
            spans.append((event.unreadable.first, event.offset))
            with pytest.raises(RejectInputError, match=r"offsets of sigma\.images\.arrived/0 from"):
                record_of(event)
            assert event.key == f"{ARRIVED}/0/{event.unreadable.first}"
    assert spans == BAD
    assert sorted(event.value for event in events if event.unreadable is None) == good_values()


def test_batches_that_cannot_be_read_are_named_and_passed(
    damaged: DamagedLog, log: KafkaLog, conn: Connection
) -> None:
    events = consumed(log, conn)
    require_named(events)
    # What a client skipped is read from the log: up to each bad batch, it, and on behind it.
    again: list[Event] = []
    done = 5
    while batch := contiguous_batch(log, {(ARRIVED, 0): done}, [events[-1]]):
        again += batch.events
        done = batch.positions[ARRIVED, 0][1]
    behind = [event for event in events if event.partition == 0 and event.offset >= 5]
    assert [event.offset for event in again] == [event.offset for event in behind]
    assert [event.value for event in again] == [event.value for event in behind]


def test_a_batch_that_can_be_read_later_is_replayed_as_a_whole(
    damaged: DamagedLog, log: KafkaLog, conn: Connection
) -> None:
    bad = [event for event in log.read(ARRIVED, 0) if event.unreadable is not None]
    with transaction(conn):
        commit(conn, log, [JudgedEvent(event, read_record(event)) for event in bad])
    forward(log, conn)
    letters = dead_letters(log)
    assert {letter.code for letter in letters} == {"unreadable-batch"}
    assert {letter.image_id for letter in letters} == {f"{ARRIVED}/0/{first}" for first, _ in BAD}
    assert replay(log, conn) == Replay(0, len(BAD))
    damaged.repair()
    assert replay(log, conn) == Replay(7 + 3 + 2 + 1, 0)
    assert replay(log, conn) == Replay(0, 0)


def test_faust_goes_on_past_batches_that_cannot_be_read(
    kafka: KafkaSettings,
    damaged: DamagedLog,
    log: KafkaLog,
    conn: Connection,
    faust_intake: FaustIntake,
) -> None:
    until(lambda: len(faust_intake.seen) >= len(good_values()) + len(BAD))
    require_named(sorted(faust_intake.seen, key=lambda event: (event.partition, event.offset)))
    assert faust_intake.alive
    produce(kafka, [b"new"])
    until(lambda: b"new" in faust_intake.values)
    until(lambda: lag(log, conn, GROUP, [ARRIVED]) == 0)


def test_events_behind_an_open_transaction_wait_and_that_is_told(
    kafka: KafkaSettings,
    log: KafkaLog,
    conn: Connection,
    faust_intake: FaustIntake,
    capsys: pytest.CaptureFixture[str],
) -> None:
    producer = KafkaProducer(bootstrap_servers=list(kafka.bootstrap), transactional_id="open")
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(ARRIVED, b"held", partition=0).get(20)
    produce(kafka, [b"behind"])
    assert log.read(ARRIVED, 0) == []
    with log.open_consumer("g", [ARRIVED]) as consumer:
        assert not consumer.poll(timeout_s=1)
    assert lag(log, conn, "g", [ARRIVED]) == 2
    until(lambda: 2 in faust_intake.lags)
    told = ""
    while "wait for a producer to end its transaction" not in told:
        until(lambda: bool(faust_intake.lags))
        # A test before may have run a command in this process, whose logs go to standard error.
        written = capsys.readouterr()
        told += written.out + written.err
    assert faust_intake.seen == []
    producer.commit_transaction()
    producer.close()
    until(lambda: faust_intake.values == [b"behind", b"held"])
    assert sorted(event.value for event in consumed(log, conn)) == [b"behind", b"held"]


def test_an_event_that_kafka_never_takes_does_not_hold_up_the_outbox(
    kafka: KafkaSettings, log: KafkaLog, conn: Connection
) -> None:
    with pytest.raises(RejectInputError, match="size"):
        log.publish(None, [Message(INDEXED, "large", b"x" * 2_000_000)])
    with transaction(conn):
        log.publish(conn, [Message(INDEXED, f"small {number}", b"{}") for number in range(5)])
        log.publish(conn, [Message(INDEXED, "large", b"x" * 2_000_000)])
        log.publish(conn, [Message(INDEXED, "last", b"{}")])
    while forward(log, conn):
        pass
    assert outbox_size(conn) == 0
    places: list[Partition] = [place for place, end in log.end_offsets([INDEXED]).items() if end]
    keys = {event.key for place in places for event in log.read(*place)}
    assert keys == {*(f"small {number}" for number in range(5)), "last"}
    (letter,) = dead_letters(log)
    assert (letter.image_id, letter.code) == ("large", "too-large")
    assert log.end_offsets([REJECTED]) == {(REJECTED, 0): 1}
