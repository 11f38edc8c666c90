-- name: trainable_keys
-- Keys of images with captions, ascending: what a model can learn from, whether in a trie or not.
SELECT image_key FROM image
WHERE state <> 'deleted' AND jsonb_array_length(captions) > 0 AND image_key > %(after)s ORDER BY image_key LIMIT %(amount)s;

-- name: indexed_images
-- The identifiers of a generation in ascending key, whether each was trained on, and whether it could be.
SELECT image_key, p.leaf, p.suffix, e.trained, jsonb_array_length(i.captions) > 0
FROM posting p JOIN image_embedding e USING (image_key) JOIN image i USING (image_key)
WHERE p.generation = %(generation)s AND e.generation = %(generation)s AND p.suffix IS NOT NULL AND image_key > %(after)s
ORDER BY image_key LIMIT %(amount)s;

-- name: untrained_images
-- How many images of a generation could be trained on and were not.
SELECT count(*) FROM image_embedding e JOIN image i USING (image_key)
WHERE e.generation = %(generation)s AND NOT e.trained AND jsonb_array_length(i.captions) > 0;

-- name: embeddings_of_images
-- Ranking embeddings and confidences of a generation by key.
SELECT image_key, embedding, confidence FROM image_embedding WHERE generation = %(generation)s AND image_key = ANY(%(image_keys)s);
