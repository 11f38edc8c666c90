"""The faust application: takes arrivals and deletions from Kafka and passes them to a handler.

It also keeps windowed counts of accepted and rejected images.

Traps of faust that this module avoids, each with a test (tests/integration/test_faust.py):
- `take` acknowledges a batch whose handling raised, and goes on. So faust's offsets are only a
  hint, the real ones are in PostgreSQL, and a sweep compares the log with them.
- A codec that meets a malformed payload ends the agent. So topics are read as raw bytes.
- More than one task per agent commits past events in flight. So there is one.
- Events of aborted transactions are read, and a batch that cannot be unpacked ends the app. So its
  consumer is one of our own (stream/log/faust_transport.py).
"""

import asyncio
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import faust
import structlog
from faust.types.auth import SASLMechanism

from schemas.errors import RetryLaterError
from schemas.events import ACCEPTED, ARRIVED, DELETED, REJECTED
from schemas.service_settings import KafkaSettings
from stream.log.event_log import Event
from stream.log.faust_transport import CommittedApp
from stream.log.kafka_client import HEARTBEAT_S, SESSION_TIMEOUT_S, event_of, headers_of
from stream.log.topics import TOPICS

# Length of a window of the counts.
WINDOW_S = 60.0

# How long the counts of a window are kept in memory.
_WINDOWS_KEPT_S = 3600.0

# Most events that the handler gets at once.
_BATCH_EVENTS = 32

# How long to wait for a batch to fill: short, because freshness counts it.
_BATCH_LINGER_S = 0.01

# How often the running app looks whether it should stop.
_STOP_CHECK_S = 0.1

# How often the handler looks for events that were acknowledged without being handled.
_SWEEP_INTERVAL_S = 3.0

_RAW_TOPIC = {
    "key_type": bytes,
    "value_type": bytes,
    "key_serializer": "raw",
    "value_serializer": "raw",
}

log = structlog.get_logger()

# Called with a verdict (`accepted`, or the code of a rejection) and its count in this window.
ReportCount = Callable[[str, int], None]


class EventHandler(Protocol):
    """Works on the events. Called from one thread, so never twice at once."""

    def handle(self, events: Sequence[Event]) -> None:
        """Work on events in their order. Must tolerate the same events again."""

    def sweep(self) -> None:
        """Work on events of the log that faust acknowledged although handling them failed."""


def build_app(
    settings: KafkaSettings, folder: Path, handler: EventHandler, report_count: ReportCount
) -> Any:
    """Build an app that passes events of `arrived` and `deleted` to a handler.

    `folder` is faust's own data folder. Nothing connects before `run_app`.
    """
    app = CommittedApp(
        "sigma-intake",
        broker=[f"kafka://{address}" for address in settings.bootstrap],
        broker_credentials=_credentials(settings),
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=HEARTBEAT_S,
        broker_rebalance_timeout=10.0,
        broker_request_timeout=20.0,
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",
        # A rebalance or stop does not wait for a batch in work: it may come again, which the
        # handler tolerates.
        stream_wait_empty=False,
        # `_add_handler` acknowledges; unfinished work must not be acknowledged on its own.
        stream_ack_exceptions=False,
        stream_ack_cancelled_tasks=False,
        # No leader topic: nothing here runs on a leader only.
        topic_disable_leader=True,
        topic_replication_factor=max(1, settings.replication),
        # The counts are for display: they may start anew, so neither replicas nor a disk store.
        table_standby_replicas=0,
        store="memory://",
        datadir=str(folder),
        # The metrics have their own port.
        web_enabled=False,
    )
    _add_handler(app, handler)
    _add_count(app, ACCEPTED, lambda headers: "accepted", report_count)
    _add_count(app, REJECTED, lambda headers: headers.get("sigma_code", "unknown"), report_count)
    return app


def run_app(app: Any, stop: threading.Event, started: Callable[[], None]) -> None:
    """Run the app until `stop` is set; call `started` when it takes events.

    `RetryLaterError` when the app ended by itself: it cannot be started twice in one process.
    """
    asyncio.run(_run(app, stop, started))
    if not stop.is_set():
        raise RetryLaterError(
            "the faust app ended by itself; see the reason in the log, then restart the process"
        )


async def _run(app: Any, stop: threading.Event, started: Callable[[], None]) -> None:
    # Not by faust's worker: it takes over the signals, and its stop leaves tasks that never end.
    await app.start()
    started()
    while not (stop.is_set() or app.should_stop or app.crashed):
        await asyncio.sleep(_STOP_CHECK_S)
    await app.stop()


def _add_handler(app: Any, handler: EventHandler) -> None:
    # The handler blocks on the database, so it runs beside the event loop; one thread for both
    # functions, so that a sweep never runs beside a batch.
    executor = ThreadPoolExecutor(1, "intake")

    async def intake(stream: Any) -> None:
        loop = asyncio.get_running_loop()
        async for records in stream.noack_take(_BATCH_EVENTS, within=_BATCH_LINGER_S):
            events = [event_of(record.message, record.message.timestamp) for record in records]
            try:
                await loop.run_in_executor(executor, handler.handle, events)
            except Exception:
                # The agent must survive, and need not wait: the sweep finds uncommitted events.
                log.exception("batch failed, a sweep will retry it", count=len(events))
            for record in records:
                await stream.ack(record)

    async def sweep() -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(executor, handler.sweep)
        except Exception:
            log.exception("sweep failed, the next one retries")

    app.agent(app.topic(ARRIVED, DELETED, **_RAW_TOPIC), name="intake")(intake)
    app.timer(_SWEEP_INTERVAL_S)(sweep)


def _add_count(
    app: Any,
    topic: str,
    verdict_of: Callable[[dict[str, str]], str],
    report_count: ReportCount,
) -> None:
    """Count the events of a topic by verdict, which is read from their headers."""
    partitions = {declared.name: declared.partitions for declared in TOPICS}[topic]
    short_name = topic.rsplit(".", 1)[1]
    table = app.Table(f"{short_name}-per-minute", default=int, partitions=partitions)
    windows = table.tumbling(WINDOW_S, expires=_WINDOWS_KEPT_S)

    async def count(stream: Any) -> None:
        async for record in stream.events():
            verdict = verdict_of(headers_of(record.message))
            # With the partition in the key, because tables move with their partition.
            key = f"{record.message.partition}/{verdict}"
            windows[key] += 1
            report_count(verdict, windows[key].current())

    app.agent(app.topic(topic, **_RAW_TOPIC), name=f"count-{short_name}")(count)


def _credentials(settings: KafkaSettings) -> Any:
    # The default context verifies certificates and host names.
    context = ssl.create_default_context() if settings.tls else None
    if settings.username is not None:
        return faust.SASLCredentials(
            username=settings.username,
            password=settings.password,
            ssl_context=context,
            mechanism=SASLMechanism(settings.mechanism),
        )
    return faust.SSLCredentials(context) if context else None
