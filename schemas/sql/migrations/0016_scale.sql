-- Alternates have no suffix: two of three postings need no entry in the index that keeps identifiers unique.
ALTER TABLE posting DROP CONSTRAINT posting_leaf_suffix_generation_key;
CREATE UNIQUE INDEX posting_identifier ON posting (leaf, suffix, generation) WHERE suffix IS NOT NULL;

-- Few images have metadata in most installations, and a query worker asks for those at each start.
CREATE INDEX image_metadata ON image (image_key) WHERE metadata <> '{}';
