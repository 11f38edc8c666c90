-- Who may do what only one process may: a holder renews its lease, and whoever takes it next gets a higher fence.
CREATE TABLE lease (
    name text PRIMARY KEY,
    owner text NOT NULL,
    fence bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    session int NOT NULL,
    session_began timestamptz,
    -- Makes the fence a key column: changing it waits for transactions that have checked it, renewing does not.
    UNIQUE (name, fence)
);
COMMENT ON COLUMN lease.session IS 'Backend of the connection that took it; the lease ends with that connection';

-- A session of another role does not show when it began; then only the expiry tells. An expiry far ahead is a clock that was set back.
CREATE FUNCTION session_lives(of_session int, began timestamptz) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT EXISTS (
        SELECT FROM pg_stat_get_activity(of_session) s WHERE s.backend_start IS NULL OR s.backend_start = began
    )
$$;
CREATE FUNCTION lease_holds(l lease) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT l.expires_at BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 minute'
       AND session_lives(l.session, l.session_began)
$$;
-- Ends a session that outlived its lease: a process that hangs inside a transaction would keep its locks.
CREATE FUNCTION end_session(of_session int, began timestamptz) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(bool_or(pg_terminate_backend(s.pid)), false)
    FROM pg_stat_get_activity(of_session) s
    -- Asked for no session, the function lists all.
    WHERE s.pid = of_session AND s.backend_start = began AND s.pid <> pg_backend_pid()
$$;
