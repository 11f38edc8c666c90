-- Live queries that a shadow generation answered too: what the gate compares the two on.
CREATE TABLE shadow_query (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    candidate int NOT NULL,
    live int NOT NULL,
    query text NOT NULL,
    live_ms float8 NOT NULL,
    candidate_ms float8 NOT NULL,
    overlap float8 NOT NULL CHECK (overlap BETWEEN 0 AND 1),
    live_recall float8 CHECK (live_recall BETWEEN 0 AND 1),
    candidate_recall float8 CHECK (candidate_recall BETWEEN 0 AND 1),
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX shadow_query_of ON shadow_query (candidate, live);
COMMENT ON COLUMN shadow_query.overlap IS 'Share of the ten images that both generations returned';
COMMENT ON COLUMN shadow_query.live_recall IS 'Share of its own exact dense top ten that a generation returned; NULL where the gallery is too large to ask';
