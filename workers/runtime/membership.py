"""Membership: staying in a consumer group while a batch takes long."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from stream.log.event_log import Consumer

# Seconds between heartbeats; the group's session and the leases of partitions last longer.
_HEARTBEAT_S = 1.0


def work_as_member(
    executor: ThreadPoolExecutor, consumer: Consumer, work: Callable[[], None]
) -> None:
    """Do the work in the executor's thread while this one keeps the membership alive.

    Raises what the work raises.
    """
    handling = executor.submit(work)
    while not wait([handling], _HEARTBEAT_S).done:
        consumer.heartbeat()
    handling.result()
