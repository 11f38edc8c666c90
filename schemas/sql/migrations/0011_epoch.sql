-- Which cluster these rows were written in: after a restore elsewhere the stored transaction ids mean nothing.
CREATE TABLE epoch (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number int NOT NULL DEFAULT 1,
    cluster text NOT NULL
);

CREATE FUNCTION this_cluster() RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
    database_oid text := (SELECT oid FROM pg_database WHERE datname = current_database());
BEGIN
    RETURN (SELECT system_identifier FROM pg_control_system()) || '/' || database_oid;
EXCEPTION WHEN insufficient_privilege THEN
    -- Some hosts do not tell it.
    RETURN '?/' || database_oid;
END $$;

-- Takes over rows that were restored here; returns whether they were. Ids of the former cluster that lie in this one's future are set to
-- one that every snapshot sees, so that followers do not take them for changes when the counter gets there.
CREATE FUNCTION adopt_restored() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    known text;
    relation text;
BEGIN
    SELECT cluster INTO known FROM epoch FOR UPDATE;
    IF known = this_cluster() THEN
        RETURN false;
    END IF;
    IF known IS NULL THEN
        INSERT INTO epoch (cluster) VALUES (this_cluster());
        RETURN false;
    END IF;
    FOREACH relation IN ARRAY ARRAY['posting', 'image_embedding', 'tombstone'] LOOP
        EXECUTE format('UPDATE %I SET changed_by = %L::xid8 WHERE changed_by >= pg_current_xact_id()', relation, '3');
    END LOOP;
    DELETE FROM lease;
    UPDATE epoch SET number = number + 1, cluster = this_cluster();
    PERFORM pg_notify('sigma_index', '0');
    RETURN true;
END $$;
