-- Windows are named by the second at which they are due, so that they mean the same under every schedule a job may be given.
UPDATE job_run SET time_window = time_window * CASE job WHEN 'prune' THEN 86400 ELSE 3600 END WHERE time_window > 0;
COMMENT ON COLUMN job_run.time_window IS 'Second since 1970 at which it was due; negative for a run that a person or an alarm asked for';

-- What a run was begun for: {} its schedule, {"by": "hand"}, {"alarms": [ids]}. An alarm stands in at most one run of a job.
ALTER TABLE job_run ADD COLUMN cause jsonb NOT NULL DEFAULT '{}';
CREATE INDEX job_run_alarms ON job_run (job) WHERE cause ? 'alarms';
CREATE INDEX job_run_newest ON job_run (job, started_at DESC);

-- The schedule by which the leader runs each job, and the moment after which its windows count.
CREATE TABLE job_schedule (
    job text PRIMARY KEY,
    schedule text NOT NULL,
    after_window bigint NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
