-- One row for all that a generation has of an image: its identifier, its alternates and its embedding. Until now that was a row of
-- `image_embedding` and one of `posting` for each leaf, with a head, a key, a transaction and index entries of its own each. Both names stay, as
-- views that are read and written like the tables before them: programs of schema 18 go on beside this schema.

-- All rows are written anew, which may take longer than a statement usually may. Readers read on until the last moment; writers wait. In the
-- order in which writers take the two.
SET LOCAL statement_timeout = 0;
LOCK TABLE posting, image_embedding IN SHARE MODE;

CREATE FUNCTION all_differ(leaves bigint[]) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (SELECT count(DISTINCT leaf) = count(leaf) FROM unnest(leaves) AS leaf);

-- Columns by falling width, so that nothing is lost to alignment. An alternate that is not there takes no room.
CREATE TABLE placement (
    image_key bigint NOT NULL,
    changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    leaf bigint,
    leaf2 bigint,
    leaf3 bigint,
    generation int NOT NULL,
    suffix int,
    weight real,
    weight2 real,
    weight3 real,
    confidence real NOT NULL,
    trained boolean NOT NULL,
    more_leaves bigint[],
    more_weights real[],
    embedding bytea NOT NULL,
    CONSTRAINT placement_identifier_whole CHECK ((leaf IS NULL) = (suffix IS NULL) AND (leaf IS NULL) = (weight IS NULL)),
    CONSTRAINT placement_alternates_whole CHECK (
        (leaf2 IS NULL) = (weight2 IS NULL) AND (leaf3 IS NULL) = (weight3 IS NULL)
        AND coalesce(cardinality(more_leaves), 0) = coalesce(cardinality(more_weights), 0)),
    CONSTRAINT placement_leaves_differ CHECK (
        leaf <> leaf2 AND leaf <> leaf3 AND leaf2 <> leaf3 AND (more_leaves IS NULL OR all_differ(more_leaves || ARRAY[leaf, leaf2, leaf3])))
) PARTITION BY LIST (generation);
ALTER TABLE placement ALTER COLUMN embedding SET STORAGE EXTERNAL;
COMMENT ON TABLE placement IS 'What a generation has of an image: an image is in it once, and once under a leaf';
COMMENT ON COLUMN placement.leaf IS 'Of the primary; leaf2, leaf3 and more_leaves are those of the alternates, likeliest first';
COMMENT ON COLUMN placement.embedding IS 'D float16, little endian, unit length';

-- The tables of a generation. An index of the whole table would need the generation in its key: this one is smaller by a third.
CREATE OR REPLACE FUNCTION open_partitions(of_generation int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE placement INCLUDING ALL)', 'placement_' || of_generation);
    EXECUTE format('CREATE UNIQUE INDEX %I ON %I (image_key)', 'placement_' || of_generation || '_image', 'placement_' || of_generation);
    EXECUTE format('ALTER TABLE placement ATTACH PARTITION %I FOR VALUES IN (%s)', 'placement_' || of_generation, of_generation);
END $$;

-- Rows first and indexes then, which is faster by far. A posting that an image has twice under a leaf is moved once, and leaves the
-- counters, which counted it twice.
SET LOCAL work_mem = '64MB';
SET LOCAL maintenance_work_mem = '256MB';
DO $$
DECLARE
    number int;
    there bigint;
    moved bigint;
BEGIN
    FOR number IN
        SELECT substr(c.relname, 9)::int FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'posting'::regclass ORDER BY 1
    LOOP
        EXECUTE format('CREATE TABLE %I (LIKE placement INCLUDING ALL)', 'placement_' || number);
        EXECUTE format($move$
            INSERT INTO %I (image_key, changed_by, leaf, leaf2, leaf3, generation, suffix, weight, weight2, weight3, confidence, trained,
                            more_leaves, more_weights, embedding)
            SELECT e.image_key, e.changed_by, p.leaf, p.leaves[1], p.leaves[2], e.generation, p.suffix, p.weight, p.weights[1], p.weights[2],
                   e.confidence, e.trained, nullif(p.leaves[3:], '{}'), nullif(p.weights[3:], '{}'), e.embedding
            FROM %I e LEFT JOIN (
                SELECT image_key, max(leaf) FILTER (WHERE suffix IS NOT NULL) AS leaf, max(suffix) AS suffix,
                       max(weight) FILTER (WHERE suffix IS NOT NULL) AS weight,
                       array_agg(leaf ORDER BY weight DESC, leaf) FILTER (WHERE suffix IS NULL) AS leaves,
                       array_agg(weight ORDER BY weight DESC, leaf) FILTER (WHERE suffix IS NULL) AS weights
                FROM (SELECT DISTINCT ON (image_key, leaf) * FROM %I ORDER BY image_key, leaf, suffix) once
                GROUP BY image_key
            ) p USING (image_key) ORDER BY e.image_key
        $move$, 'placement_' || number, 'image_embedding_' || number, 'posting_' || number);
        EXECUTE format('SELECT count(*) FROM %I', 'posting_' || number) INTO there;
        EXECUTE format('SELECT coalesce(sum(num_nonnulls(leaf, leaf2, leaf3) + coalesce(cardinality(more_leaves), 0)), 0) FROM %I',
                       'placement_' || number) INTO moved;
        IF moved <> there THEN
            EXECUTE format($again$
                SELECT count_up(%s, ARRAY['postings', 'checksum'], ARRAY[-count(*), -sum(posting_hash(image_id, leaf, suffix IS NOT NULL))])
                FROM (SELECT *, row_number() OVER (PARTITION BY image_key, leaf ORDER BY suffix) AS place FROM %I) p JOIN image USING (image_key)
                WHERE place > 1
            $again$, number, 'posting_' || number);
        END IF;
        EXECUTE format('CREATE UNIQUE INDEX %I ON %I (image_key)', 'placement_' || number || '_image', 'placement_' || number);
        EXECUTE format('ALTER TABLE placement ATTACH PARTITION %I FOR VALUES IN (%s)', 'placement_' || number, number);
    END LOOP;
END $$;
CREATE UNIQUE INDEX placement_identifier ON placement (leaf, suffix, generation);
CREATE INDEX placement_changed ON placement (changed_by);
ANALYZE placement;

-- From here to the end readers wait. They hold one of the two and may want the other: whoever is chosen to give way tries again.
DO $$
BEGIN
    LOOP
        BEGIN
            LOCK TABLE posting, image_embedding IN ACCESS EXCLUSIVE MODE;
            EXIT;
        EXCEPTION WHEN deadlock_detected THEN
            NULL;
        END;
    END LOOP;
END $$;
DROP TABLE posting, image_embedding;

CREATE OR REPLACE FUNCTION drop_partitions(of_generation int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS %I', 'placement_' || of_generation);
    DELETE FROM loose_posting WHERE generation = of_generation;
END $$;

-- As in migration 11, of the tables that there are now.
CREATE OR REPLACE FUNCTION adopt_restored() RETURNS boolean LANGUAGE plpgsql AS $$
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
    FOREACH relation IN ARRAY ARRAY['placement', 'tombstone'] LOOP
        EXECUTE format('UPDATE %I SET changed_by = %L::xid8 WHERE changed_by >= pg_current_xact_id()', relation, '3');
    END LOOP;
    DELETE FROM lease;
    UPDATE epoch SET number = number + 1, cluster = this_cluster();
    PERFORM pg_notify('sigma_index', '0');
    RETURN true;
END $$;

-- Programs of schema 18 write an image's postings first and its embedding then, in one transaction. In between the postings are here.
CREATE TABLE loose_posting (
    generation int NOT NULL,
    image_key bigint NOT NULL,
    leaf bigint NOT NULL,
    weight real NOT NULL,
    suffix int,
    changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (image_key, leaf, generation)
);

CREATE VIEW image_embedding AS
    SELECT generation, image_key, embedding, confidence, trained, changed_by FROM placement;

-- Suffix NULL marks an alternate, as before.
CREATE VIEW posting AS
    SELECT generation, leaf, image_key, weight, suffix, changed_by FROM placement WHERE leaf IS NOT NULL
    UNION ALL SELECT generation, leaf2, image_key, weight2, NULL, changed_by FROM placement WHERE leaf2 IS NOT NULL
    UNION ALL SELECT generation, leaf3, image_key, weight3, NULL, changed_by FROM placement WHERE leaf3 IS NOT NULL
    UNION ALL SELECT generation, m.leaf, image_key, m.weight, NULL, changed_by
              FROM placement, unnest(more_leaves, more_weights) AS m (leaf, weight) WHERE more_leaves IS NOT NULL
    UNION ALL SELECT generation, leaf, image_key, weight, suffix, changed_by FROM loose_posting;

-- Makes the loose postings of an image those of its placement, if it has one.
CREATE FUNCTION settle_postings(of_generation int, of_image bigint, writer xid8) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE placement SET changed_by = coalesce(writer, changed_by), leaf = p.leaf, suffix = p.suffix, weight = p.weight,
        leaf2 = p.leaves[1], weight2 = p.weights[1], leaf3 = p.leaves[2], weight3 = p.weights[2],
        more_leaves = nullif(p.leaves[3:], '{}'), more_weights = nullif(p.weights[3:], '{}')
    FROM (
        SELECT max(l.leaf) FILTER (WHERE l.suffix IS NOT NULL) AS leaf, max(l.suffix) AS suffix,
               max(l.weight) FILTER (WHERE l.suffix IS NOT NULL) AS weight,
               array_agg(l.leaf ORDER BY l.weight DESC, l.leaf) FILTER (WHERE l.suffix IS NULL) AS leaves,
               array_agg(l.weight ORDER BY l.weight DESC, l.leaf) FILTER (WHERE l.suffix IS NULL) AS weights
        FROM loose_posting l WHERE l.generation = of_generation AND l.image_key = of_image
    ) p
    WHERE placement.generation = of_generation AND placement.image_key = of_image;
    IF FOUND THEN
        DELETE FROM loose_posting WHERE generation = of_generation AND image_key = of_image;
    END IF;
END $$;

CREATE FUNCTION write_posting() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    of_generation int;
    of_image bigint;
    writer xid8;
BEGIN
    IF TG_OP = 'INSERT' THEN
        of_generation := NEW.generation;
        of_image := NEW.image_key;
    ELSE
        of_generation := OLD.generation;
        of_image := OLD.image_key;
    END IF;
    INSERT INTO loose_posting (generation, leaf, image_key, weight, suffix, changed_by)
    SELECT generation, leaf, image_key, weight, suffix, changed_by FROM posting WHERE generation = of_generation AND image_key = of_image
    ON CONFLICT DO NOTHING;
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM loose_posting WHERE generation = of_generation AND image_key = of_image AND leaf = OLD.leaf;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        IF (NEW.generation, NEW.image_key) <> (of_generation, of_image) THEN
            RAISE EXCEPTION 'a posting stays with its image in its generation: delete it and insert another' USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.suffix IS NOT NULL AND EXISTS (SELECT FROM loose_posting WHERE generation = of_generation AND image_key = of_image AND suffix IS NOT NULL) THEN
            RAISE EXCEPTION 'image % has an identifier in generation % already', of_image, of_generation USING ERRCODE = 'unique_violation';
        END IF;
        writer := coalesce(NEW.changed_by, pg_current_xact_id());
        INSERT INTO loose_posting (generation, leaf, image_key, weight, suffix, changed_by)
        VALUES (of_generation, NEW.leaf, of_image, NEW.weight, NEW.suffix, writer);
    END IF;
    PERFORM settle_postings(of_generation, of_image, writer);
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER write_posting INSTEAD OF INSERT OR UPDATE OR DELETE ON posting FOR EACH ROW EXECUTE FUNCTION write_posting();

CREATE FUNCTION write_embedding() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO placement (generation, image_key, embedding, confidence, trained, changed_by)
    VALUES (NEW.generation, NEW.image_key, NEW.embedding, NEW.confidence, NEW.trained, coalesce(NEW.changed_by, pg_current_xact_id()));
    PERFORM settle_postings(NEW.generation, NEW.image_key, NULL);
    RETURN NEW;
END $$;
CREATE TRIGGER write_embedding INSTEAD OF INSERT ON image_embedding FOR EACH ROW EXECUTE FUNCTION write_embedding();
