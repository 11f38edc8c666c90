-- name: job_lead
-- One scheduler at a time. A session lock: a leader that dies loses it at once.
SELECT pg_try_advisory_lock(hashtextextended('sigma scheduler', 0));

-- name: job_lock
-- One run of a job at a time, also across schedulers that both believe to lead.
SELECT pg_try_advisory_lock(hashtextextended('sigma job ' || %(job)s, 0));

-- name: job_unlock
-- Gives the job back.
SELECT pg_advisory_unlock(hashtextextended('sigma job ' || %(job)s, 0));

-- name: job_last
-- The newest window of a job, and the oldest one that was begun and never ended.
SELECT max(time_window), min(time_window) FILTER (WHERE outcome = 'running') FROM job_run WHERE job = %(job)s AND time_window >= 0;

-- name: job_begin
-- Begins a window, or once more one whose process died. No row back: it is done.
INSERT INTO job_run (job, time_window) VALUES (%(job)s, %(time_window)s)
ON CONFLICT (job, time_window) DO UPDATE SET attempt = job_run.attempt + 1, started_at = clock_timestamp()
WHERE job_run.outcome = 'running'
RETURNING id;

-- name: job_skip
-- Records windows that nobody ran, so that they do not vanish.
INSERT INTO job_run (job, time_window, outcome, ended_at)
SELECT %(job)s, w, 'skipped', clock_timestamp() FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS w
ON CONFLICT DO NOTHING;

-- name: job_end
-- The outcome of a run.
UPDATE job_run SET outcome = %(outcome)s, figures = %(figures)s, ended_at = clock_timestamp() WHERE id = %(id)s;

-- name: job_runs
-- Runs, newest first.
SELECT job, time_window, attempt, outcome, figures, started_at, ended_at FROM job_run
WHERE %(job)s::text IS NULL OR job = %(job)s ORDER BY started_at DESC LIMIT %(amount)s;

-- name: job_manual_window
-- A window for a run that a person asked for.
SELECT coalesce(min(time_window), 0) - 1 FROM job_run WHERE job = %(job)s AND time_window < 0;

-- name: prune_events
-- Forgets events of the log in Postgres that are past their topic's retention and that every group has committed.
DELETE FROM log_event e
WHERE e.topic = %(topic)s AND e.published_at < clock_timestamp() - make_interval(days => %(days)s)
  AND e."offset" < coalesce((SELECT min(o.next_offset) FROM consumer_offset o WHERE o.topic = e.topic AND o.partition = e.partition),
                            CASE WHEN %(consumed)s THEN 0 ELSE e."offset" + 1 END);

-- name: probe_sample
-- The first captioned image of a generation at or after a key: random keys make a sample without reading the table.
SELECT i.image_key, i.captions, i.test_captions, e.trained, extract(epoch FROM clock_timestamp() - i.published_at)::float8
FROM image i JOIN image_embedding e USING (image_key)
WHERE e.generation = %(generation)s AND i.image_key >= %(after)s AND i.state = 'indexed'
  AND (jsonb_array_length(i.test_captions) > 0 OR jsonb_array_length(i.captions) > 0)
ORDER BY i.image_key LIMIT 1;

-- name: probe_range
-- The keys that a sample is drawn from.
SELECT coalesce(min(image_key), 0), coalesce(max(image_key), 0) FROM image_embedding WHERE generation = %(generation)s;
