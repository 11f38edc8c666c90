-- name: raise_alarm
-- Opens an alarm, or turns an open ticket into a page. Returns no row when it is open already.
INSERT INTO alarm (generation, monitor, level, effect, effect_limit, p, p_limit, detail)
VALUES (%(generation)s, %(monitor)s, %(level)s, %(effect)s, %(effect_limit)s, %(p)s, %(p_limit)s, %(detail)s)
ON CONFLICT (generation, monitor) WHERE cleared_at IS NULL DO UPDATE SET
    level = excluded.level, effect = excluded.effect, effect_limit = excluded.effect_limit, p = excluded.p,
    p_limit = excluded.p_limit, detail = excluded.detail
WHERE alarm.level = 'ticket' AND excluded.level = 'page'
RETURNING id;

-- name: clear_alarm
-- Ends an alarm.
UPDATE alarm SET cleared_at = clock_timestamp() WHERE id = %(id)s AND cleared_at IS NULL;

-- name: open_alarms
-- Open alarms, pages first, then the oldest first.
SELECT id, generation, monitor, level, effect, effect_limit, p, p_limit, detail, raised_at, cleared_at FROM alarm
WHERE cleared_at IS NULL ORDER BY level, raised_at, id;

-- name: alarms_since
-- Alarms that were raised since, or are open, oldest first.
SELECT id, generation, monitor, level, effect, effect_limit, p, p_limit, detail, raised_at, cleared_at FROM alarm
WHERE raised_at >= %(since)s OR cleared_at IS NULL ORDER BY raised_at, id;

-- name: monitor_reference
-- The reference of a generation.
SELECT reference, last_key, recall FROM monitor_reference WHERE generation = %(generation)s;

-- name: store_reference
-- Keeps a reference; the first one stays.
INSERT INTO monitor_reference (generation, reference, last_key, recall)
VALUES (%(generation)s, %(reference)s, %(last_key)s, %(recall)s) ON CONFLICT DO NOTHING;

-- name: image_accepted_after
-- The first image at or after a key, and when it was accepted. Keys ascend with that time, so a
-- few such queries find the key of a moment.
SELECT image_key, accepted_at FROM image WHERE image_key >= %(key)s ORDER BY image_key LIMIT 1;

-- name: newest_arrival
-- The highest key of a generation.
SELECT max(image_key) FROM placement WHERE generation = %(generation)s;

-- name: first_arrivals
-- The first images after a key that a generation was not trained on.
SELECT image_key FROM placement
WHERE generation = %(generation)s AND image_key > %(after)s AND NOT trained ORDER BY image_key LIMIT %(amount)s;

-- name: sampled_arrivals
-- The first image at or after each of these keys: random keys make a sample without reading the range.
SELECT DISTINCT found.image_key
FROM unnest(%(keys)s::bigint[]) AS u (key),
     LATERAL (SELECT image_key FROM placement
              WHERE generation = %(generation)s AND image_key >= u.key AND image_key <= %(last)s AND NOT trained
              ORDER BY image_key LIMIT 1) found;

-- name: arrivals
-- What the monitors look at: key, leaf and its load, log-probability, ranking embedding. Images
-- deleted meanwhile are left out.
SELECT p.image_key, p.leaf, l.live, p.confidence, p.embedding
FROM placement p JOIN leaf l USING (generation, leaf)
WHERE p.generation = %(generation)s AND p.image_key = ANY(%(keys)s) ORDER BY p.image_key;

-- name: examined_windows
-- Figures of the newest runs of a job in which its monitors saw a window of arrivals of this
-- generation (of any generation, if NULL), newest first.
SELECT figures FROM job_run
WHERE job = %(job)s AND outcome = 'done' AND jsonb_array_length(coalesce(figures -> 'monitors', '[]')) > 0
  AND (%(generation)s::int IS NULL OR (figures ->> 'generation')::int = %(generation)s)
ORDER BY id DESC LIMIT %(amount)s;

-- name: job_totals
-- How often each job ended with each outcome, and when that happened last (seconds since 1970).
SELECT job, outcome, count(*), max(extract(epoch FROM ended_at))::float8 FROM job_run
GROUP BY job, outcome ORDER BY job, outcome;

-- name: failures_in_a_row
-- How many runs of each job failed since the newest one that was done.
SELECT job, count(*) FILTER (WHERE outcome = 'failed' AND id > coalesce(done, 0))
FROM (SELECT job, outcome, id, max(id) FILTER (WHERE outcome = 'done') OVER (PARTITION BY job) AS done FROM job_run) runs
GROUP BY job;

-- name: newest_figures
-- Figures of the newest run of a job that was done.
SELECT figures FROM job_run WHERE job = %(job)s AND outcome = 'done' ORDER BY id DESC LIMIT 1;
