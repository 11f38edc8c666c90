-- Every run of a scheduled job: one row a window, which is what makes a job run once however many schedulers there are.
CREATE TABLE job_run (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job text NOT NULL,
    time_window bigint NOT NULL,
    attempt int NOT NULL DEFAULT 1,
    outcome text NOT NULL DEFAULT 'running' CHECK (outcome IN ('running', 'done', 'failed', 'skipped')),
    figures jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    UNIQUE (job, time_window)
);
COMMENT ON COLUMN job_run.time_window IS 'Seconds since 1970 divided by the job''s period; negative for a run that a person asked for';
