-- name: backup_tables
-- The tables to save and load, with their columns and the tables that they refer to. Columns of
-- transaction ids are left out: they mean nothing in another cluster, and their default is right.
SELECT c.relname,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
               AND a.atttypid <> 'xid8'::regtype ORDER BY a.attnum),
       ARRAY(SELECT DISTINCT r.relname::text FROM pg_constraint f JOIN pg_class r ON r.oid = f.confrelid
             WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.confrelid <> c.oid)
FROM pg_class c
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relname = ANY(%(ours)s::text[])
ORDER BY c.relname;

-- name: backup_partitions
-- The generations that have tables of their own, which had another name before migration 19.
SELECT g.id FROM generation g JOIN pg_class c ON c.relname IN ('placement_' || g.id, 'posting_' || g.id) AND c.relispartition
WHERE c.relnamespace = current_schema()::regnamespace ORDER BY g.id;

-- name: backup_sequences
-- How far numbers were given out. Sequences know no snapshot: they may be ahead of it.
SELECT s.sequencename::text, s.last_value
FROM pg_sequences s
JOIN pg_depend d ON d.objid = format('%%I.%%I', s.schemaname, s.sequencename)::regclass AND d.deptype IN ('a', 'i')
JOIN pg_class t ON t.oid = d.refobjid AND t.relname = ANY(%(ours)s::text[])
WHERE s.schemaname = current_schema() AND s.last_value IS NOT NULL ORDER BY 1;

-- name: set_sequence
-- Numbers that were given out before are not given out again.
SELECT setval(quote_ident(%(name)s)::regclass, %(value)s);

-- name: schema_of
-- The number of the newest migration.
SELECT max(version) FROM schema_version;

-- name: has_schema
-- Whether this database was ever migrated.
SELECT to_regclass('schema_version') IS NOT NULL;

-- name: other_sessions
-- Our own processes that use this database, by the names of their connections.
SELECT DISTINCT application_name FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'sigma %%'
ORDER BY application_name;

-- name: begin_epoch
-- Rows that are loaded here are not those that anybody has followed.
INSERT INTO epoch (cluster) VALUES (this_cluster())
ON CONFLICT (only_row) DO UPDATE SET number = epoch.number + 1, cluster = excluded.cluster;

-- name: backup_pictures
-- The addresses of all stored pictures that rows refer to, each once, by letter.
SELECT DISTINCT normalized_uri COLLATE "C" FROM image
WHERE state <> 'deleted' AND normalized_uri <> '' ORDER BY 1;

-- name: outbox_values
-- Events of one topic that wait to be forwarded.
SELECT value FROM outbox WHERE topic = %(topic)s ORDER BY id;

-- name: images_with_pictures
-- Images whose picture is one of these.
SELECT image_id, version FROM image
WHERE hashtextextended(normalized_uri, 0) = ANY(ARRAY(SELECT hashtextextended(u, 0) FROM unnest(%(pictures)s::text[]) AS u))
  AND normalized_uri <> '' AND normalized_uri = ANY(%(pictures)s) AND state <> 'deleted';
