-- A lease is taken and renewed for ten seconds. One that seems to last longer is of a time before the clock was set back,
-- and must not keep a process that hangs in its place for as long as that. Its holder, if it lives, renews it.
CREATE OR REPLACE FUNCTION lease_holds(l lease) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT l.expires_at BETWEEN clock_timestamp() AND clock_timestamp() + interval '11 seconds'
       AND session_lives(l.session, l.session_began)
$$;
