-- Which versions of an image are deleted, of those that came and those that are still to come: a deletion may overtake its image.
CREATE TABLE deletion (
    image_id text PRIMARY KEY,
    version int NOT NULL CHECK (version >= 0),
    published_at timestamptz,
    deleted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON COLUMN deletion.version IS 'This version and every lower one is deleted';
COMMENT ON COLUMN deletion.published_at IS
    'When the newest deletion that named no version was published: every version published up to then is deleted too';

INSERT INTO deletion (image_id, version) SELECT image_id, version FROM image WHERE state = 'deleted';
