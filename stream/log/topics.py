"""The topics, declared once: their names come with the events, their partition counts and retention are here."""

from dataclasses import dataclass

from schemas.events import ACCEPTED, ARRIVED, DELETED, INDEXED, OPERATIONS, REJECTED, SERVED

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic. Events of one key go to one partition and keep their order; partitions bound how many workers share a topic.

    The retention, in days, applies to Kafka; a dead letter can be replayed as long as its original is kept.
    """

    name: str
    partitions: int
    days: int = 30

    @property
    def config(self) -> dict[str, str]:
        """Kafka's settings of the topic. The broker's clock dates events: freshness must not depend on a producer's."""
        return {
            "retention.ms": str(self.days * _DAY_MS),
            "cleanup.policy": "delete",
            "message.timestamp.type": "LogAppendTime",
        }


TOPICS = (
    Topic(name=ARRIVED, partitions=8),
    Topic(name=ACCEPTED, partitions=8, days=7),
    Topic(name=REJECTED, partitions=1),
    Topic(name=INDEXED, partitions=8, days=7),
    Topic(name=DELETED, partitions=1),
    Topic(name=SERVED, partitions=4, days=7),
    Topic(name=OPERATIONS, partitions=1, days=90),
)
