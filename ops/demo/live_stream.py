"""The demo's live phase: images arrive one by one while a client keeps asking queries."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from sigma_stream_client import Client, ClientError, RetryPolicy

from model.progress import Progress
from ops.ingestion import IngestOutcome, PublishedImages, publish, wait
from schemas.errors import WorkFailedError
from schemas.events import ImageArrived
from schemas.records import JsonObject, ManifestEntry
from stream.log.event_log import EventLog
from workers.repository.connection import Connection

# Pause between two arrivals: a steady stream of at most 25 images a second.
ARRIVAL_PAUSE_S = 0.04

# Pause between two queries of the client.
QUERY_PAUSE_S = 0.05

# Longest time without progress before the demo gives up on the last images.
SEARCHABLE_TIMEOUT_S = 60.0

HTTP_TIMEOUT_S = 30.0

# Longest wait for the client's last answer.
STOP_TIMEOUT_S = 30.0

READY_TIMEOUT_S = 60.0

READY_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class LiveStreamResult:
    """What came of the stream, and how queries fared meanwhile (milliseconds)."""

    outcome: IngestOutcome
    answered: int
    failed: int
    p50_ms: float

    def to_json(self) -> JsonObject:
        """The form in the document of `sigma demo`."""
        return {
            "indexed": self.outcome.indexed,
            "rejected": [file.to_json() for file in self.outcome.rejected],
            "queries_meanwhile": {
                "answered": self.answered,
                "failed": self.failed,
                "p50_ms": self.p50_ms,
            },
        }


def stream(
    conn: Connection,
    log: EventLog,
    address: str,
    key: str | None,
    unseen: Sequence[ManifestEntry],
    queries: Sequence[str],
    progress: Progress,
) -> LiveStreamResult:
    """Publish images one by one while a client asks; return when the last one is searchable."""
    client = QueryingClient(address, key, queries)
    client.start()
    with progress("stream", len(unseen)) as bar:
        published = _publish_slowly(conn, log, unseen)
        outcome = wait(
            conn, published, serving=True, timeout_s=SEARCHABLE_TIMEOUT_S, tick=bar.update
        )
    client.stop()
    return LiveStreamResult(outcome, client.answered, client.failed, client.p50_ms)


def _publish_slowly(
    conn: Connection, log: EventLog, unseen: Sequence[ManifestEntry]
) -> PublishedImages:
    parts: list[PublishedImages] = []
    events: list[ImageArrived] = []
    for entry in unseen:
        parts.append(publish(conn, log, [entry], None, lambda _: None))
        events += parts[-1].events
        time.sleep(ARRIVAL_PAUSE_S)
    paths = {entry.image_id: entry.path for entry in unseen}
    return PublishedImages(tuple(events), frozenset(), parts[0].since, paths)


class QueryingClient:
    """A client that asks one query after the other, in a thread, until it is stopped."""

    def __init__(self, address: str, key: str | None, queries: Sequence[str]) -> None:
        """`key`: where keys are configured."""
        self._address = address
        self._key = key
        self._queries = queries
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo client", daemon=True)
        self._took_ms: list[float] = []
        self.failed = 0
        """Queries without an answer; complete once the client is stopped."""

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the last answer and end."""
        self._stopping.set()
        self._thread.join(STOP_TIMEOUT_S)

    @property
    def answered(self) -> int:
        """Queries with an answer."""
        return len(self._took_ms) - self.failed

    @property
    def p50_ms(self) -> float:
        """Median time of a query; 0 when none was asked."""
        if not self._took_ms:
            return 0.0
        return round(sorted(self._took_ms)[len(self._took_ms) // 2], 1)

    def _run(self) -> None:
        # Each query once: the demo tells how many had no answer.
        with Client(
            self._address, self._key, retry=RetryPolicy(total_s=0), timeout_s=HTTP_TIMEOUT_S
        ) as client:
            number = 0
            while not self._stopping.wait(QUERY_PAUSE_S):
                query = self._queries[number % len(self._queries)]
                started = time.monotonic()
                try:
                    client.search(query)
                except ClientError:
                    self.failed += 1
                self._took_ms.append((time.monotonic() - started) * 1000)
                number += 1


def wait_until_ready(address: str) -> None:
    """Wait until the query worker is ready; `WorkFailedError` when it takes too long."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    with (
        suppress(ClientError),
        Client(address, retry=RetryPolicy(total_s=READY_TIMEOUT_S)) as client,
    ):
        while time.monotonic() < deadline:
            if client.problem() is None:
                return
            time.sleep(READY_POLL_S)
    raise WorkFailedError(
        f"the query worker at {address} is not ready after {READY_TIMEOUT_S:g} seconds; see its log"
    )
