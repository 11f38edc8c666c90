-- name: image_records
-- All that is stored of images, by id.
SELECT image_key, image_id, version, state::text, uri, normalized_uri, captions, width, height, split, image_checksum(image),
       arrived_at, indexed_at, metadata
FROM image WHERE image_id = ANY(%(image_ids)s) AND state <> 'deleted' ORDER BY image_id;

-- name: image_ids_after
-- The images that come after an id, in the order of ids.
SELECT image_id FROM image
WHERE state <> 'deleted' AND (%(after)s::text IS NULL OR image_id > %(after)s) ORDER BY image_id LIMIT %(amount)s;

-- name: places_of_image
-- The postings of an image in all generations, the primary of each first.
SELECT generation, leaf, suffix, weight FROM posting
WHERE image_key = %(image_key)s ORDER BY generation, suffix IS NULL, weight DESC, leaf;

-- name: prefix_loads
-- How many images each child of a prefix holds. `below` is the number of leaves below a child.
SELECT leaf / %(below)s, sum(live)::bigint FROM leaf
WHERE generation = %(generation)s AND leaf >= %(first)s AND leaf < %(end)s AND live > 0 GROUP BY 1 ORDER BY 1;

-- name: prefix_examples
-- The first images below each of some prefixes of one length.
SELECT c.child, i.image_id
FROM unnest(%(children)s::bigint[]) AS c (child)
CROSS JOIN LATERAL (
    SELECT leaf, suffix, image_key FROM placement
    WHERE generation = %(generation)s AND leaf >= c.child * %(below)s AND leaf < (c.child + 1) * %(below)s
    ORDER BY leaf, suffix LIMIT %(amount)s
) p
JOIN image i USING (image_key) ORDER BY c.child, p.leaf, p.suffix;

-- name: leaf_images
-- The images whose identifier is in a leaf, from a suffix on.
SELECT p.suffix, i.image_id FROM placement p JOIN image i USING (image_key)
WHERE p.generation = %(generation)s AND p.leaf = %(leaf)s AND p.suffix > %(after)s ORDER BY p.suffix LIMIT %(amount)s;

-- name: image_ids_before
-- The newest images, in descending key: a key is given when an image is accepted first, and kept by later versions.
SELECT image_id FROM image WHERE state <> 'deleted' AND (%(before)s::bigint IS NULL OR image_key < %(before)s)
ORDER BY image_key DESC LIMIT %(amount)s;
