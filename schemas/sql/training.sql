-- name: trainable_keys
-- Keys of images, ascending: what a model can learn from, whether in a trie or not.
SELECT image_key FROM image
WHERE state <> 'deleted' AND image_key > %(after)s ORDER BY image_key LIMIT %(amount)s;

-- name: indexed_images
-- The identifiers of a generation in ascending key, and whether each was trained on.
SELECT image_key, leaf, suffix, trained FROM placement
WHERE generation = %(generation)s AND leaf IS NOT NULL AND image_key > %(after)s
ORDER BY image_key LIMIT %(amount)s;

-- name: untrained_images
-- How many images of a generation were not trained on.
SELECT count(*) FROM placement e WHERE e.generation = %(generation)s AND NOT e.trained;

-- name: embeddings_of_images
-- Ranking embeddings and confidences of a generation by key.
SELECT image_key, embedding, confidence FROM placement WHERE generation = %(generation)s AND image_key = ANY(%(image_keys)s);
