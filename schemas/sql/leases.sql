-- name: take_lease
-- Takes a lease that is free, and ends the session of a holder that did not renew it. Returns the
-- fence, or no row while somebody has it. A row whose holder is about to commit is skipped. The
-- session that had it last gets its fence again.
WITH free AS (
    SELECT name, fence, session, session_began, CASE WHEN expires_at > '-infinity' THEN session END AS hung FROM lease
    WHERE name = %(name)s AND NOT lease_holds(lease) FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE lease SET owner = %(owner)s,
        fence = free.fence + (free.session <> pg_backend_pid() OR NOT session_lives(free.session, free.session_began))::int,
        expires_at = clock_timestamp() + make_interval(secs => %(seconds)s), session = pg_backend_pid(),
        session_began = (SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid()))
    FROM free WHERE lease.name = free.name
    RETURNING lease.fence, free.hung, free.session_began AS hung_began
), made AS (
    INSERT INTO lease (name, owner, fence, expires_at, session, session_began)
    SELECT %(name)s, %(owner)s, 1, clock_timestamp() + make_interval(secs => %(seconds)s), pg_backend_pid(),
           (SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid()))
    WHERE NOT EXISTS (SELECT FROM lease WHERE name = %(name)s)
    ON CONFLICT DO NOTHING
    RETURNING fence
)
SELECT fence, end_session(hung, hung_began) FROM taken UNION ALL SELECT fence, false FROM made;

-- name: renew_leases
-- Renews leases that nobody else has taken; returns their names.
UPDATE lease SET expires_at = clock_timestamp() + make_interval(secs => %(seconds)s)
FROM unnest(%(names)s::text[], %(fences)s::bigint[]) AS u (name, fence)
WHERE lease.name = u.name AND lease.fence = u.fence
RETURNING lease.name;

-- name: give_up_leases
-- Frees leases for the next taker.
UPDATE lease SET expires_at = '-infinity'
FROM unnest(%(names)s::text[], %(fences)s::bigint[]) AS u (name, fence)
WHERE lease.name = u.name AND lease.fence = u.fence;

-- name: check_lease
-- Whether a lease is still held, and stays so until the transaction ends; which must be soon, for
-- the next holder waits for it.
SELECT set_config('idle_in_transaction_session_timeout', '10s', true) FROM lease
WHERE name = %(name)s AND fence = %(fence)s FOR KEY SHARE;

-- name: lease_is_held
-- Whether anybody has a lease.
SELECT EXISTS (SELECT FROM lease WHERE name = %(name)s AND lease_holds(lease));
