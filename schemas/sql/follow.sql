-- name: current_snapshot
-- What this transaction can see: the boundary between what a follower has read and what is still
-- to come. The epoch rises when the database was restored: what was read is of another time then.
SELECT pg_current_snapshot()::text, number, cluster, clock_timestamp() FROM epoch;

-- name: copy_postings
-- All postings of a generation, binary; suffix -1 marks an alternate, so that all rows have the
-- same width.
COPY (SELECT leaf, image_key, weight, coalesce(suffix, -1) FROM posting WHERE generation = %(generation)s)
TO STDOUT (FORMAT BINARY);

-- name: embedding_width
-- Bytes of one embedding in a generation.
SELECT length(embedding) FROM image_embedding WHERE generation = %(generation)s LIMIT 1;

-- name: copy_image_embeddings
-- All ranking embeddings of a generation in ascending key, binary.
COPY (SELECT image_key, confidence, trained, embedding FROM image_embedding WHERE generation = %(generation)s ORDER BY image_key)
TO STDOUT (FORMAT BINARY);

-- name: copy_metadata
-- Metadata of all images of a generation that have some, in ascending key.
COPY (SELECT i.image_key, i.metadata FROM image i JOIN image_embedding e USING (image_key)
      WHERE e.generation = %(generation)s AND i.metadata <> '{}' ORDER BY i.image_key)
TO STDOUT (FORMAT BINARY);

-- name: metadata_of_images
-- Metadata of those of these images that have some.
COPY (SELECT image_key, metadata FROM image WHERE image_key = ANY(%(image_keys)s) AND metadata <> '{}')
TO STDOUT (FORMAT BINARY);

-- name: changed_postings
-- Postings that became visible since `previous`. The order of commits does not matter: a row is new
-- when its writer was not visible then, however low its number. A row that is read at all is
-- visible now; one whose writer is still to come was restored from another cluster.
COPY (SELECT leaf, image_key, weight, coalesce(suffix, -1) FROM posting
      WHERE generation = %(generation)s AND changed_by >= pg_snapshot_xmin(%(previous)s::pg_snapshot)
        AND NOT pg_visible_in_snapshot(changed_by, %(previous)s::pg_snapshot)
        AND changed_by < pg_snapshot_xmax(pg_current_snapshot()))
TO STDOUT (FORMAT BINARY);

-- name: changed_embeddings
-- Ranking embeddings that became visible since `previous`.
COPY (SELECT image_key, confidence, trained, embedding FROM image_embedding
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
