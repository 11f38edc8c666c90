-- name: ensure_partitions
-- Creates the partitions of a topic; an existing topic keeps its count, because the count decides
-- to which partition a key goes.
INSERT INTO log_partition (topic, partition)
SELECT %(topic)s, p FROM generate_series(0, %(partitions)s - 1) AS p
WHERE NOT EXISTS (SELECT FROM log_partition WHERE topic = %(topic)s)
ON CONFLICT DO NOTHING;

-- name: partition_counts
-- How many partitions each topic has.
SELECT topic, count(*)::int FROM log_partition GROUP BY topic;

-- name: reserve_offsets
-- Locks a partition and reserves `amount` offsets: writers queue here, so that offsets commit in
-- order and without gaps.
UPDATE log_partition SET next_offset = next_offset + %(amount)s
WHERE topic = %(topic)s AND partition = %(partition)s
RETURNING next_offset - %(amount)s;

-- name: insert_events
-- Writes the events of one partition at the offsets reserved before.
INSERT INTO log_event (topic, partition, "offset", key, value, headers)
SELECT %(topic)s, %(partition)s, %(first)s + u.ordinal - 1, u.key, u.value, u.headers::jsonb
FROM unnest(%(keys)s::text[], %(values)s::bytea[], %(headers)s::text[]) WITH ORDINALITY AS u (key, value, headers, ordinal);

-- name: notify_log
-- Wakes the pollers when this transaction commits.
SELECT pg_notify('sigma_log', '');

-- name: end_offsets
-- The offset that the next event of each partition will get.
SELECT topic, partition, next_offset FROM log_partition WHERE topic = ANY(%(topics)s) ORDER BY topic, partition;

-- name: pending_partitions
-- Partitions with events that the group has not committed, longest waiting first.
SELECT p.topic, p.partition
FROM log_partition p
LEFT JOIN consumer_offset o ON o.consumer_group = %(group)s AND o.topic = p.topic AND o.partition = p.partition
LEFT JOIN LATERAL (
    SELECT e.published_at FROM log_event e
    WHERE e.topic = p.topic AND e.partition = p.partition AND e."offset" >= coalesce(o.next_offset, 0)
    ORDER BY e."offset" LIMIT 1
) waiting ON true
WHERE p.topic = ANY(%(topics)s) AND p.next_offset > coalesce(o.next_offset, 0)
ORDER BY waiting.published_at, p.topic, p.partition;

-- name: read_events
-- Events of a partition from an offset on, oldest first.
SELECT "offset", key, value, headers, published_at FROM log_event
WHERE topic = %(topic)s AND partition = %(partition)s AND "offset" >= %(first)s
ORDER BY "offset" LIMIT %(amount)s;

-- name: committed_offset
-- The offset at which a group continues in one partition.
SELECT coalesce(
    (SELECT next_offset FROM consumer_offset
     WHERE consumer_group = %(group)s AND topic = %(topic)s AND partition = %(partition)s), 0);

-- name: committed_offsets
-- The offset at which a group continues, in every partition that it has committed.
SELECT topic, partition, next_offset FROM consumer_offset WHERE consumer_group = %(group)s;

-- name: store_offset
-- Compare and set: writes only if the group's offset is still the one at which the batch began.
-- Returns no row when another consumer was faster.
INSERT INTO consumer_offset (consumer_group, topic, partition, next_offset)
VALUES (%(group)s, %(topic)s, %(partition)s, %(to)s)
ON CONFLICT (consumer_group, topic, partition) DO UPDATE SET next_offset = excluded.next_offset
WHERE consumer_offset.next_offset = %(from)s
RETURNING next_offset;

-- name: rewind
-- Sends a group back to the start of a topic.
UPDATE consumer_offset SET next_offset = 0 WHERE consumer_group = %(group)s AND topic = %(topic)s;

-- name: still_rejected
-- Which of these images are still rejected.
SELECT DISTINCT image_id FROM rejection WHERE image_id = ANY(%(image_ids)s);

-- name: forget_rejections
-- Ends rejections of what was published again under other keys.
DELETE FROM rejection WHERE image_id = ANY(%(image_ids)s);

-- name: add_to_outbox
-- Events to forward once this transaction has committed.
INSERT INTO outbox (topic, key, value, headers)
SELECT u.topic, u.key, u.value, u.headers::jsonb
FROM unnest(%(topics)s::text[], %(keys)s::text[], %(values)s::bytea[], %(headers)s::text[]) AS u (topic, key, value, headers);

-- name: notify_outbox
-- Wakes the relay when this transaction commits.
SELECT pg_notify('sigma_outbox', '');

-- name: oldest_in_outbox
-- The next events to forward.
SELECT id, topic, key, value, headers FROM outbox ORDER BY id LIMIT %(amount)s;

-- name: delete_from_outbox
-- Events that were forwarded.
DELETE FROM outbox WHERE id = ANY(%(ids)s);

-- name: outbox_size
-- Events that wait to be forwarded.
SELECT count(*) FROM outbox;
