-- Versions that were refused, and when they were published first: a deletion that names no version holds for them too, also when the same
-- version is published again and is readable then.
CREATE TABLE refused_version (
    image_id text NOT NULL,
    version int NOT NULL,
    published_at timestamptz NOT NULL,
    refused_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (image_id, version)
);
