-- What a monitor found to be out of bounds: open until it is cleared, at most one open alarm for each generation and monitor.
CREATE TABLE alarm (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    generation int,
    monitor text NOT NULL,
    level text NOT NULL CHECK (level IN ('ticket', 'page')),
    effect float8,
    effect_limit float8,
    p float8,
    p_limit float8,
    detail jsonb NOT NULL DEFAULT '{}',
    raised_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    cleared_at timestamptz
);
CREATE UNIQUE INDEX alarm_one_open ON alarm (generation, monitor) WHERE cleared_at IS NULL;
