-- Fewer bytes an image. The new indexes are built first, beside readers, and the old ones go in an instant at the end.

-- Postings are found by their image or their leaf. That an image is not twice under a leaf is seen to before its postings are written, and
-- they are written with its embedding, whose key is unique. An index of keys that repeat holds each once.
CREATE INDEX posting_image ON posting (image_key);

-- By hash: an address is longer than all else in an index entry. Without the state in the predicate, marking an image as indexed changes no
-- column of any index, and so writes no entry in one where its page has room. Deleted images have no picture.
CREATE INDEX image_stored_picture ON image (hashtextextended(normalized_uri, 0)) WHERE normalized_uri <> '';

-- Every image is written twice, when it comes and when it is indexed. A fifth of dead rows, as by default, is too much of a large table.
ALTER TABLE image SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE leaf SET (autovacuum_vacuum_scale_factor = 0.05);

-- Columns of new partitions by falling width, so that nothing is lost to alignment. Rows find their columns by name.
CREATE OR REPLACE FUNCTION open_partitions(of_generation int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parent text;
BEGIN
    EXECUTE format('CREATE TABLE %I (leaf bigint NOT NULL, image_key bigint NOT NULL, changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
                    generation int NOT NULL, weight real NOT NULL, suffix int)', 'posting_' || of_generation);
    EXECUTE format('CREATE TABLE %I (image_key bigint NOT NULL, changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(), generation int NOT NULL,
                    confidence real NOT NULL, trained boolean NOT NULL, embedding bytea NOT NULL)', 'image_embedding_' || of_generation);
    EXECUTE format('ALTER TABLE %I ALTER COLUMN embedding SET STORAGE EXTERNAL', 'image_embedding_' || of_generation);
    FOREACH parent IN ARRAY ARRAY['posting', 'image_embedding'] LOOP
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', parent, parent || '_' || of_generation, of_generation);
    END LOOP;
END $$;

ALTER TABLE posting DROP CONSTRAINT posting_pkey;
DROP INDEX image_picture;
