"""Real services, and what happens to them: poison among the events, services that go away, workers that are killed."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ops.bench.chaos import ChaosConfig, chaos
from ops.bench.fleet import Fleet, Gap, Publisher, fleet, pictures, settle, warm_up
from schemas.errors import RetryLaterError
from schemas.events import ARRIVED, REJECTED, ImageArrived
from schemas.settings import KafkaSettings, S3Settings
from stream.log.dead_letters import dead_letters, replay, show
from stream.log.event_log import Message, message
from tests.services.servers import KafkaServer, S3Server
from workers.repository.connection import Connection
from workers.repository.counters import recount, totals

OUTAGE_S = float(os.environ.get("SIGMA_TEST_OUTAGE_S", "6"))
"""How long a service is away; 30 for the full measure."""

WARM = 64


@pytest.mark.timeout(600)
@pytest.mark.parametrize("churn", [False, True], ids=["killed", "come and go"])
def test_workers_that_die_lose_and_double_nothing(kafka: KafkaSettings, churn: bool) -> None:
    found = chaos(ChaosConfig(events=800, strikes=8, churn=churn, seed=4, kafka=kafka.bootstrap[0]))
    assert (found["lost"], found["doubled"], found["indexed"]) == (0, 0, 800)
    assert found["checksum"] == found["undisturbed_checksum"]
    assert found["counters_agree"]
    assert found["settled"]


class Poison:
    """Ten kinds of events that cannot be used, two of each. Those whose file is at fault can be mended."""

    def __init__(self, folder: Path, spare: list[ImageArrived]) -> None:
        self._files: dict[Path, bytes] = {}
        self.messages: dict[str, Message] = {}
        for turn in range(2):
            good = [
                Path(event.uri.removeprefix("file://")).read_bytes()
                for event in spare[turn * 4 : turn * 4 + 4]
            ]
            for number, (name, data) in enumerate(
                {
                    "cut": good[0][: len(good[0]) // 2],
                    "empty": b"",
                    "text": b"words",
                    "gone": None,
                }.items()
            ):
                path = folder / f"{name}-{turn}.png"
                if data is not None:
                    path.write_bytes(data)
                self._files[path] = good[number]
                self._add(message(ImageArrived(path.stem, path.as_uri()), path.stem))
            for name, value in {
                "no-json": b"{",
                "no-object": b"[1]",
                "no-uri": b'{"image_id": "x"}',
                "no-text": b"\xff\xfe",
            }.items():
                self._add(Message(ARRIVED, f"{name}-{turn}", value))
            for name, uri in {
                "private": "https://127.0.0.1/a.png",
                "outside": "file:///etc/hostname",
            }.items():
                self._add(message(ImageArrived(f"{name}-{turn}", uri), f"{name}-{turn}"))

    def _add(self, made: Message) -> None:
        self.messages[made.key] = made

    @property
    def mendable(self) -> set[str]:
        return {path.stem for path in self._files}

    def mend(self) -> None:
        for path, data in self._files.items():
            path.write_bytes(data)


@pytest.mark.timeout(600)
def test_poison_goes_to_the_dead_letters_and_comes_back_when_mended(kafka: KafkaSettings) -> None:
    count = 1980
    with fleet(kafka.bootstrap[0]) as made:
        arrivals = pictures(made.folder, count + WARM + 8, 1)
        poison = Poison(made.folder, arrivals[-8:])
        log = made.services.open_log()
        with made.services.connect("test") as conn:
            for role in ("intake", "index"):
                made.start(role)
            warm_up(made, log, conn, arrivals[:WARM])
            flow = [message(event, event.image_id) for event in arrivals[WARM : WARM + count]]
            step = count // len(poison.messages)
            for number, bad in enumerate(poison.messages.values()):
                flow.insert(number * (step + 1), bad)
            log.publish(None, flow)
            gap = Gap()
            assert settle(made, log, conn, WARM + count, 120, gap)
            print(f"longest time without an image indexed: {gap.longest_s:.2f} s")
            letters = dead_letters(log)
            assert sorted(one.image_id for one in letters) == sorted(poison.messages)
            for one in letters:
                assert one.origin_topic == ARRIVED
                found = show(log, one.place)
                assert found.origin is not None
                assert found.origin.key == one.image_id
                assert {
                    f"__connect.errors.{name}"
                    for name in ("stage", "exception.class.name", "exception.message")
                } <= found.headers.keys()
                assert one.reason
                assert one.code
            poison.mend()
            assert replay(log, conn).replayed == len(poison.messages)
            assert settle(made, log, conn, WARM + count + len(poison.mendable), 60)
            refused = {
                image_id
                for (image_id,) in conn.execute("SELECT image_id FROM rejection").fetchall()
            }
            assert refused == poison.messages.keys() - poison.mendable
            assert sum(log.end_offsets([REJECTED]).values()) == len(poison.messages) + len(refused)
            # Again, with nothing mended: the same few, and no more of them.
            assert replay(log, conn).replayed == len(refused)
            assert settle(made, log, conn, WARM + count + len(poison.mendable), 60)
        log.close()


def away_kafka(request: pytest.FixtureRequest, made: Fleet) -> None:
    server: KafkaServer = request.getfixturevalue("kafka_server")
    server.stop(signal.SIGTERM)
    time.sleep(OUTAGE_S)
    server.start()


def away_s3(request: pytest.FixtureRequest, made: Fleet) -> None:
    server: S3Server = request.getfixturevalue("s3_server")
    server.stop()
    time.sleep(OUTAGE_S)
    server.start()


def away_postgres(request: pytest.FixtureRequest, made: Fleet) -> None:
    made.restart_database(OUTAGE_S)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("away", [away_kafka, away_postgres, away_s3])
def test_a_service_that_goes_away_loses_nothing_and_needs_no_hand(
    request: pytest.FixtureRequest,
    kafka_server: KafkaServer,
    s3_server: S3Server,
    kafka: KafkaSettings,
    s3: S3Settings,
    away: Callable[..., None],
) -> None:
    count = 600
    with fleet(
        kafka.bootstrap[0], replace(s3, bucket=f"outage-{away.__name__.replace('_', '-')}")
    ) as made:
        arrivals = pictures(made.folder, count + WARM, 2)
        log = made.services.open_log()
        with made.services.connect("test") as conn:
            for role in ("intake", "index"):
                made.start(role)
            warm_up(made, log, conn, arrivals[:WARM])
        publisher = Publisher(log, arrivals[WARM:], 12.0)
        publisher.start()
        time.sleep(3)
        away(request, made)
        back = time.monotonic()
        publisher.join(120)
        ended = time.monotonic()
        assert settled(made, count + WARM)
        print(
            f"{away.__name__}: published until {ended - back:.1f} s after it was back, caught up {time.monotonic() - ended:.1f} s later"
        )
        with made.services.connect("test") as conn:
            assert agrees(made, conn) == count + WARM
        assert not publisher.failed
        log.close()


def settled(made: Fleet, count: int) -> bool:
    """Whether that many images are indexed in the end; looking may fail while services come back."""
    deadline = time.monotonic() + 90
    print(
        "workers that ended:",
        [member.role for member in made.members if member.process.poll() is not None],
    )
    while time.monotonic() < deadline:
        log = made.services.open_log()
        try:
            with made.services.connect("test") as conn:
                if settle(made, log, conn, count, 90):
                    return True
        except RetryLaterError:
            time.sleep(0.5)
        finally:
            log.close()
    return False


def agrees(made: Fleet, conn: Connection) -> int:
    """Images by the rows; the counters must say the same."""
    truth, counters = recount(conn, made.generation), totals(conn, made.generation)
    assert (truth.images, truth.checksum) == (counters.images, counters.checksum)
    return truth.images
