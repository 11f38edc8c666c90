"""Leases: who may do, for now, what only one process may.

A lease is a row in PostgreSQL. Its holder renews it every few seconds; one that stops doing so, be
it killed, stopped or cut off, loses it to the next taker within `LEASE_S`. Each holder has a higher
*fence* than the one before. A transaction whose effect only the holder may have checks its fence
last (`check`), so a holder that wakes up after it was replaced changes nothing.

Times are those of the database's clock, so processes need not agree on theirs. A lease also ends
with the connection that took it: the successor of a killed process need not wait for the expiry.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import structlog

from schemas.errors import RetryLaterError
from schemas.named_sql import queries
from stream.session import Connection

# Seconds that a lease holds after it was renewed: the longest that a hung holder stops the others.
# Far more than a busy machine or a slow statement takes from one renewal to the next. The function
# `lease_holds` takes one that lasts a second longer for a clock that was set back.
LEASE_S = 10.0

# Seconds between renewals.
RENEW_S = 2.0

log = structlog.get_logger()


class LostLeaseError(RetryLaterError):
    """Somebody else holds the lease now: roll back, and take it anew before going on."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that this process took. It may have lost it since: only `check` tells."""

    name: str
    fence: int


def take(conn: Connection, name: str) -> Lease | None:
    """Take a lease; None while another process has it.

    It ends with this connection. Runs on its own, outside of transactions.
    """
    parameters = {"name": name, "owner": _owner(), "seconds": LEASE_S}
    row = conn.execute(queries()["take_lease"], parameters).fetchone()
    if row is None:
        return None
    fence, ended_session = row
    if ended_session:
        log.warning("lease taken from a process that hangs", lease=name, fence=fence)
    return Lease(name, int(fence))


def renew(conn: Connection, leases: Sequence[Lease]) -> bool:
    """Renew leases; return whether none of them was lost. By any connection of the process."""
    if not leases:
        return True
    parameters = {**_columns(leases), "seconds": LEASE_S}
    renewed = conn.execute(queries()["renew_leases"], parameters).fetchall()
    return len(renewed) == len(leases)


def require_renewal(conn: Connection, leases: Sequence[Lease]) -> None:
    """Renew leases before an effect outside of the database; `LostLeaseError` when one was lost."""
    if not renew(conn, leases):
        raise _lost(", ".join(f"{lease.name!r} with fence {lease.fence}" for lease in leases))


def give_up(conn: Connection, leases: Sequence[Lease]) -> None:
    """Let others take the leases at once. Those that were lost already are left alone."""
    if leases:
        conn.execute(queries()["give_up_leases"], _columns(leases))


def check(conn: Connection, leases: Sequence[Lease]) -> None:
    """Make sure, inside a transaction, that these leases are held until it ends.

    Call it last: whoever wants to take one waits. `LostLeaseError` when one was lost; the caller's
    transaction must be rolled back then.
    """
    # In one order everywhere, although these locks are shared.
    for lease in sorted(leases, key=lambda lease: lease.name):
        parameters = {"name": lease.name, "fence": lease.fence}
        if conn.execute(queries()["check_lease"], parameters).fetchone() is None:
            raise _lost(f"{lease.name!r} with fence {lease.fence}")


def is_held(conn: Connection, name: str) -> bool:
    """Return whether any process has a lease of this name."""
    row = conn.execute(queries()["lease_is_held"], {"name": name}).fetchone()
    return bool(row and row[0])


@contextmanager
def kept(connect: Callable[[], Connection], lease: Lease) -> Iterator[None]:
    """Renew a lease in a thread while the block runs, however long that takes.

    `connect` opens the thread's own connection. Whether the lease was lost shows in `check` only.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_keep, args=(connect, lease, stop), name=f"lease {lease.name}", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _keep(connect: Callable[[], Connection], lease: Lease, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            with connect() as conn:
                # At once: to connect anew may have taken most of the time that is left.
                while renew(conn, [lease]):
                    if stop.wait(RENEW_S):
                        return
                log.warning("lease lost", lease=lease.name, fence=lease.fence)
                return
        except (psycopg.OperationalError, RetryLaterError) as error:
            # The work itself meets the same; if the database is back soon, nothing was lost.
            log.warning("lease not renewed, retrying", lease=lease.name, reason=str(error))
            stop.wait(RENEW_S)


def _lost(leases: str) -> LostLeaseError:
    return LostLeaseError(
        f"the lease {leases} was lost: this process did not renew it for {LEASE_S:g} s; "
        "nothing was written, whoever has it now does the work"
    )


def _columns(leases: Sequence[Lease]) -> dict[str, list[object]]:
    return {
        "names": [lease.name for lease in leases],
        "fences": [lease.fence for lease in leases],
    }


def _owner() -> str:
    """Who holds it, for people who look at the table."""
    return f"{socket.gethostname()}:{os.getpid()}"
