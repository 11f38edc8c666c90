-- name: current_snapshot
-- What this transaction can see: the boundary between what a follower has read and what is still
-- to come. The epoch rises when the database was restored: what was read is of another time then.
SELECT pg_current_snapshot()::text, number, cluster, clock_timestamp() FROM epoch;

-- name: copy_postings
-- The postings of a generation by image, binary; -1 stands for an alternate that is not there, so
-- that all rows have the same width.
COPY (SELECT image_key, leaf, suffix, weight, coalesce(leaf2, -1), coalesce(weight2, 0), coalesce(leaf3, -1), coalesce(weight3, 0),
             more_leaves IS NOT NULL
      FROM placement WHERE generation = %(generation)s AND leaf IS NOT NULL)
TO STDOUT (FORMAT BINARY);

-- name: copy_more_postings
-- Those alternates of a generation that are not the first two of their image.
COPY (SELECT image_key, m.leaf, m.weight FROM placement, unnest(more_leaves, more_weights) AS m (leaf, weight)
      WHERE generation = %(generation)s AND more_leaves IS NOT NULL)
TO STDOUT (FORMAT BINARY);

-- name: embedding_width
-- Bytes of one embedding in a generation.
SELECT length(embedding) FROM placement WHERE generation = %(generation)s LIMIT 1;

-- name: copy_image_embeddings
-- All ranking embeddings of a generation in ascending key, binary.
COPY (SELECT image_key, confidence, trained, embedding FROM placement WHERE generation = %(generation)s ORDER BY image_key)
TO STDOUT (FORMAT BINARY);

-- name: copy_metadata
-- Metadata of all images of a generation that have some, in ascending key.
COPY (SELECT i.image_key, i.metadata FROM image i JOIN placement e USING (image_key)
      WHERE e.generation = %(generation)s AND i.metadata <> '{}' ORDER BY i.image_key)
TO STDOUT (FORMAT BINARY);

-- name: metadata_of_images
-- Metadata of those of these images that have some.
COPY (SELECT image_key, metadata FROM image WHERE image_key = ANY(%(image_keys)s) AND metadata <> '{}')
TO STDOUT (FORMAT BINARY);

-- name: changed_postings
-- The postings of images that became visible since `previous`. The order of commits does not matter:
-- a row is new when its writer was not visible then, however low its number. A row that is read at
-- all is visible now; one whose writer is still to come was restored from another cluster.
COPY (SELECT image_key, leaf, suffix, weight, coalesce(leaf2, -1), coalesce(weight2, 0), coalesce(leaf3, -1), coalesce(weight3, 0),
             more_leaves IS NOT NULL
      FROM placement
      WHERE generation = %(generation)s AND leaf IS NOT NULL AND changed_by >= pg_snapshot_xmin(%(previous)s::pg_snapshot)
        AND NOT pg_visible_in_snapshot(changed_by, %(previous)s::pg_snapshot)
        AND changed_by < pg_snapshot_xmax(pg_current_snapshot()))
TO STDOUT (FORMAT BINARY);

-- name: changed_more_postings
-- The other alternates of those images.
COPY (SELECT image_key, m.leaf, m.weight FROM placement, unnest(more_leaves, more_weights) AS m (leaf, weight)
      WHERE generation = %(generation)s AND more_leaves IS NOT NULL AND changed_by >= pg_snapshot_xmin(%(previous)s::pg_snapshot)
        AND NOT pg_visible_in_snapshot(changed_by, %(previous)s::pg_snapshot)
        AND changed_by < pg_snapshot_xmax(pg_current_snapshot()))
TO STDOUT (FORMAT BINARY);

-- name: changed_embeddings
-- Ranking embeddings that became visible since `previous`.
COPY (SELECT image_key, confidence, trained, embedding FROM placement
      WHERE generation = %(generation)s AND changed_by >= pg_snapshot_xmin(%(previous)s::pg_snapshot)
        AND NOT pg_visible_in_snapshot(changed_by, %(previous)s::pg_snapshot)
        AND changed_by < pg_snapshot_xmax(pg_current_snapshot()) ORDER BY image_key)
TO STDOUT (FORMAT BINARY);

-- name: changed_tombstones
-- Images that were removed since `previous`.
SELECT image_key FROM tombstone
WHERE changed_by >= pg_snapshot_xmin(%(previous)s::pg_snapshot)
  AND NOT pg_visible_in_snapshot(changed_by, %(previous)s::pg_snapshot)
  AND changed_by < pg_snapshot_xmax(pg_current_snapshot()) ORDER BY image_key;
