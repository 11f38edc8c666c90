"""Offsets: how far a consumer group has come.

They are stored in PostgreSQL beside the rows that the events led to, so that both commit together.
"""

from collections.abc import Collection, Mapping, Sequence

from schemas.errors import RetryLaterError
from schemas.named_sql import queries
from stream.lease import check
from stream.log.event_log import Batch, Event, EventLog, Partition
from stream.session import Connection

# Events that are read again at a time to fill a gap; bounds the memory and time of one batch.
_MAX_REREAD_EVENTS = 1000


def store_offsets(log: EventLog, conn: Connection, group: str, batch: Batch) -> None:
    """Commit a batch inside the worker's transaction, by compare-and-set from begin to end.

    `RetryLaterError` when another member has committed these events: roll the transaction back,
    because their work is done. `LostLeaseError` when another member has taken one of its
    partitions. Call this last, so that its row locks are kept briefly.
    """
    # Sorted, so that two members that commit overlapping batches cannot deadlock.
    for (topic, partition), (begin, end) in sorted(batch.positions.items()):
        parameters = {
            "group": group,
            "topic": log.offset_scope(topic),
            "partition": partition,
            "from": begin,
            "to": end,
        }
        if conn.execute(queries()["store_offset"], parameters).fetchone() is None:
            raise RetryLaterError(
                f"group {group} is no longer at offset {begin} of {topic}/{partition}: "
                "another worker committed first; roll back and poll again"
            )
    check(conn, batch.leases)


def committed(
    log: EventLog, conn: Connection, group: str, topics: Sequence[str]
) -> dict[Partition, int]:
    """Return the group's next offset in every partition of the topics that it has committed."""
    topic_of = {log.offset_scope(topic): topic for topic in topics}
    offsets: dict[Partition, int] = {}
    for scope, partition, offset in conn.execute(queries()["committed_offsets"], {"group": group}):
        if scope in topic_of:
            offsets[topic_of[scope], partition] = offset
    return offsets


def contiguous_batch(
    log: EventLog,
    committed_offsets: Mapping[Partition, int],
    delivered: Sequence[Event],
    moved: Collection[Partition] = (),
) -> Batch:
    """Turn what a client delivered into a batch without gaps, in the log's order.

    The batch begins where the group has committed. A client may deliver events again, in another
    order, or skip some: it prefetches, and a rebalance drops what it has fetched. Committing such
    events as they are would skip the missing ones for good. So wherever an offset is missing, the
    span is read from the log. What the log does not have either was never an event (Kafka's
    transaction markers, and what was aborted), or retention has removed it. What lies beyond the
    span that one read gives is left for the next call.

    In partitions of `moved` the client has come on, maybe without an event: offsets that hold none
    are covered too.
    """
    events: list[Event] = []
    positions: dict[Partition, tuple[int, int]] = {}
    for partition, partition_events in _by_partition(delivered).items():
        begin = committed_offsets.get(partition, 0)
        by_offset = {event.offset: event for event in partition_events if event.offset >= begin}
        if not by_offset:
            continue
        end = max(by_offset) + 1
        if len(by_offset) < end - begin:
            # Read anew as a whole: one read, however many gaps there are.
            limit = min(_MAX_REREAD_EVENTS, end - begin)
            span = log.read_span(*partition, first=begin, limit=limit)
            by_offset |= {event.offset: event for event in span.events}
            # Between what was read and what was delivered there may be more.
            end = min(end, span.end)
        if begin < end:
            events += [by_offset[offset] for offset in sorted(by_offset) if offset < end]
            positions[partition] = (begin, end)
    for partition in moved:
        begin = committed_offsets.get(partition, 0)
        if partition not in positions:
            end = end_of_hole(log, partition, begin)
            if begin < end:
                positions[partition] = (begin, end)
    return Batch(tuple(events), positions)


def end_of_hole(log: EventLog, partition: Partition, begin: int) -> int:
    """Return up to where the offsets from `begin` on hold no event, as far as can be read."""
    span = log.read_span(*partition, first=begin, limit=1)
    return span.events[0].offset if span.events else span.end


def rewind(log: EventLog, conn: Connection, group: str, topic: str) -> None:
    """Send a group back to the oldest event of a topic, to replay it."""
    conn.execute(queries()["rewind"], {"group": group, "topic": log.offset_scope(topic)})


def lag(log: EventLog, conn: Connection, group: str, topics: Sequence[str]) -> int:
    """Count the events of the topics that the group has not committed."""
    offsets = committed(log, conn, group, topics)
    total = 0
    for partition, end in log.end_offsets(topics).items():
        total += max(0, end - offsets.get(partition, 0))
    return total


def _by_partition(events: Sequence[Event]) -> dict[Partition, list[Event]]:
    grouped: dict[Partition, list[Event]] = {}
    for event in events:
        grouped.setdefault(event.topic_partition, []).append(event)
    return grouped
