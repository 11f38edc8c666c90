-- Deleting is erasing. A row keeps no content of a deleted image; what lies outside of rows is noted here until the job `prune` has erased it.
CREATE TABLE erasure (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    image_id text NOT NULL,
    version int NOT NULL,
    pictures text[] NOT NULL DEFAULT '{}',
    caption_hashes bytea[] NOT NULL DEFAULT '{}',
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON COLUMN erasure.version IS 'The log holds nothing of this version and lower ones any more; 0 for none';
COMMENT ON COLUMN erasure.pictures IS 'Addresses in the image store, which are hashes of content';
COMMENT ON COLUMN erasure.caption_hashes IS 'SHA-256; queries with these very words are erased';

CREATE INDEX image_picture ON image (normalized_uri) WHERE state <> 'deleted';
-- By hash: a producer's key may be longer than an index entry.
CREATE INDEX log_event_of_image ON log_event (hashtextextended(key, 0))
    WHERE topic IN ('sigma.images.arrived', 'sigma.images.accepted', 'sigma.images.rejected', 'sigma.images.indexed');
ALTER TABLE tombstone ADD COLUMN removed_at timestamptz NOT NULL DEFAULT clock_timestamp();

-- Copies of arrivals that `sigma ingest` uploaded lie in the store too, under the hash of their bytes.
CREATE FUNCTION stored_pictures(i image) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT array_remove(ARRAY[nullif(i.normalized_uri, ''), CASE WHEN i.uri ~ '^s3://[^/]+/arrived/[0-9a-f]{2}/[0-9a-f]{62}\.' THEN i.uri END], NULL)
$$;
CREATE FUNCTION caption_hashes(i image) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(array_agg(sha256(convert_to(c, 'UTF8'))), '{}')
    FROM jsonb_array_elements_text(i.captions || i.test_captions) AS c
$$;

INSERT INTO erasure (image_id, version, pictures, caption_hashes)
SELECT image_id, version, stored_pictures(image), caption_hashes(image) FROM image WHERE state = 'deleted';
UPDATE image SET uri = '', normalized_uri = '', checksum = '', width = 0, height = 0, captions = '[]', test_captions = '[]', split = NULL
WHERE state = 'deleted';
UPDATE rejection r SET uri = '', reason = '' FROM deletion d WHERE r.image_id = d.image_id AND r.version <= d.version;
