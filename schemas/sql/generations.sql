-- name: insert_generation
-- A new generation, building.
INSERT INTO generation (codebook_version, checkpoint_path, shape, config)
VALUES (%(codebook_version)s, %(checkpoint_path)s, %(shape)s, %(config)s) RETURNING id;

-- name: open_partitions
-- Creates the generation's own tables.
SELECT open_partitions(%(generation)s);

-- name: limit_lock_wait
-- Dropping a partition locks the whole table, and all later queries wait behind it: give up soon
-- instead.
SELECT set_config('lock_timeout', '2s', true);

-- name: drop_partitions
-- Drops the generation's own tables, in constant time.
SELECT drop_partitions(%(generation)s);

-- name: delete_leaves
-- Deletes the suffix counters of a generation.
DELETE FROM leaf WHERE generation = %(generation)s;

-- name: delete_counters
-- Deletes the counters of a generation.
DELETE FROM counter WHERE generation = %(generation)s;

-- name: update_generation
-- Fills in what training produced; NULL keeps what is there.
UPDATE generation SET
    codebook_version = coalesce(%(codebook_version)s, codebook_version),
    checkpoint_path = coalesce(%(checkpoint_path)s, checkpoint_path),
    config = config || coalesce(%(config)s, '{}'::jsonb)
WHERE id = %(generation)s RETURNING id;

-- name: generations
-- All generations, oldest first.
SELECT id, state::text, codebook_version, checkpoint_path, shape, config, created_at, live_at, ended_at
FROM generation ORDER BY id;

-- name: largest_encoder
-- Pixels of a side that the encoders read, the largest of all generations that get arrivals or may
-- get some again; none recorded is 0.
SELECT coalesce(max((config->>'encoder_px')::int), 0) FROM generation WHERE state <> 'failed';

-- name: lock_generations
-- The set of generations and their states change alone: while no other change and no transaction
-- that accepts images runs.
SELECT pg_advisory_xact_lock(hashtextextended('sigma generations', 0));

-- name: share_generations
-- A transaction that accepts images takes this before it reads which generations receive them, and
-- keeps it until its commit.
SELECT pg_advisory_xact_lock_shared(hashtextextended('sigma generations', 0));

-- name: live_generation
-- The number of the live generation.
SELECT id FROM generation WHERE state = 'live';

-- name: set_generation_state
-- One step of the state machine; the trigger refuses the others.
UPDATE generation SET state = %(state)s::generation_state WHERE id = %(generation)s RETURNING id;

-- name: notify_generation
-- Notifies the query workers of a switch.
SELECT pg_notify('sigma_generation', %(generation)s::text);

-- name: count_lacking_images
-- Images up to a key that are in the live generation and not in a candidate: above another key, and of some others.
SELECT count(*) FROM placement l
WHERE l.generation = %(live)s AND l.image_key <= %(ceiling)s
  AND (l.image_key > %(above)s OR l.image_key = ANY(%(unplaced)s))
  AND NOT EXISTS (SELECT FROM placement c WHERE c.generation = %(candidate)s AND c.image_key = l.image_key
                  AND (c.image_key > %(above)s OR c.image_key = ANY(%(unplaced)s)));

-- name: watermark
-- Up to where a generation has every image, and the keys up to there of those that it could not take.
SELECT complete_to, unplaced FROM generation WHERE id = %(generation)s;

-- name: set_complete
-- Raises a generation's watermark, unless another process has raised it further.
UPDATE generation SET complete_to = %(complete_to)s, unplaced = %(unplaced)s::bigint[]
WHERE id = %(generation)s AND complete_to <= %(complete_to)s;
