-- name: note_erasures
-- Notes what must be erased outside of rows, before the rows lose it: of these images everything up
-- to a version.
INSERT INTO erasure (image_id, version, pictures, caption_hashes)
SELECT u.image_id, u.version, coalesce(stored_pictures(i), '{}'), CASE WHEN i IS NULL THEN '{}' ELSE caption_hashes(i) END
FROM unnest(%(image_ids)s::text[], %(versions)s::int[]) AS u (image_id, version)
LEFT JOIN image i ON i.image_id = u.image_id AND i.version <= u.version AND i.state <> 'deleted';

-- name: note_unused_image
-- Notes what was stored for an image that is not kept.
INSERT INTO erasure (image_id, version, pictures, caption_hashes)
VALUES (%(image_id)s, %(version)s, %(pictures)s, %(hashes)s::bytea[]);

-- name: blank_rejections
-- What was refused of deleted versions keeps its code only.
UPDATE rejection r SET uri = '', reason = '' FROM deletion d
WHERE r.image_id = d.image_id AND r.version <= d.version AND (r.uri <> '' OR r.reason <> '')
  AND (%(image_ids)s::text[] IS NULL OR r.image_id = ANY(%(image_ids)s));

-- name: due_erasures
-- The oldest notes after an id.
SELECT id, image_id, version, pictures, caption_hashes FROM erasure WHERE id > %(after)s ORDER BY id LIMIT %(amount)s;

-- name: used_pictures
-- Which of these pictures belong to an image that is there.
SELECT normalized_uri FROM image
WHERE hashtextextended(normalized_uri, 0) = ANY(ARRAY(SELECT hashtextextended(u, 0) FROM unnest(%(pictures)s::text[]) AS u))
  AND normalized_uri <> '' AND normalized_uri = ANY(%(pictures)s) AND state <> 'deleted';

-- name: used_originals
-- The same of uploaded arrivals.
SELECT uri FROM image WHERE uri = ANY(%(pictures)s) AND state <> 'deleted';

-- name: erase_queries
-- Queries that consist of an erased caption.
DELETE FROM shadow_query WHERE sha256(convert_to(query, 'UTF8')) = ANY(%(hashes)s);

-- name: events_of_images
-- Events of the embedded log about images. The topics are those of the index.
SELECT topic, partition, "offset", key, value FROM log_event
WHERE key = ANY(%(image_ids)s)
  AND hashtextextended(key, 0) = ANY(ARRAY(SELECT hashtextextended(k, 0) FROM unnest(%(image_ids)s::text[]) AS k))
  AND topic IN ('sigma.images.arrived', 'sigma.images.accepted', 'sigma.images.rejected', 'sigma.images.indexed');

-- name: erase_events
-- Deletes events that every group has committed, where the topic has groups; returns their places.
DELETE FROM log_event e
USING unnest(%(topics)s::text[], %(partitions)s::int[], %(offsets)s::bigint[]) AS u (topic, partition, "offset")
WHERE e.topic = u.topic AND e.partition = u.partition AND e."offset" = u."offset"
  AND (e.topic <> ALL(%(consumed)s::text[]) OR e."offset" <
       (SELECT min(o.next_offset) FROM consumer_offset o WHERE o.topic = e.topic AND o.partition = e.partition))
RETURNING e.topic, e.partition, e."offset";

-- name: end_erasures
-- What was noted and is erased.
DELETE FROM erasure WHERE id = ANY(%(ids)s);

-- name: trim_events
-- Deletes the oldest events of a topic beyond its bytes, less those that a group still has to read.
WITH kept AS (
    SELECT p.partition, (
        SELECT min(sized."offset") FROM (
            SELECT "offset", sum(octet_length(value) + octet_length(key) + pg_column_size(headers) + 64)
                             OVER (ORDER BY "offset" DESC) AS bytes
            FROM log_event WHERE topic = %(topic)s AND partition = p.partition
        ) sized WHERE sized.bytes <= %(bytes)s
    ) AS first
    FROM log_partition p WHERE p.topic = %(topic)s
)
DELETE FROM log_event e USING kept
WHERE e.topic = %(topic)s AND e.partition = kept.partition AND e."offset" < kept.first
  AND (NOT %(consumed)s OR e."offset" <
       (SELECT min(o.next_offset) FROM consumer_offset o WHERE o.topic = e.topic AND o.partition = e.partition));

-- name: prune_tombstones
-- Forgets removals that every follower has seen or, away for that long, loads anew.
DELETE FROM tombstone WHERE removed_at < clock_timestamp() - make_interval(days => %(days)s);

-- name: prune_deleted_images
-- Forgets images that were deleted long ago, and returns how many.
WITH old AS (
    DELETE FROM deletion WHERE deleted_at < clock_timestamp() - make_interval(days => %(days)s) RETURNING image_id, version
), gone AS (
    DELETE FROM image i USING old
    WHERE i.image_id = old.image_id AND i.version <= old.version AND i.state = 'deleted' RETURNING 1
)
SELECT count(*) FROM gone;

-- name: prune_rejections
-- Forgets images that were refused long ago.
DELETE FROM rejection WHERE rejected_at < clock_timestamp() - make_interval(days => %(days)s);

-- name: prune_refused_versions
-- Forgets versions that were refused long ago.
DELETE FROM refused_version WHERE refused_at < clock_timestamp() - make_interval(days => %(days)s);

-- name: prune_alarms
-- Forgets alarms that ended long ago.
DELETE FROM alarm WHERE cleared_at < clock_timestamp() - make_interval(days => %(days)s);

-- name: prune_job_runs
-- Forgets runs that ended long ago, less the newest of each job and its newest run window.
DELETE FROM job_run r WHERE r.ended_at < clock_timestamp() - make_interval(days => %(days)s)
  AND r.id NOT IN (SELECT max(id) FROM job_run GROUP BY job)
  AND r.time_window < (SELECT max(n.time_window) FROM job_run n WHERE n.job = r.job);
