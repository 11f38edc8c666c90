-- name: insert_shadow_queries
-- Queries that both generations answered.
INSERT INTO shadow_query (candidate, live, query, live_ms, candidate_ms, overlap, live_recall, candidate_recall)
SELECT * FROM unnest(%(candidate)s::int[], %(live)s::int[], %(texts)s::text[], %(live_ms)s::float8[], %(candidate_ms)s::float8[],
                     %(overlap)s::float8[], %(live_recall)s::float8[], %(candidate_recall)s::float8[]);

-- name: shadow_summary
-- The newest comparisons of two generations: their number, medians of milliseconds, means of the
-- rest.
SELECT count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY live_ms), percentile_cont(0.5) WITHIN GROUP (ORDER BY candidate_ms),
       avg(overlap), avg(live_recall), avg(candidate_recall)
FROM (SELECT * FROM shadow_query WHERE candidate = %(candidate)s AND live = %(live)s ORDER BY id DESC LIMIT %(amount)s) newest;

-- name: prune_shadow_queries
-- Deletes comparisons that are past their retention.
DELETE FROM shadow_query WHERE asked_at < clock_timestamp() - make_interval(days => %(days)s);
