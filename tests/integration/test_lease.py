"""Leases: one holder at a time, whatever becomes of it, and no effect of one that was replaced."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from schemas.errors import RetryLaterError
from schemas.events import ARRIVED
from schemas.schedules import Schedule
from stream.lease import (
    LEASE_S,
    Lease,
    LostLeaseError,
    check,
    give_up,
    is_held,
    kept,
    renew,
    require_renewal,
    take,
)
from stream.log.event_log import Batch, Message
from stream.log.offsets import store_offsets
from stream.log.outbox import add_to_outbox, forward, outbox_size
from stream.log.postgres import PostgresLog
from workers.repository.connection import Connection, connect, transaction
from workers.repository.job_runs import (
    begin_manual_run,
    begin_next_run,
    claim_job,
    end_run,
    job_run,
)
from workers.trainer.training_run import sole_trainer

TAKEOVER_S = 15.0


@pytest.fixture
def other(database: str) -> Iterator[Connection]:
    """A second process's connection, as far as PostgreSQL can tell."""
    with connect(database) as connection:
        yield connection


def expire(conn: Connection) -> None:
    """Let all leases run out now, as if their holders had hung."""
    conn.execute("UPDATE lease SET expires_at = clock_timestamp() - interval '1 second'")


def taken(conn: Connection, name: str) -> Lease:
    lease = take(conn, name)
    assert lease is not None
    return lease


def until(met: Callable[[], bool], timeout_s: float) -> float:
    """Wait until a condition holds; return the seconds that it took."""
    began = time.monotonic()
    while not met():
        assert time.monotonic() - began < timeout_s, "the condition was not met in time"
        time.sleep(0.05)
    return time.monotonic() - began


def test_one_holds_it_and_the_next_has_a_higher_fence(conn: Connection, other: Connection) -> None:
    first = taken(conn, "a")
    assert take(other, "a") is None
    assert take(conn, "a") is None
    assert is_held(other, "a")
    assert taken(other, "b").fence == 1
    give_up(conn, [first])
    assert not is_held(other, "a")
    second = taken(other, "a")
    assert second.fence > first.fence
    # The connection of one that gave up properly goes on.
    assert conn.execute("SELECT 1").fetchone() == (1,)
    # Nobody had it in between, so what the former holder still does is in order.
    give_up(other, [second])
    assert taken(other, "a") == second
    # A late release by the former holder frees nothing.
    give_up(conn, [first])
    assert take(conn, "a") is None


def test_it_ends_with_the_connection_that_took_it(conn: Connection, database: str) -> None:
    with connect(database) as holder:
        taken(holder, "a")
    until(lambda: take(conn, "a") is not None, 5)


def test_it_is_kept_by_renewing_and_a_renewal_after_the_loss_is_told(
    conn: Connection, other: Connection
) -> None:
    lease = taken(conn, "a")
    expire(other)
    # Late, but nobody was faster.
    assert renew(conn, [lease])
    assert take(other, "a") is None
    expire(other)
    taken(other, "a")
    assert not renew(other, [lease])


def test_a_holder_that_hangs_loses_its_session_with_its_lease(
    conn: Connection, other: Connection
) -> None:
    taken(conn, "a")
    expire(other)
    taken(other, "a")
    with pytest.raises(RetryLaterError), transaction(conn):
        conn.execute("CREATE TABLE late (n int)")
    assert other.execute("SELECT to_regclass('late')").fetchone() == (None,)


def test_what_a_replaced_holder_writes_by_another_connection_is_refused(
    conn: Connection, other: Connection, database: str
) -> None:
    lease = taken(conn, "a")
    expire(other)
    taken(other, "a")
    other.execute("CREATE TABLE effect (n int)")

    def write() -> None:
        with connect(database) as work, transaction(work):
            work.execute("INSERT INTO effect VALUES (1)")
            check(work, [lease])

    with pytest.raises(LostLeaseError):
        write()
    assert other.execute("SELECT count(*) FROM effect").fetchone() == (0,)


def test_nobody_takes_it_between_the_check_and_the_commit_and_renewing_goes_on(
    conn: Connection, other: Connection, database: str
) -> None:
    lease = taken(conn, "a")
    expire(other)
    with connect(database) as work, transaction(work):
        check(work, [lease])
        assert take(other, "a") is None
        assert renew(conn, [lease])
        expire(conn)
    assert take(other, "a") is not None


@pytest.mark.parametrize("step", ["5 seconds", "1 hour"])
def test_a_database_clock_that_is_set_back_frees_what_nobody_renews(
    conn: Connection, other: Connection, step: str
) -> None:
    taken(conn, "a")
    other.execute("UPDATE lease SET expires_at = expires_at + %s::interval", (step,))
    assert take(other, "a") is not None


def test_eight_takers_at_once_get_it_in_turn(database: str, conn: Connection) -> None:
    with ExitStack() as stack:
        takers = [stack.enter_context(connect(database)) for _ in range(8)]
        fences = []
        for turn in range(20):
            order = takers[turn % 8 :] + takers[: turn % 8]
            found = [(taker, take(taker, "a")) for taker in order]
            ((holder, lease),) = [(taker, lease) for taker, lease in found if lease is not None]
            fences.append(lease.fence)
            give_up(holder, [lease])
    assert fences == sorted(set(fences))


def test_work_that_takes_long_keeps_its_lease(
    conn: Connection, other: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.lease.RENEW_S", 0.05)
    lease = taken(conn, "a")
    with kept(lambda: connect(database), lease):
        expire(other)
        until(lambda: is_held(other, "a"), 5)
    expire(other)
    assert not is_held(other, "a")


def test_a_lease_is_renewed_as_soon_as_there_is_a_connection(
    conn: Connection, other: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after a reconnection that took most of the time.
    monkeypatch.setattr("stream.lease.RENEW_S", 60.0)
    lease = taken(conn, "a")
    expire(other)
    with kept(lambda: connect(database), lease):
        until(lambda: is_held(other, "a"), 10)


@pytest.mark.parametrize("inside", ["nothing", "transaction"])
@pytest.mark.timeout(120)
def test_a_stopped_holder_is_replaced_within_fifteen_seconds_and_changes_nothing_afterwards(
    conn: Connection, database: str, inside: str
) -> None:
    conn.execute("CREATE TABLE held AS SELECT 0 AS n")
    command = [sys.executable, "-m", "tests.integration.lease_holder", database, "a", inside]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdin is not None
            first = int(holder.stdout.readline())
            assert take(conn, "a") is None
            holder.send_signal(signal.SIGSTOP)
            leases: list[Lease] = []

            def replaced() -> bool:
                lease = take(conn, "a")
                leases.extend([] if lease is None else [lease])
                return bool(leases)

            took = until(replaced, TAKEOVER_S)
            assert leases[0].fence > first
            # What it held in a transaction is free too, and was undone.
            conn.execute("SET lock_timeout = '5s'")
            conn.execute("UPDATE held SET n = n + 10")
            print(f"takeover {took:.1f} s")
            holder.send_signal(signal.SIGCONT)
            holder.stdin.write(b"\n")
            holder.stdin.close()
            assert holder.wait(30) != 0
        finally:
            holder.kill()
    assert conn.execute("SELECT n FROM held").fetchone() == (10,)
    assert LEASE_S < TAKEOVER_S


def test_a_paused_embedded_worker_loses_its_partitions_and_its_commit_is_refused(
    conn: Connection, other: Connection, database: str
) -> None:
    log = PostgresLog(database)
    log.ensure_topics()
    log.publish(None, [Message(ARRIVED, "same", b"1"), Message(ARRIVED, "same", b"2")])
    paused, active = (log.open_consumer("g", [ARRIVED]) for _ in range(2))
    batch = paused.poll(timeout_s=5)
    assert len(batch) == 2
    assert active.poll(timeout_s=0.3) == Batch()
    # Alive, and working for longer than a lease lasts.
    expire(other)
    paused.heartbeat()
    assert active.poll(timeout_s=0.3) == Batch()
    expire(other)
    again = active.poll(timeout_s=5)
    assert again.events == batch.events
    # Before the new one has committed: the compare-and-set alone would let the old one through.
    with pytest.raises(LostLeaseError), transaction(conn):
        store_offsets(log, conn, "g", batch)
    # Nor by splitting the batch, as is done with one that fails.
    with pytest.raises(LostLeaseError), transaction(conn):
        store_offsets(log, conn, "g", batch.halves()[0])
    with transaction(conn):
        store_offsets(log, conn, "g", again)
    with pytest.raises(RetryLaterError):
        paused.poll(timeout_s=0.1)
    paused.close()
    active.close()
    log.close()


def replaced_relay(conn: Connection, other: Connection, database: str) -> tuple[PostgresLog, Lease]:
    """A log with one event in its outbox, and the lease on it that `other` took over."""
    log = PostgresLog(database)
    log.ensure_topics()
    add_to_outbox(other, [Message(ARRIVED, "a", b"1")])
    lease = taken(conn, "relay")
    give_up(conn, [lease])
    taken(other, "relay")
    return log, lease


def test_a_replaced_relay_deletes_nothing_from_the_outbox(
    conn: Connection, other: Connection, database: str
) -> None:
    log, lease = replaced_relay(conn, other, database)
    with pytest.raises(LostLeaseError):
        forward(log, conn, lease)
    assert outbox_size(other) == 1
    log.close()


def test_a_replaced_relay_publishes_nothing_more(
    conn: Connection, other: Connection, database: str
) -> None:
    log, lease = replaced_relay(conn, other, database)
    with pytest.raises(LostLeaseError):
        forward(log, conn, lease, lambda: require_renewal(conn, [lease]))
    assert sum(log.end_offsets([ARRIVED]).values()) == 0
    log.close()


def test_a_replaced_training_is_refused_before_it_saves(
    conn: Connection, other: Connection, database: str
) -> None:
    with sole_trainer(conn, lambda: connect(database)) as right:
        require_renewal(conn, [right])
        # In one transaction: the trainer's own thread renews what nobody else has taken yet.
        with other.transaction():
            give_up(other, [right])
            taken(other, right.name)
        with pytest.raises(LostLeaseError, match="with fence 1 was lost"):
            require_renewal(conn, [right])


def test_a_replaced_job_records_no_end_and_begins_no_run(
    conn: Connection, other: Connection
) -> None:
    claim = claim_job(conn, "j")
    assert claim is not None
    number = begin_manual_run(conn, "j")
    give_up(conn, [claim])
    assert claim_job(other, "j") is not None
    with pytest.raises(LostLeaseError):
        end_run(conn, number, "done", {}, [claim])
    with pytest.raises(LostLeaseError):
        begin_next_run(conn, "j", Schedule(), held=[claim])
    assert job_run(other, number).outcome == "running"
