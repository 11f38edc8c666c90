-- The first schema. Forward only: later migrations add to it, and old code must keep working beside them.

CREATE TYPE generation_state AS ENUM ('building', 'shadow', 'live', 'retired', 'failed');
COMMENT ON TYPE generation_state IS
    'building -> shadow | failed; shadow -> live | failed; live -> retired | failed; retired -> live (rollback) | failed (dropped)';

CREATE TYPE image_state AS ENUM ('accepted', 'indexed', 'deleted');
COMMENT ON TYPE image_state IS
    'accepted -> indexed | deleted; indexed -> deleted; any -> accepted when a higher version arrives';

CREATE TABLE generation (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state generation_state NOT NULL DEFAULT 'building',
    codebook_version text,
    checkpoint_path text,
    shape jsonb NOT NULL,
    config jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    live_at timestamptz,
    ended_at timestamptz
);
CREATE UNIQUE INDEX generation_one_live ON generation ((true)) WHERE state = 'live';

CREATE FUNCTION generation_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state = OLD.state THEN
        RETURN NEW;
    END IF;
    IF (OLD.state, NEW.state) NOT IN (
        ('building', 'shadow'), ('building', 'failed'), ('shadow', 'live'), ('shadow', 'failed'),
        ('live', 'retired'), ('live', 'failed'), ('retired', 'live'), ('retired', 'failed')
    ) THEN
        RAISE EXCEPTION 'generation % is %, from which % cannot be reached', OLD.id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation', HINT = obj_description('generation_state'::regtype, 'pg_type');
    END IF;
    IF NEW.state = 'live' THEN
        NEW.live_at := now();
        NEW.ended_at := NULL;
    ELSIF NEW.state IN ('retired', 'failed') THEN
        NEW.ended_at := now();
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER generation_transition BEFORE UPDATE OF state ON generation
    FOR EACH ROW EXECUTE FUNCTION generation_transition();

CREATE FUNCTION generation_begins() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state <> 'building' THEN
        RAISE EXCEPTION 'a generation begins as building, not as %', NEW.state USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER generation_begins BEFORE INSERT ON generation FOR EACH ROW EXECUTE FUNCTION generation_begins();

-- A new version of an image gets a new image_key, so that work under way for the old version finds it gone.
CREATE TABLE image (
    image_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    image_id text NOT NULL UNIQUE,
    version int NOT NULL CHECK (version >= 1),
    state image_state NOT NULL DEFAULT 'accepted',
    uri text NOT NULL,
    normalized_uri text NOT NULL,
    checksum text NOT NULL,
    width int NOT NULL,
    height int NOT NULL,
    captions jsonb NOT NULL DEFAULT '[]',
    test_captions jsonb NOT NULL DEFAULT '[]',
    split text,
    arrived_at timestamptz NOT NULL,
    published_at timestamptz NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT now(),
    indexed_at timestamptz
);

CREATE TABLE rejection (
    image_id text NOT NULL,
    version int NOT NULL,
    uri text NOT NULL,
    code text NOT NULL,
    reason text NOT NULL,
    stage text NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (image_id, version)
);

-- suffix NULL marks an alternate. Inside a partition the generation is one value, so it comes last in every index.
CREATE TABLE posting (
    generation int NOT NULL,
    leaf bigint NOT NULL,
    image_key bigint NOT NULL,
    weight real NOT NULL,
    suffix int,
    changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (image_key, leaf, generation),
    UNIQUE (leaf, suffix, generation)
) PARTITION BY LIST (generation);
CREATE INDEX posting_changed ON posting (changed_by);

CREATE TABLE image_embedding (
    generation int NOT NULL,
    image_key bigint NOT NULL,
    embedding bytea NOT NULL,
    confidence real NOT NULL,
    trained boolean NOT NULL,
    changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (image_key, generation)
) PARTITION BY LIST (generation);
COMMENT ON COLUMN image_embedding.embedding IS 'D float16, little endian, unit length';
ALTER TABLE image_embedding ALTER COLUMN embedding SET STORAGE EXTERNAL;
CREATE INDEX image_embedding_changed ON image_embedding (changed_by);

CREATE TABLE tombstone (
    image_key bigint PRIMARY KEY,
    changed_by xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX tombstone_changed ON tombstone (changed_by);

CREATE TABLE leaf (
    generation int NOT NULL REFERENCES generation ON DELETE CASCADE,
    leaf bigint NOT NULL,
    next_suffix int NOT NULL DEFAULT 0,
    live int NOT NULL DEFAULT 0 CHECK (live >= 0),
    PRIMARY KEY (generation, leaf)
);
COMMENT ON TABLE leaf IS 'Hands out suffixes: next_suffix was never used, live counts the primaries now in the leaf';

-- ATTACH locks the parent less than CREATE TABLE ... PARTITION OF, which would wait for every reader.
CREATE FUNCTION open_partitions(of_generation int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parent text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['posting', 'image_embedding'] LOOP
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', parent || '_' || of_generation, parent);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', parent, parent || '_' || of_generation, of_generation);
    END LOOP;
END $$;

CREATE FUNCTION drop_partitions(of_generation int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parent text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['posting', 'image_embedding'] LOOP
        EXECUTE format('DROP TABLE IF EXISTS %I', parent || '_' || of_generation);
    END LOOP;
END $$;

-- A sum of these does not depend on the order of arrival. SHA-256 is the same on every machine and version.
CREATE FUNCTION posting_hash(image_id text, leaf bigint, is_primary boolean) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ('x' || encode(substr(sha256(convert_to(leaf || CASE WHEN is_primary THEN '!' ELSE '?' END || image_id, 'UTF8')), 1, 8), 'hex'))
        ::bit(64)::bigint::numeric;

-- Additive counters, sharded by backend so that writers rarely wait for each other. Generation 0 is the whole database.
CREATE TABLE counter (
    generation int NOT NULL,
    name text NOT NULL,
    shard int NOT NULL,
    value numeric NOT NULL,
    PRIMARY KEY (generation, name, shard)
);

CREATE FUNCTION count_up(of_generation int, names text[], amounts numeric[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO counter (generation, name, shard, value)
    SELECT of_generation, u.name, pg_backend_pid() % 64, u.amount
    FROM unnest(names, amounts) AS u (name, amount)
    WHERE u.amount <> 0
    ORDER BY u.name
    ON CONFLICT (generation, name, shard) DO UPDATE SET value = counter.value + excluded.value
$$;

CREATE TABLE visibility (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    worker text NOT NULL,
    image_key bigint NOT NULL,
    published_at timestamptz NOT NULL,
    indexed_at timestamptz NOT NULL,
    searchable_at timestamptz NOT NULL
);

CREATE TABLE log_partition (
    topic text NOT NULL,
    partition int NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, partition)
);

CREATE TABLE log_event (
    topic text NOT NULL,
    partition int NOT NULL,
    "offset" bigint NOT NULL,
    key text NOT NULL,
    value bytea NOT NULL,
    headers jsonb NOT NULL DEFAULT '{}',
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, partition, "offset")
);

CREATE TABLE consumer_offset (
    consumer_group text NOT NULL,
    topic text NOT NULL,
    partition int NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (consumer_group, topic, partition)
);

CREATE VIEW dead_letter AS
    SELECT partition, "offset", key AS image_id, headers ->> 'code' AS code, headers ->> 'reason' AS reason,
           headers ->> 'stage' AS stage, headers ->> 'origin_topic' AS origin_topic,
           (headers ->> 'origin_partition')::int AS origin_partition,
           (headers ->> 'origin_offset')::bigint AS origin_offset, published_at
    FROM log_event WHERE topic = 'sigma.images.rejected';
