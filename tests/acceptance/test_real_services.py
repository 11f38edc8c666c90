"""Real services and what happens to them: bad events, outages, workers that are killed."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ops.bench.chaos import ChaosConfig, chaos
from ops.bench.fleet import ROLES, Fleet, open_fleet
from ops.bench.publisher import Publisher, arrival_messages, noise_arrivals
from ops.bench.settling import StallClock, settle, warm_up
from schemas.errors import RetryLaterError
from schemas.events import ARRIVED, REJECTED, ImageArrived
from schemas.service_settings import KafkaSettings, S3Settings
from stream.log.dead_letters import DeadLetter, dead_letters, replay, show
from stream.log.event_log import EventLog, Message, message
from tests.services.servers import KafkaServer, S3Server
from workers.repository.connection import Connection
from workers.repository.counters import recount, totals

# How long a service is unavailable; 30 for the full measure.
OUTAGE_S = float(os.environ.get("SIGMA_TEST_OUTAGE_S", "6"))

WARM_UP_EVENTS = 64

# Longest wait for the workers to catch up after an outage.
CATCH_UP_TIMEOUT_S = 90.0

# Arrivals that are no valid event.
UNPARSABLE = {
    "no-json": b"{",
    "no-object": b"[1]",
    "no-uri": b'{"image_id": "x"}',
    "no-text": b"\xff\xfe",
}

# Addresses that no image may be read from.
FORBIDDEN = {
    "private": "https://127.0.0.1/a.png",
    "outside": "file:///etc/hostname",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("churn", [False, True], ids=["killed", "come and go"])
def test_workers_that_die_lose_and_double_nothing(kafka: KafkaSettings, churn: bool) -> None:
    config = ChaosConfig(
        events=800,
        disturbances=8,
        probability=0.5,
        churn=churn,
        seed=4,
        kafka=kafka.bootstrap[0],
    )
    result = chaos(config)
    audit = result.audit
    assert (audit.lost, audit.doubled, audit.indexed) == (0, 0, 800)
    assert audit.checksum == result.undisturbed_checksum
    assert audit.counters_agree
    assert result.run.settled


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be decoded until it is repaired."""

    path: Path
    good: bytes

    @property
    def image_id(self) -> str:
        return self.path.stem

    def repair(self) -> None:
        self.path.write_bytes(self.good)


class BadEvents:
    """Ten kinds of events that cannot be used, two of each."""

    def __init__(self, folder: Path, spare: list[ImageArrived]) -> None:
        """Take the repaired contents of the bad files from eight spare images."""
        self.files: list[BadFile] = []
        self.messages: dict[str, Message] = {}
        for turn in range(2):
            good = [_content(event) for event in spare[turn * 4 : turn * 4 + 4]]
            self._add_files(folder, turn, good)
            for name, value in UNPARSABLE.items():
                self._add(Message(ARRIVED, f"{name}-{turn}", value))
            for name, uri in FORBIDDEN.items():
                self._add_arrival(f"{name}-{turn}", uri)

    @property
    def repairable(self) -> set[str]:
        """Image ids of those whose file is at fault."""
        return {file.image_id for file in self.files}

    def repair(self) -> None:
        for file in self.files:
            file.repair()

    def _add_files(self, folder: Path, turn: int, good: list[bytes]) -> None:
        half = len(good[0]) // 2
        contents = {"cut": good[0][:half], "empty": b"", "text": b"words", "missing": None}
        for (name, bad), repaired in zip(contents.items(), good, strict=True):
            file = BadFile(folder / f"{name}-{turn}.png", repaired)
            if bad is not None:
                file.path.write_bytes(bad)
            self.files.append(file)
            self._add_arrival(file.image_id, file.path.as_uri())

    def _add_arrival(self, image_id: str, uri: str) -> None:
        self._add(message(ImageArrived(image_id, uri), image_id))

    def _add(self, bad: Message) -> None:
        self.messages[bad.key] = bad


def _content(event: ImageArrived) -> bytes:
    return Path(event.uri.removeprefix("file://")).read_bytes()


@pytest.mark.timeout(600)
def test_bad_events_go_to_the_dead_letters_and_are_indexed_when_repaired(
    kafka: KafkaSettings,
) -> None:
    count = 1980
    with open_fleet(kafka.bootstrap[0]) as fleet:
        arrivals = noise_arrivals(fleet.folder, count + WARM_UP_EVENTS + 8, 1)
        bad = BadEvents(fleet.folder, arrivals[-8:])
        log = fleet.services.open_log()
        with fleet.services.connect("test") as conn:
            start_workers(fleet)
            warm_up(fleet, log, conn, arrivals[:WARM_UP_EVENTS])
            good = arrival_messages(arrivals[WARM_UP_EVENTS : WARM_UP_EVENTS + count])
            log.publish(None, interspersed(good, list(bad.messages.values())))
            stall = StallClock()
            assert settle(fleet, log, conn, WARM_UP_EVENTS + count, 120, stall)
            print(f"longest time without an image indexed: {stall.longest_s:.2f} s")
            letters = dead_letters(log)
            assert sorted(letter.image_id for letter in letters) == sorted(bad.messages)
            for letter in letters:
                assert_says_what_and_where(log, letter)
            bad.repair()
            assert replay(log, conn).replayed == len(bad.messages)
            images = WARM_UP_EVENTS + count + len(bad.repairable)
            assert settle(fleet, log, conn, images, 60)
            refused = rejected_images(conn)
            assert refused == bad.messages.keys() - bad.repairable
            assert rejected_events(log) == len(bad.messages) + len(refused)
            # Again, with nothing repaired: the same few, and no more of them.
            assert replay(log, conn).replayed == len(refused)
            assert settle(fleet, log, conn, images, 60)
        log.close()


def start_workers(fleet: Fleet) -> None:
    for role in ROLES:
        fleet.start(role)


def interspersed(good: list[Message], bad: list[Message]) -> list[Message]:
    """The good messages with the bad ones spread between them."""
    flow = list(good)
    step = len(good) // len(bad)
    for number, bad_message in enumerate(bad):
        flow.insert(number * (step + 1), bad_message)
    return flow


def assert_says_what_and_where(log: EventLog, letter: DeadLetter) -> None:
    """A dead letter has a reason, and the place of its original in the headers of Kafka Connect."""
    assert letter.origin_topic == ARRIVED
    content = show(log, letter.place)
    assert content.origin is not None
    assert content.origin.key == letter.image_id
    for name in ("stage", "exception.class.name", "exception.message"):
        assert f"__connect.errors.{name}" in content.headers
    assert letter.reason
    assert letter.code


def rejected_images(conn: Connection) -> set[str]:
    rows = conn.execute("SELECT image_id FROM rejection").fetchall()
    return {image_id for (image_id,) in rows}


def rejected_events(log: EventLog) -> int:
    return sum(log.end_offsets([REJECTED]).values())


# Makes a service unavailable for `OUTAGE_S`.
Interrupt = Callable[[pytest.FixtureRequest, Fleet], None]


def interrupt_kafka(request: pytest.FixtureRequest, fleet: Fleet) -> None:
    server: KafkaServer = request.getfixturevalue("kafka_server")
    server.stop(signal.SIGTERM)
    time.sleep(OUTAGE_S)
    server.start()


def interrupt_s3(request: pytest.FixtureRequest, fleet: Fleet) -> None:
    server: S3Server = request.getfixturevalue("s3_server")
    server.stop()
    time.sleep(OUTAGE_S)
    server.start()


def interrupt_postgres(request: pytest.FixtureRequest, fleet: Fleet) -> None:
    fleet.restart_database(OUTAGE_S)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("interrupt", [interrupt_kafka, interrupt_postgres, interrupt_s3])
def test_an_unavailable_service_loses_nothing_and_needs_no_operator(
    request: pytest.FixtureRequest,
    kafka_server: KafkaServer,
    s3_server: S3Server,
    kafka: KafkaSettings,
    s3: S3Settings,
    interrupt: Interrupt,
) -> None:
    count = 600
    name = interrupt.__name__.replace("_", "-")
    with open_fleet(kafka.bootstrap[0], replace(s3, bucket=name)) as fleet:
        arrivals = noise_arrivals(fleet.folder, count + WARM_UP_EVENTS, 2)
        log = fleet.services.open_log()
        with fleet.services.connect("test") as conn:
            start_workers(fleet)
            warm_up(fleet, log, conn, arrivals[:WARM_UP_EVENTS])
        publisher = Publisher(log, arrivals[WARM_UP_EVENTS:], 12.0)
        publisher.start()
        time.sleep(3)
        interrupt(request, fleet)
        available_at = time.monotonic()
        publisher.join(120)
        published_at = time.monotonic()
        assert caught_up(fleet, count + WARM_UP_EVENTS)
        print(
            f"{name}: published until {published_at - available_at:.1f} s after the outage,"
            f" caught up {time.monotonic() - published_at:.1f} s later"
        )
        with fleet.services.connect("test") as conn:
            assert images_by_rows_and_counters(fleet, conn) == count + WARM_UP_EVENTS
        assert not publisher.unpublished
        log.close()


def caught_up(fleet: Fleet, images: int) -> bool:
    """Wait until so many images are indexed; the services may still fail meanwhile."""
    deadline = time.monotonic() + CATCH_UP_TIMEOUT_S
    print("workers that ended:", [worker.role for worker in fleet.ended()])
    while time.monotonic() < deadline:
        log = fleet.services.open_log()
        try:
            with fleet.services.connect("test") as conn:
                if settle(fleet, log, conn, images, CATCH_UP_TIMEOUT_S):
                    return True
        except RetryLaterError:
            time.sleep(0.5)
        finally:
            log.close()
    return False


def images_by_rows_and_counters(fleet: Fleet, conn: Connection) -> int:
    """Count the images by a scan, which the counters must equal."""
    scanned = recount(conn, fleet.generation)
    counters = totals(conn, fleet.generation)
    assert (scanned.images, scanned.checksum) == (counters.images, counters.checksum)
    return scanned.images
