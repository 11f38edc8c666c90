-- The SHA-256 of an image's bytes in 32 bytes instead of 64 letters, a thirtieth of all that is stored of it. Rows that are there keep their
-- letters and read the same: to write them anew would hold up writers for that thirtieth.
ALTER TABLE image ADD COLUMN digest bytea;
COMMENT ON COLUMN image.digest IS 'SHA-256 of the bytes that arrived, where checksum is empty; NULL of deleted images';

CREATE FUNCTION image_checksum(i image) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN coalesce(nullif(i.checksum, ''), encode(i.digest, 'hex'), '');
COMMENT ON FUNCTION image_checksum IS 'In hexadecimal, as events have it; empty of deleted images';

-- Programs of earlier schemas that still run read letters. None of them starts again beside this schema, so within a day they are gone; where
-- all migrations were one transaction, there never were any.
CREATE FUNCTION writes_digests() RETURNS boolean LANGUAGE sql STABLE
    RETURN NOT EXISTS (SELECT FROM schema_version own JOIN schema_version before ON before.applied_at < own.applied_at
                       WHERE own.version = 20 AND before.version < 20 AND own.applied_at > now() - interval '1 day');

-- Those programs delete an image and bring a new version of it in the columns that they know.
CREATE FUNCTION forget_digest() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.digest := NULL;
    RETURN NEW;
END $$;
CREATE TRIGGER forget_digest BEFORE UPDATE OF state ON image FOR EACH ROW
    WHEN (NEW.digest IS NOT NULL AND (NEW.state = 'deleted' OR NEW.checksum <> '')) EXECUTE FUNCTION forget_digest();
