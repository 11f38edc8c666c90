-- Pictures that clients uploaded over HTTP lie in the store under the hash of their bytes too: in S3 as those of `sigma ingest`, in a
-- folder by an address of the store. Deleting an image erases them.
CREATE OR REPLACE FUNCTION stored_pictures(i image) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT array_remove(ARRAY[
        nullif(i.normalized_uri, ''),
        CASE WHEN i.uri ~ '^(s3://[^/]+/arrived/[0-9a-f]{2}/[0-9a-f]{62}\.|store:///[0-9a-f]{2}/[0-9a-f]{62}\.upload$)' THEN i.uri END
    ], NULL)
$$;
