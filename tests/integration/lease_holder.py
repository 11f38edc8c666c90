"""A process of the lease tests: it takes a lease, says so, and keeps it until it is stopped."""

import sys
from functools import partial

from stream.lease import kept, take
from workers.repository.connection import connect, transaction

if __name__ == "__main__":
    url, name, inside = sys.argv[1:]
    with connect(url, name="sigma holder") as conn:
        lease = take(conn, name)
        assert lease is not None
        with kept(partial(connect, url), lease):
            if inside == "transaction":
                # Stopped in the middle of a transaction, with a lock that others need.
                with transaction(conn):
                    conn.execute("UPDATE held SET n = n + 1")
                    print(lease.fence, flush=True)
                    sys.stdin.readline()
            print(lease.fence, flush=True)
            sys.stdin.readline()
            # Woken up: the effect of a holder that does not know that it was replaced.
            with transaction(conn):
                conn.execute("UPDATE held SET n = n + 100")
