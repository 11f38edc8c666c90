"""The faust application: takes arrivals and deletions from Kafka event by event, hands them over, keeps windowed counts.

Traps of faust that are stepped around here, each with a test (tests/integration/test_faust.py): `take` acknowledges a batch
that raised and goes on, so its offsets are only a hint, ours are in Postgres, and a sweep compares the two; a codec that meets a
bad payload ends the agent, so raw bytes; more than one task an agent commits past what is in flight, so one.
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
from schemas.settings import KafkaSettings
from stream.log.event_log import Event
from stream.log.kafka import SESSION_S, event_of, headers_of
from stream.log.topics import TOPICS

WINDOW_S = 60.0
"""Length of the windows of the counts; an hour of them is kept."""

_BATCH, _LINGER_S, _LOOK_S, _KEPT_S, _SWEEP_S = 32, 0.01, 0.1, 3600.0, 3.0

log = structlog.get_logger()

Count = Callable[[str, int], None]
"""Is told a verdict (`accepted`, or the code of a rejection) and how many there were in the window so far."""


class Handler(Protocol):
    """Who works on the events. Called from one thread, never twice at once."""

    def handle(self, events: Sequence[Event]) -> None:
        """Work on events in their order; harmless when called again with the same ones."""

    def sweep(self) -> None:
        """Work on what is in the log and was never brought: what faust acknowledged although the work on it failed."""


def build_app(settings: KafkaSettings, folder: Path, handler: Handler, count: Count) -> Any:
    """An app whose agent passes events of the topics `arrived` and `deleted` to a handler, and has it sweep every few seconds."""
    app = faust.App(
        "sigma-intake",
        broker=[f"kafka://{address}" for address in settings.bootstrap],
        broker_credentials=_credentials(settings),
        broker_session_timeout=SESSION_S,
        broker_heartbeat_interval=1.5,
        broker_rebalance_timeout=10.0,
        broker_request_timeout=20.0,
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        stream_ack_exceptions=False,
        stream_ack_cancelled_tasks=False,
        topic_disable_leader=True,
        topic_replication_factor=max(1, settings.replication),
        table_standby_replicas=0,
        store="memory://",
        datadir=str(folder),
        web_enabled=False,
    )
    hands = ThreadPoolExecutor(1, "intake")
    raw: dict[str, Any] = {
        "key_type": bytes,
        "value_type": bytes,
        "key_serializer": "raw",
        "value_serializer": "raw",
    }

    async def intake(stream: Any) -> None:
        loop = asyncio.get_running_loop()
        async for events in stream.noack_take(_BATCH, within=_LINGER_S):
            try:
                await loop.run_in_executor(
                    hands,
                    handler.handle,
                    [event_of(event.message, event.message.timestamp) for event in events],
                )
            except Exception:
                # The agent must not end by it, and need not wait: the sweep finds what is not committed.
                log.exception("events failed, a sweep will try them again", count=len(events))
            for event in events:
                await stream.ack(event)

    async def sweep() -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(hands, handler.sweep)
        except Exception:
            log.exception("the sweep failed, the next one tries again")

    app.agent(app.topic(ARRIVED, DELETED, **raw), name="intake")(intake)
    app.timer(_SWEEP_S)(sweep)
    _count(app, ACCEPTED, raw, lambda _: "accepted", count)
    _count(app, REJECTED, raw, lambda headers: headers.get("sigma_code", "unknown"), count)
    return app


def run_app(app: Any, stop: threading.Event, started: Callable[[], None]) -> None:
    """Run the app until `stop` is set, and call `started` when it takes events. `RetryLaterError` when it ended by itself: it
    cannot be started twice in a process."""
    asyncio.run(_run(app, stop, started))
    if not stop.is_set():
        raise RetryLaterError(
            "the faust app ended by itself; the log tells why, start the process again"
        )


async def _run(app: Any, stop: threading.Event, started: Callable[[], None]) -> None:
    # Not by faust's own worker: it would take over the signals, and its stop leaves tasks that never end.
    await app.start()
    started()
    while not (stop.is_set() or app.should_stop or app.crashed):
        await asyncio.sleep(_LOOK_S)
    await app.stop()


def _count(
    app: Any, name: str, raw: dict[str, Any], verdict: Callable[[dict[str, str]], str], count: Count
) -> None:
    """Counts the events of a topic by verdict in a windowed table. The partition is part of the key: tables move with it."""
    partitions = {topic.name: topic.partitions for topic in TOPICS}[name]
    short = name.rsplit(".", 1)[1]
    table = app.Table(f"{short}-per-minute", default=int, partitions=partitions).tumbling(
        WINDOW_S, expires=_KEPT_S
    )

    async def counted(stream: Any) -> None:
        async for event in stream.events():
            found = verdict(headers_of(event.message))
            key = f"{event.message.partition}/{found}"
            table[key] += 1
            count(found, table[key].current())

    app.agent(app.topic(name, **raw), name=f"count-{short}")(counted)


def _credentials(settings: KafkaSettings) -> Any:
    context = ssl.create_default_context() if settings.tls else None
    if settings.username is None:
        return faust.SSLCredentials(context) if context else None
    return faust.SASLCredentials(
        username=settings.username,
        password=settings.password,
        ssl_context=context,
        mechanism=SASLMechanism(settings.mechanism),
    )
