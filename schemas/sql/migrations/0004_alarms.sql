-- What the monitors say, and what they compare with.
CREATE TABLE alarm (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    generation int NOT NULL,
    monitor text NOT NULL,
    level text NOT NULL CHECK (level IN ('ticket', 'page')),
    effect float8 NOT NULL,
    effect_limit float8 NOT NULL,
    p float8 NOT NULL,
    p_limit float8 NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}',
    raised_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    cleared_at timestamptz
);
CREATE UNIQUE INDEX alarm_one_open ON alarm (generation, monitor) WHERE cleared_at IS NULL;
CREATE INDEX alarm_raised ON alarm (raised_at);

CREATE TABLE monitor_reference (
    generation int PRIMARY KEY REFERENCES generation ON DELETE CASCADE,
    reference jsonb NOT NULL,
    last_key bigint NOT NULL,
    recall jsonb,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE monitor_reference IS
    'The drift-free state of a generation: its first arrivals, up to last_key, and how many of them were found by their captions';
