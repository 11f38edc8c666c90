"""The topics, declared once: their names come with the events, their partition counts are here."""

from dataclasses import dataclass

from schemas.events import ACCEPTED, ARRIVED, DELETED, INDEXED, OPERATIONS, REJECTED, SERVED


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic. Events of one key go to one partition and keep their order; partitions bound how many workers share a topic."""

    name: str
    partitions: int


TOPICS = (
    Topic(name=ARRIVED, partitions=8),
    Topic(name=ACCEPTED, partitions=8),
    Topic(name=REJECTED, partitions=1),
    Topic(name=INDEXED, partitions=8),
    Topic(name=DELETED, partitions=1),
    Topic(name=SERVED, partitions=4),
    Topic(name=OPERATIONS, partitions=1),
)
