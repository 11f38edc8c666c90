"""The relay thread: with Kafka, every worker process can forward the outbox; one of them does."""

import threading

from schemas.service_settings import KafkaSettings
from stream.log.outbox import relay
from workers.repository.connection import connect
from workers.runtime.process import keep_running
from workers.runtime.vital_thread import VitalThread


def start_relay(kafka: KafkaSettings | None, database_url: str, stop: threading.Event) -> None:
    """Start the thread. With the log in Postgres (`kafka` None) there is nothing to forward."""
    if kafka is None:
        return
    # Imported here: without Kafka no process needs its client.
    from stream.log.kafka import KafkaLog

    def session(stop: threading.Event) -> None:
        log = KafkaLog(kafka, database_url)
        try:
            with connect(database_url, name="sigma relay") as conn:
                relay(log, conn, stop)
        finally:
            log.close()

    VitalThread("relay", lambda: keep_running(session, stop, "relay")).start()
