-- name: share_deletions
-- A transaction that accepts images takes this before it looks for deletions, and keeps it until its commit.
SELECT pg_advisory_xact_lock_shared(hashtextextended('sigma deletions', 0));

-- name: own_deletions
-- A deletion must not miss an image that a running transaction is about to insert: its row cannot be locked yet.
SELECT pg_advisory_xact_lock(hashtextextended('sigma deletions', 0));

-- name: deletions
-- Which versions of these images are deleted.
SELECT image_id, version, published_at FROM deletion WHERE image_id = ANY(%(image_ids)s);

-- name: store_deletions
-- What is deleted of an image only grows, so that the order in which events are read does not matter.
INSERT INTO deletion (image_id, version, published_at)
SELECT u.image_id, u.version, u.published_at
FROM unnest(%(image_id)s::text[], %(version)s::int[], %(published_at)s::timestamptz[]) AS u (image_id, version, published_at)
ORDER BY u.image_id COLLATE "C"
ON CONFLICT (image_id) DO UPDATE SET
    version = greatest(deletion.version, excluded.version),
    published_at = greatest(deletion.published_at, excluded.published_at),
    deleted_at = clock_timestamp();

-- name: note_refused_versions
-- Which versions were refused, and when each was published first.
INSERT INTO refused_version (image_id, version, published_at)
SELECT u.image_id, u.version, u.published_at
FROM unnest(%(image_id)s::text[], %(version)s::int[], %(published_at)s::timestamptz[]) AS u (image_id, version, published_at)
ON CONFLICT (image_id, version) DO UPDATE SET
    published_at = least(refused_version.published_at, excluded.published_at), refused_at = clock_timestamp();

-- name: refused_versions
-- The refused versions of images.
SELECT image_id, version, published_at FROM refused_version WHERE image_id = ANY(%(image_ids)s);

-- name: lock_images_by_id
-- Locks images in the order of image_id, as all writers do, so that no two wait for each other.
SELECT image_key, image_id, version, state::text, image_checksum(image), published_at, metadata
FROM image WHERE image_id = ANY(%(image_ids)s) ORDER BY image_id FOR UPDATE;

-- name: lock_images_by_key
-- The same by key. Images that were deleted, or replaced by a newer version, are left out.
SELECT image_key, image_id FROM image WHERE image_key = ANY(%(image_keys)s) AND state <> 'deleted' ORDER BY image_id FOR UPDATE;

-- name: upsert_images
-- Inserts images, or replaces older versions under new keys; returns whether each was inserted
-- (xmax is 0). Returns no row for an image whose same or newer version is stored. `indexed` when the
-- same transaction brings them into a generation: so their rows are written once and not twice.
INSERT INTO image (state, indexed_at, image_id, version, uri, normalized_uri, checksum, digest, width, height, captions, test_captions,
                   split, arrived_at, published_at, metadata)
SELECT CASE WHEN %(indexed)s THEN 'indexed'::image_state ELSE 'accepted' END, CASE WHEN %(indexed)s THEN clock_timestamp() END,
       u.image_id, u.version, u.uri, u.normalized_uri, CASE WHEN d.narrow THEN '' ELSE u.checksum END,
       CASE WHEN d.narrow THEN decode(u.checksum, 'hex') END, u.width, u.height, u.captions::jsonb, u.test_captions::jsonb,
       u.split, u.arrived_at, u.published_at, u.metadata::jsonb
FROM unnest(%(image_id)s::text[], %(version)s::int[], %(uri)s::text[], %(normalized_uri)s::text[], %(checksum)s::text[],
            %(width)s::int[], %(height)s::int[], %(captions)s::text[], %(test_captions)s::text[], %(split)s::text[],
            %(arrived_at)s::timestamptz[], %(published_at)s::timestamptz[], %(metadata)s::text[])
     AS u (image_id, version, uri, normalized_uri, checksum, width, height, captions, test_captions, split, arrived_at, published_at,
           metadata),
     LATERAL (SELECT writes_digests() AND u.checksum ~ '^[0-9a-f]{64}$' AS narrow) d
ORDER BY u.image_id COLLATE "C"
ON CONFLICT (image_id) DO UPDATE SET
    image_key = DEFAULT, version = excluded.version, state = excluded.state, uri = excluded.uri,
    normalized_uri = excluded.normalized_uri, checksum = excluded.checksum, digest = excluded.digest, width = excluded.width,
    height = excluded.height, captions = excluded.captions, test_captions = excluded.test_captions, split = excluded.split,
    arrived_at = excluded.arrived_at, published_at = excluded.published_at, metadata = excluded.metadata,
    accepted_at = now(), indexed_at = excluded.indexed_at
WHERE image.version < excluded.version
RETURNING image_id, image_key, xmax = 0;

-- name: insert_deleted_images
-- Images that were deleted before they came. Of what they hold nothing is kept; the row makes them known and counted once.
INSERT INTO image (image_id, version, state, uri, normalized_uri, checksum, width, height, arrived_at, published_at)
SELECT u.image_id, u.version, 'deleted', '', '', '', 0, 0, u.arrived_at, u.published_at
FROM unnest(%(image_id)s::text[], %(version)s::int[], %(arrived_at)s::timestamptz[], %(published_at)s::timestamptz[])
     AS u (image_id, version, arrived_at, published_at)
ORDER BY u.image_id COLLATE "C"
ON CONFLICT (image_id) DO NOTHING
RETURNING image_id, image_key;

-- name: publish_earlier
-- When a version was published first: an event that is published again does not move it behind a deletion.
UPDATE image SET published_at = u.published_at
FROM unnest(%(image_keys)s::bigint[], %(published_at)s::timestamptz[]) AS u (image_key, published_at)
WHERE image.image_key = u.image_key AND u.published_at < image.published_at;

-- name: delete_rejections
-- An image that was accepted is no longer a rejected one.
DELETE FROM rejection r USING unnest(%(image_ids)s::text[], %(versions)s::int[]) AS u (image_id, version)
WHERE r.image_id = u.image_id AND r.version <= u.version;

-- name: insert_rejection
-- Records why an image was refused, and when last; returns whether it is new (xmax is 0).
INSERT INTO rejection (image_id, version, uri, code, reason, stage)
VALUES (%(image_id)s, %(version)s, %(uri)s, %(code)s, %(reason)s, %(stage)s)
ON CONFLICT (image_id, version) DO UPDATE SET
    uri = excluded.uri, code = excluded.code, reason = excluded.reason, stage = excluded.stage, rejected_at = clock_timestamp()
RETURNING xmax = 0;

-- name: rejections
-- Refused images, newest first.
SELECT image_id, version, uri, code, reason, stage, rejected_at FROM rejection
WHERE %(image_ids)s::text[] IS NULL OR image_id = ANY(%(image_ids)s) ORDER BY rejected_at DESC, image_id LIMIT %(amount)s;

-- name: mark_deleted
-- Marks images as deleted. The row stays, so that a replayed arrival stays deleted, and loses its content.
UPDATE image SET state = 'deleted', uri = '', normalized_uri = '', checksum = '', digest = NULL, width = 0, height = 0, captions = '[]',
    test_captions = '[]', split = NULL, metadata = '{}'
WHERE image_key = ANY(%(image_keys)s);

-- name: mark_indexed
-- Marks images as indexed, keeping the first time. Those that another generation has are marked, and not written again.
UPDATE image SET state = 'indexed', indexed_at = coalesce(indexed_at, clock_timestamp())
WHERE image_key = ANY(%(image_keys)s) AND (state <> 'indexed' OR indexed_at IS NULL);

-- name: accepted_images
-- How many images are in no generation. Scans the table: for an installation without one.
SELECT count(*) FROM image WHERE state = 'accepted';

-- name: images_by_key
-- What an answer shows of an image.
SELECT image_key, image_id, version, state::text, uri, normalized_uri, captions, test_captions, split, arrived_at, indexed_at,
       image_checksum(image), published_at, metadata
FROM image WHERE image_key = ANY(%(image_keys)s);

-- name: images_by_id
-- The same by id.
SELECT image_key, image_id, version, state::text, uri, normalized_uri, captions, test_captions, split, arrived_at, indexed_at,
       image_checksum(image), published_at, metadata
FROM image WHERE image_id = ANY(%(image_ids)s);

-- name: missing_images
-- Images that are not in a generation yet, oldest key first: what a candidate or a rolled-back
-- generation must catch up. Above a key, and of some others.
WITH missing AS (
    (SELECT i.image_key FROM unnest(%(unplaced)s::bigint[]) AS u (image_key) JOIN image i USING (image_key)
     WHERE i.state <> 'deleted'
       AND NOT EXISTS (SELECT FROM placement e WHERE e.generation = %(generation)s AND e.image_key = i.image_key)
     ORDER BY i.image_key LIMIT %(amount)s)
    UNION ALL
    (SELECT i.image_key FROM image i
     WHERE i.state <> 'deleted' AND i.image_key > %(above)s
       AND NOT EXISTS (SELECT FROM placement e
                       WHERE e.generation = %(generation)s AND e.image_key = i.image_key AND e.image_key > %(above)s)
     ORDER BY i.image_key LIMIT %(amount)s)
)
SELECT i.image_key, i.image_id, i.version, i.state::text, i.uri, i.normalized_uri, i.captions, i.test_captions, i.split,
       i.arrived_at, i.indexed_at, image_checksum(i), i.published_at, i.metadata
FROM missing JOIN image i USING (image_key) ORDER BY i.image_key LIMIT %(amount)s;

-- name: newest_image
-- The highest key. Under the lock on the generations, no lower one is still to be committed.
SELECT coalesce(max(image_key), 0) FROM image;

-- name: record_visibility
-- When a query worker began to return these images.
INSERT INTO visibility (worker, image_key, published_at, indexed_at, searchable_at)
SELECT %(worker)s, image_key, published_at, indexed_at, %(searchable_at)s
FROM image WHERE image_key = ANY(%(image_keys)s) AND indexed_at IS NOT NULL
RETURNING greatest(0, extract(epoch FROM searchable_at - indexed_at))::float8;

-- name: prune_visibility
-- Keeps the newest rows only.
DELETE FROM visibility WHERE id < (SELECT id FROM visibility ORDER BY id DESC OFFSET %(keep)s LIMIT 1);

-- name: freshness
-- Seconds from publishing to searchable over the newest 1,000 images of the last hour.
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY s), percentile_cont(0.95) WITHIN GROUP (ORDER BY s)
FROM (SELECT greatest(0, extract(epoch FROM searchable_at - published_at))::float8 AS s FROM visibility
      WHERE searchable_at > now() - interval '1 hour' ORDER BY id DESC LIMIT 1000) recent;

-- name: clock
-- The database's own time, which rejections are compared with.
SELECT clock_timestamp();

-- name: visible_images
-- Which of these images a query worker began to return.
SELECT DISTINCT image_key FROM visibility WHERE image_key = ANY(%(image_keys)s);

-- name: image_page
-- Images of a generation in ascending key, for exhaustive comparisons.
SELECT i.image_key, i.image_id, i.normalized_uri, e.trained FROM image i JOIN placement e USING (image_key)
WHERE e.generation = %(generation)s AND i.image_key > %(after)s ORDER BY i.image_key LIMIT %(amount)s;

-- name: occupied_leaves
-- Every leaf that an image is posted under: what an identifier must be one of to be valid.
SELECT DISTINCT leaf FROM posting WHERE generation = %(generation)s ORDER BY leaf;
