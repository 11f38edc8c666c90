-- name: job_schedule
-- The schedule by which a job was run until now.
SELECT schedule, after_window FROM job_schedule WHERE job = %(job)s;

-- name: store_schedule
-- The schedule by which a job is run from now on.
INSERT INTO job_schedule (job, schedule, after_window) VALUES (%(job)s, %(schedule)s, %(after)s)
ON CONFLICT (job) DO UPDATE SET schedule = excluded.schedule, after_window = excluded.after_window, seen_at = clock_timestamp();

-- name: newest_window
-- The newest run window of a job that has a row.
SELECT max(time_window) FROM job_run WHERE job = %(job)s AND time_window >= 0;

-- name: unfinished_run
-- The oldest run that was begun and never ended. If nobody has the job's lease, its process died or
-- hangs.
SELECT id, attempt, cause FROM job_run WHERE job = %(job)s AND outcome = 'running' ORDER BY id LIMIT 1;

-- name: begin_run_again
-- Begins once more a run whose process died.
UPDATE job_run SET attempt = attempt + 1, started_at = clock_timestamp() WHERE id = %(id)s;

-- name: insert_run
-- Begins the run of a run window. Returns no row when it was begun before.
INSERT INTO job_run (job, time_window, cause) VALUES (%(job)s, %(time_window)s, %(cause)s)
ON CONFLICT (job, time_window) DO NOTHING RETURNING id;

-- name: unanswered_alarms
-- Of these alarms, those that no run of the job was begun for, once its newest run has been over
-- for long enough.
SELECT a FROM unnest(%(alarms)s::bigint[]) AS a
WHERE NOT EXISTS (SELECT FROM job_run WHERE job = %(job)s AND cause ? 'alarms' AND cause -> 'alarms' @> to_jsonb(a))
  AND NOT EXISTS (SELECT FROM job_run WHERE job = %(job)s AND outcome IN ('done', 'failed')
                     AND ended_at > clock_timestamp() - make_interval(secs => %(cooldown_s)s))
ORDER BY a;

-- name: answer_to_repeat
-- The newest run of a job, if it answered alarms and has been over for long enough. Any later run
-- takes its place.
SELECT id FROM (SELECT id, cause, outcome, ended_at FROM job_run WHERE job = %(job)s AND outcome <> 'skipped' ORDER BY id DESC LIMIT 1) newest
WHERE outcome = 'done' AND cause ? 'alarms' AND ended_at <= clock_timestamp() - make_interval(secs => %(again_s)s);

-- name: skip_windows
-- Records run windows that were skipped, so that they do not vanish.
INSERT INTO job_run (job, time_window, outcome, figures, ended_at)
SELECT %(job)s, w, 'skipped', %(figures)s, clock_timestamp() FROM unnest(%(windows)s::bigint[]) AS w
ON CONFLICT DO NOTHING;

-- name: end_run
-- The outcome of a run.
UPDATE job_run SET outcome = %(outcome)s, figures = %(figures)s, ended_at = clock_timestamp() WHERE id = %(id)s;

-- name: job_runs
-- Runs, newest first.
SELECT job, time_window, attempt, outcome, figures, started_at, ended_at, cause FROM job_run
WHERE %(job)s::text IS NULL OR job = %(job)s ORDER BY started_at DESC LIMIT %(amount)s;

-- name: job_run
-- One run.
SELECT job, time_window, attempt, outcome, figures, started_at, ended_at, cause FROM job_run WHERE id = %(id)s;

-- name: newest_ended_run
-- The newest run of a job that is done or failed.
SELECT job, time_window, attempt, outcome, figures, started_at, ended_at, cause FROM job_run
WHERE job = %(job)s AND outcome IN ('done', 'failed') ORDER BY started_at DESC LIMIT 1;

-- name: extra_window
-- A run window, negative, for a run that a person or an alarm asked for.
SELECT coalesce(min(time_window), 0) - 1 FROM job_run WHERE job = %(job)s AND time_window < 0;

-- name: prune_events
-- Deletes events of the log in PostgreSQL that are past their topic's retention and that every
-- group has committed.
DELETE FROM log_event e
WHERE e.topic = %(topic)s AND e.published_at < clock_timestamp() - make_interval(days => %(days)s)
  AND e."offset" < coalesce((SELECT min(o.next_offset) FROM consumer_offset o WHERE o.topic = e.topic AND o.partition = e.partition),
                            CASE WHEN %(consumed)s THEN 0 ELSE e."offset" + 1 END);

-- name: probe_sample
-- The first image of a generation at or after a key, one with a caption unless `pictures` may be
-- asked for by themselves: random keys make a sample without reading the table.
SELECT i.image_key, i.captions, i.test_captions, e.trained, extract(epoch FROM clock_timestamp() - i.published_at)::float8
FROM image i JOIN placement e USING (image_key)
WHERE e.generation = %(generation)s AND i.image_key >= %(after)s AND i.state = 'indexed'
  AND (%(pictures)s OR jsonb_array_length(i.test_captions) > 0 OR jsonb_array_length(i.captions) > 0)
ORDER BY i.image_key LIMIT 1;

-- name: probe_range
-- The keys that a sample is drawn from.
SELECT coalesce(min(image_key), 0), coalesce(max(image_key), 0) FROM placement WHERE generation = %(generation)s;
