-- name: job_history
-- Runs of a job since a moment, newest first, without the parts of their figures that only the
-- newest run is asked for.
SELECT job, time_window, attempt, outcome, figures - %(without)s::text[], started_at, ended_at FROM job_run
WHERE job = %(job)s AND outcome = 'done' AND started_at >= %(since)s ORDER BY started_at DESC, id DESC LIMIT %(amount)s;

-- name: job_newest
-- The newest run of a job that was done and has a figure under this key.
SELECT job, time_window, attempt, outcome, figures, started_at, ended_at FROM job_run
WHERE job = %(job)s AND outcome = 'done' AND coalesce(figures -> %(key)s, 'null') NOT IN ('null', '[]', '{}') ORDER BY started_at DESC, id DESC LIMIT 1;

-- name: job_outcomes
-- Outcomes of the runs of all jobs since a moment, newest first; of their figures only why a run
-- failed or had nothing to do.
SELECT job, time_window, attempt, outcome, jsonb_strip_nulls(jsonb_build_object('error', figures -> 'error', 'why', figures -> 'why')),
       started_at, ended_at
FROM job_run WHERE started_at >= %(since)s ORDER BY started_at DESC, id DESC LIMIT %(amount)s;
