-- name: share_generation
-- Appends may run side by side, but not beside the initial load of the same generation.
SELECT pg_advisory_xact_lock_shared(hashtextextended('sigma load ' || %(generation)s, 0));

-- name: own_generation
-- The initial load runs alone in its generation.
SELECT pg_advisory_xact_lock(hashtextextended('sigma load ' || %(generation)s, 0));

-- name: present_images
-- Which of these images are in the generation already: a replay skips them.
SELECT image_key FROM placement WHERE generation = %(generation)s AND image_key = ANY(%(image_keys)s);

-- name: lock_leaves
-- Locks leaves in ascending order, creating those never used; returns how many of their suffixes
-- are used.
INSERT INTO leaf (generation, leaf)
SELECT %(generation)s, l FROM unnest(%(leaves)s::bigint[]) AS l ORDER BY l
ON CONFLICT (generation, leaf) DO UPDATE SET live = leaf.live
RETURNING leaf, next_suffix, live;

-- name: free_suffixes
-- Gaps that deleted images left in leaves whose suffixes are all used. The leaves must be locked.
SELECT u.leaf, s.suffix
FROM unnest(%(leaves)s::bigint[]) AS u (leaf), generate_series(0, %(suffixes)s - 1) AS s (suffix)
WHERE NOT EXISTS (SELECT FROM placement p WHERE p.generation = %(generation)s AND p.leaf = u.leaf AND p.suffix = s.suffix)
ORDER BY u.leaf, s.suffix;

-- name: update_leaves
-- Writes back how many suffixes of locked leaves are used.
UPDATE leaf SET next_suffix = u.next_suffix, live = u.live
FROM unnest(%(leaves)s::bigint[], %(next_suffixes)s::int[], %(lives)s::int[]) AS u (leaf, next_suffix, live)
WHERE leaf.generation = %(generation)s AND leaf.leaf = u.leaf;

-- name: lock_known_leaves
-- Locks those of these leaves that have a row, in ascending order, as all writers do.
SELECT leaf FROM leaf WHERE generation = %(generation)s AND leaf = ANY(%(leaves)s::bigint[]) ORDER BY leaf FOR UPDATE;

-- name: copy_leaves
-- Rows of leaves that have none, binary. Only for who owns the generation: nobody else adds any meanwhile.
COPY leaf (generation, leaf, next_suffix, live) FROM STDIN (FORMAT BINARY);

-- name: fill_leaves
-- Counts the primaries of a load in leaves that are locked; returns how many of those were empty.
WITH loaded AS (
    SELECT * FROM unnest(%(leaves)s::bigint[], %(next_suffixes)s::int[], %(lives)s::int[]) AS u (leaf, next_suffix, live)
), written AS (
    UPDATE leaf SET next_suffix = greatest(leaf.next_suffix, loaded.next_suffix), live = leaf.live + loaded.live
    FROM loaded WHERE leaf.generation = %(generation)s AND leaf.leaf = loaded.leaf
    RETURNING leaf.live, loaded.live AS added
)
SELECT count(*) FROM written WHERE live = added;

-- name: shape_suffixes
-- Suffixes that a generation's shape has.
SELECT (shape ->> 'suffixes')::int FROM generation WHERE id = %(generation)s;

-- name: append_placements
-- Inserts what a generation has of images: one row each.
INSERT INTO placement (generation, image_key, leaf, suffix, weight, leaf2, weight2, leaf3, weight3, more_leaves, more_weights,
                       embedding, confidence, trained)
SELECT %(generation)s, u.image_key, u.leaf, u.suffix, u.weight, u.leaf2, u.weight2, u.leaf3, u.weight3, u.more_leaves::bigint[],
       u.more_weights::real[], u.embedding, u.confidence, u.trained
FROM unnest(%(image_key)s::bigint[], %(leaf)s::bigint[], %(suffix)s::int[], %(weight)s::real[], %(leaf2)s::bigint[], %(weight2)s::real[],
            %(leaf3)s::bigint[], %(weight3)s::real[], %(more_leaves)s::text[], %(more_weights)s::text[], %(embedding)s::bytea[],
            %(confidence)s::real[], %(trained)s::boolean[])
     AS u (image_key, leaf, suffix, weight, leaf2, weight2, leaf3, weight3, more_leaves, more_weights, embedding, confidence, trained)
ORDER BY u.image_key;

-- name: copy_placements_of_1
-- Initial load of images with one posting, binary. Rows of one width: none of the columns is NULL in one and not in another.
COPY placement (generation, image_key, embedding, confidence, trained, leaf, weight, suffix) FROM STDIN (FORMAT BINARY);

-- name: copy_placements_of_2
-- The same of images with two postings.
COPY placement (generation, image_key, embedding, confidence, trained, leaf, weight, suffix, leaf2, weight2) FROM STDIN (FORMAT BINARY);

-- name: copy_placements_of_3
-- The same of images with three.
COPY placement (generation, image_key, embedding, confidence, trained, leaf, weight, suffix, leaf2, weight2, leaf3, weight3)
FROM STDIN (FORMAT BINARY);

-- name: copy_placements_of_more
-- The same of images with more, of which each has as many.
COPY placement (generation, image_key, embedding, confidence, trained, leaf, weight, suffix, leaf2, weight2, leaf3, weight3,
                more_leaves, more_weights)
FROM STDIN (FORMAT BINARY);

-- name: generations_of_images
-- Generations with any of these images, ascending: the order in which they must be locked.
SELECT DISTINCT generation FROM placement WHERE image_key = ANY(%(image_keys)s) ORDER BY generation;

-- name: lock_leaves_of_images
-- Locks the primary leaves of images that are about to be removed, in ascending order.
SELECT leaf FROM leaf
WHERE generation = %(generation)s AND leaf IN (
    SELECT leaf FROM placement WHERE generation = %(generation)s AND image_key = ANY(%(image_keys)s))
ORDER BY leaf FOR UPDATE;

-- name: remove_placements
-- Removes images and returns what the counters lose: images, postings, emptied leaves, checksum,
-- images beyond the shape's suffixes.
WITH gone AS (
    DELETE FROM placement WHERE generation = %(generation)s AND image_key = ANY(%(image_keys)s)
    RETURNING image_key, leaf, suffix, leaf2, leaf3, more_leaves
), removed AS (
    SELECT image_key, leaf, suffix FROM gone WHERE leaf IS NOT NULL
    UNION ALL
    SELECT image_key, alternate, NULL FROM gone, unnest(ARRAY[leaf2, leaf3] || more_leaves) AS alternate WHERE alternate IS NOT NULL
), fewer AS (
    UPDATE leaf SET live = live - lost.n
    FROM (SELECT leaf, count(*)::int AS n FROM removed WHERE suffix IS NOT NULL GROUP BY leaf) lost
    WHERE leaf.generation = %(generation)s AND leaf.leaf = lost.leaf
    RETURNING leaf.live
)
SELECT count(*) FILTER (WHERE suffix IS NOT NULL), count(*), (SELECT count(*) FROM fewer WHERE live = 0),
       coalesce(sum(posting_hash(image_id, leaf, suffix IS NOT NULL)), 0),
       count(*) FILTER (WHERE suffix >= (SELECT (shape ->> 'suffixes')::int FROM generation WHERE id = %(generation)s))
FROM removed JOIN image USING (image_key);

-- name: insert_tombstones
-- Records for followers that these keys were removed; a key never comes back.
INSERT INTO tombstone (image_key) SELECT k FROM unnest(%(image_keys)s::bigint[]) AS k ORDER BY k ON CONFLICT DO NOTHING;

-- name: notify_index
-- Wakes the followers when this transaction commits.
SELECT pg_notify('sigma_index', %(generation)s::text);

-- name: count_up
-- Adds to counters.
SELECT count_up(%(generation)s, %(names)s::text[], %(amounts)s::numeric[]);

-- name: counters
-- The counters of a generation, or of the whole database (0).
SELECT name, sum(value) FROM counter WHERE generation = %(generation)s GROUP BY name;

-- name: recount
-- The slow truth that the counters must equal.
SELECT count(*) FILTER (WHERE suffix IS NOT NULL), count(*), count(DISTINCT leaf) FILTER (WHERE suffix IS NOT NULL),
       coalesce(sum(posting_hash(image_id, leaf, suffix IS NOT NULL)), 0),
       count(*) FILTER (WHERE suffix >= (SELECT (shape ->> 'suffixes')::int FROM generation WHERE id = %(generation)s))
FROM posting JOIN image USING (image_key) WHERE generation = %(generation)s;

-- name: postings_of_images
-- The postings of images in a generation, primaries first.
SELECT image_key, leaf, suffix, weight FROM posting
WHERE generation = %(generation)s AND image_key = ANY(%(image_keys)s) ORDER BY image_key, suffix IS NULL, weight DESC, leaf;

-- name: image_at
-- The image that has an identifier.
SELECT image_key FROM placement WHERE generation = %(generation)s AND leaf = %(leaf)s AND suffix = %(suffix)s;

-- name: fullest_leaves
-- Leaves with the most primaries, for the suffix-pressure report.
SELECT leaf, live, next_suffix FROM leaf WHERE generation = %(generation)s ORDER BY live DESC, leaf LIMIT %(amount)s;
