-- name: alarms_open
-- Alarms that nobody has cleared, oldest first.
SELECT id, generation, monitor, level, effect, effect_limit, p, p_limit, detail, raised_at, cleared_at FROM alarm
WHERE cleared_at IS NULL ORDER BY raised_at, id;

-- name: alarms_since
-- Alarms raised since then, oldest first.
SELECT id, generation, monitor, level, effect, effect_limit, p, p_limit, detail, raised_at, cleared_at FROM alarm
WHERE raised_at >= %(since)s ORDER BY raised_at, id;
