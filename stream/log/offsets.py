"""Offsets: how far a consumer group has come. They live in Postgres beside the rows that the events led to."""

from collections.abc import Mapping, Sequence

from schemas.errors import RetryLaterError
from schemas.named_sql import queries
from stream.log.event_log import Batch, Connection, Event, EventLog, Partition

_SPAN = 1000
"""Events that are read again at a time."""


def store_offsets(log: EventLog, conn: Connection, group: str, batch: Batch) -> None:
    """Commits a batch inside the worker's transaction, by compare-and-set: from where the batch began to where it ends.

    `RetryLaterError` when another member was faster; the transaction must then be rolled back, for the work is done.
    Call it last, so that its row locks are held briefly.
    """
    for (topic, partition), (begin, end) in sorted(batch.positions.items()):
        place = {
            "group": group,
            "topic": log.scope(topic),
            "partition": partition,
            "from": begin,
            "to": end,
        }
        if conn.execute(queries()["store_offset"], place).fetchone() is None:
            raise RetryLaterError(
                f"group {group} no longer stands at offset {begin} of {topic}/{partition}: another worker committed first; "
                "roll back and poll again"
            )


def committed(
    log: EventLog, conn: Connection, group: str, topics: Sequence[str]
) -> dict[Partition, int]:
    """Where the group goes on, for every partition of the topics that it has committed."""
    names = {log.scope(topic): topic for topic in topics}
    found = conn.execute(queries()["committed_offsets"], {"group": group})
    return {
        (names[scope], partition): offset for scope, partition, offset in found if scope in names
    }


def contiguous_batch(
    log: EventLog, done: Mapping[Partition, int], brought: Sequence[Event]
) -> Batch:
    """The events that a client brought, from where the group has committed (`done`) and without holes, in the log's order.

    A client may bring events again, in another order, or none of some: it prefetches, and a rebalance drops what it holds. Committing
    such a batch as it is would pass over the rest for good, so wherever an offset is missing, the span is read from the log. What is
    not there either was never an event, or the topic's retention has removed it. Work on what is left of a long span with the next call.
    """
    events: list[Event] = []
    positions: dict[Partition, tuple[int, int]] = {}
    for place in dict.fromkeys(event.place for event in brought):
        begin = done.get(place, 0)
        kept = {
            event.offset: event
            for event in brought
            if event.place == place and event.offset >= begin
        }
        if not kept:
            continue
        end = max(kept) + 1
        if len(kept) < end - begin:
            limit = min(_SPAN, end - begin)
            found = log.read(*place, first=begin, limit=limit)
            if len(found) == limit:
                end = min(end, found[-1].offset + 1)
            kept |= {event.offset: event for event in found}
        events += [kept[offset] for offset in sorted(kept) if offset < end]
        positions[place] = (begin, end)
    return Batch(tuple(events), positions)


def rewind(log: EventLog, conn: Connection, group: str, topic: str) -> None:
    """Sends a group back to the oldest event of a topic, to replay it."""
    conn.execute(queries()["rewind"], {"group": group, "topic": log.scope(topic)})


def lag(log: EventLog, conn: Connection, group: str, topics: Sequence[str]) -> int:
    """Events of the topics that the group has not committed yet."""
    done = committed(log, conn, group, topics)
    return sum(max(0, end - done.get(place, 0)) for place, end in log.end_offsets(topics).items())
