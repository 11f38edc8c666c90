"""The topics, declared once. Their names come with the events."""

from dataclasses import dataclass

from schemas.events import ACCEPTED, ARRIVED, DELETED, INDEXED, OPERATIONS, REJECTED, SERVED

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic. Events of one key go to one partition and keep their order.

    The number of partitions bounds how many workers share a topic. `days` is the retention; a dead
    letter can be replayed only as long as its original is retained. `mebibytes` bounds what the
    embedded log keeps of events that all have read.
    """

    name: str
    partitions: int
    days: int = 30
    mebibytes: int = 4096

    @property
    def config(self) -> dict[str, str]:
        """Kafka's settings of the topic."""
        return {
            "retention.ms": str(self.days * _DAY_MS),
            "cleanup.policy": "delete",
            # The broker's clock dates events: freshness must not depend on a producer's clock.
            "message.timestamp.type": "LogAppendTime",
        }


TOPICS = (
    Topic(name=ARRIVED, partitions=8),
    Topic(name=ACCEPTED, partitions=8, days=7),
    Topic(name=REJECTED, partitions=1, mebibytes=1024),
    Topic(name=INDEXED, partitions=8, days=7, mebibytes=1024),
    Topic(name=DELETED, partitions=1, mebibytes=1024),
    # At 100 queries a second, 57 GB came together in a week.
    Topic(name=SERVED, partitions=4, days=7, mebibytes=1024),
    Topic(name=OPERATIONS, partitions=1, days=90, mebibytes=256),
)
