-- Up to where a generation has every image, so that nobody looks for missing ones below. Keys only ascend, and no image leaves a
-- generation but by a deletion.
ALTER TABLE generation ADD COLUMN complete_to bigint NOT NULL DEFAULT 0, ADD COLUMN unplaced bigint[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN generation.complete_to IS 'Every image with a key up to this one is in the generation, is deleted, or is unplaced';
COMMENT ON COLUMN generation.unplaced IS 'Keys up to complete_to of images that could not be assigned: they are tried again';
