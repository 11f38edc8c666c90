"""The relay thread: with Kafka, every worker process is ready to forward the outbox; one of them does."""

import threading

from stream.log.kafka import KafkaLog
from stream.log.outbox import relay
from workers.runtime.process import keep_running
from workers.runtime.services import Services


def start_relay(services: Services, stop: threading.Event) -> None:
    """Start the thread; with the log in Postgres there is nothing to forward."""
    if services.settings.kafka is not None:
        threading.Thread(
            target=keep_running,
            args=(lambda stop: _session(services, stop), stop, "relay"),
            name="relay",
            daemon=True,
        ).start()


def _session(services: Services, stop: threading.Event) -> None:
    assert services.settings.kafka is not None
    log = KafkaLog(services.settings.kafka, services.database_url)
    try:
        with services.connect("relay") as conn:
            relay(log, conn, stop)
    finally:
        log.close()
