"""A stall, a dead thread, a bad character: what one of them does to the query worker, and what not.

Each query is answered or refused, and the worker answers again when the cause is over.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import psycopg.conninfo
import pytest

from ops.bench.stub import stub_generation
from ops.bench.stub_query import stub_searcher_loader
from schemas.errors import SigmaError, WorkFailedError
from stream.log.postgres import PostgresLog
from tests.serving import (
    DeadThreads,
    answers,
    asked,
    filled,
    http_serving,
    serving,
    until,
    value,
)
from tests.stubs import accepted, leave_in, services_at
from workers.api import queries
from workers.query import server
from workers.query.engine import QueryEngine, RankedImages
from workers.query.pending import PendingQuery
from workers.query.searcher import Searcher
from workers.repository.connection import Connection, SessionLimits, connect
from workers.repository.generations import Generation
from workers.repository.shadow_queries import shadow_summary
from workers.runtime.services import Services


@pytest.fixture
def services(database: str, tmp_path: Path) -> Services:
    log = PostgresLog(database)
    log.ensure_topics()
    log.close()
    return services_at(database, tmp_path, shadow_share=1.0)


@contextmanager
def locked(database: str, table: str) -> Iterator[None]:
    """Nobody else can read a table."""
    with connect(database) as conn, conn.transaction():
        conn.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield


def ask(url: str, text: str, timeout_s: float = 30.0) -> int:
    """The status of one query's answer."""
    return httpx.post(f"{url}/v1/query", json={"query": text}, timeout=timeout_s).status_code


@pytest.mark.parametrize("table", ["image", "posting", "generation"])
def test_after_a_lock_on_a_table_with_queries_in_flight_the_worker_answers_again(
    database: str,
    services: Services,
    conn: Connection,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
) -> None:
    # Clients give up long before the lock is released.
    monkeypatch.setattr(queries, "ANSWER_S", 0.2)
    leave_in(conn, stub_generation(conn), accepted(services.store, ["a", "b", "c"]))
    with http_serving(services) as url:
        assert ask(url, "before") == 200
        with locked(database, table), ThreadPoolExecutor(4) as clients:
            statuses = set(clients.map(lambda number: ask(url, f"query {number}"), range(8)))
            assert statuses <= {200, 429, 503}
            assert httpx.get(f"{url}/healthz").status_code == 200
        until(lambda: ask(url, "after") == 200, "queries are answered again", within_s=10)
        assert httpx.get(f"{url}/readyz").status_code == 200


def test_queries_whose_clients_gave_up_cost_nobody_else_the_answer(
    services: Services, conn: Connection
) -> None:
    filled(services, conn)
    with serving(services) as (query_server, _):
        until(lambda: not query_server.problem, "it is ready")
        for turn in range(200):
            abandoned = PendingQuery(f"query {turn}", 10, "fused", None)
            query_server.submit(abandoned)
            # At any moment: before it is claimed, while it is answered, afterwards.
            time.sleep(turn % 5 / 2000)
            query_server.withdraw(abandoned)
        assert asked(query_server).hits
        assert query_server.alive


def test_a_query_with_a_zero_character_is_compared_and_reported_like_any_other(
    services: Services, conn: Connection
) -> None:
    first, second = filled(services, conn)
    with serving(services) as (query_server, metrics):
        until(lambda: answers(query_server, first) and answers(query_server, second), "both loaded")
        for text in ("red\0circle", "\0", "half \ud83d"):
            query_server.submit(PendingQuery(text, 10, "fused", None))
        asked(query_server, "a plain one")
        until(
            lambda: shadow_summary(conn, second, first).queries >= 3, "the comparisons are stored"
        )
        assert query_server.alive
        assert query_server.problem == ""
        assert value(metrics, "sigma_reports_dropped_total") == 0


def test_a_report_that_cannot_be_written_is_counted_and_the_next_ones_are_written(
    services: Services, conn: Connection
) -> None:
    first, second = filled(services, conn)
    conn.execute("ALTER TABLE shadow_query ADD CHECK (query <> 'bad')")
    with serving(services) as (query_server, metrics):
        until(lambda: answers(query_server, first) and answers(query_server, second), "both loaded")
        for text in ("bad", "good"):
            asked(query_server, text)
        until(lambda: value(metrics, "sigma_reports_dropped_total") == 1, "the bad one is counted")
        stored = "SELECT count(*) FROM shadow_query WHERE query = 'good'"
        until(lambda: conn.execute(stored).fetchone() == (1,), "the good one is stored")
        assert query_server.alive


def test_a_dead_decode_thread_ends_the_process_and_is_not_ready_until_then(
    services: Services, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(services, conn)
    deaths = DeadThreads()
    with serving(services, deaths=deaths) as (query_server, _):
        until(lambda: not query_server.problem, "it is ready")

        def broken(*_: object) -> None:
            raise ValueError("a mistake in the program")

        monkeypatch.setattr(server, "group_queries", broken)
        query_server.submit(PendingQuery("a query", 10, "fused", None))
        until(lambda: not query_server.alive, "it is not alive")
        assert "decode" in query_server.problem
    assert deaths.names == ["decode"]


def test_a_decode_thread_that_is_stuck_is_not_ready_then_not_alive_and_recovers(
    services: Services, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(services, conn)
    monkeypatch.setattr(server, "STALLED_S", 0.1)
    monkeypatch.setattr(server, "STUCK_S", 0.5)
    release = threading.Event()
    load_stub = stub_searcher_loader(services)

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        searcher = load_stub(generation, previous, live)
        answer = searcher.engine.answer

        def stuck(*arguments: Any) -> list[RankedImages]:
            release.wait(30)
            return answer(*arguments)

        monkeypatch.setattr(searcher.engine, "answer", stuck)
        return searcher

    with serving(services, load) as (query_server, _):
        until(lambda: not query_server.problem, "it is ready")
        query = PendingQuery("a query", 10, "fused", None)
        query_server.submit(query)
        until(lambda: "at one batch" in query_server.problem, "it is not ready")
        until(lambda: not query_server.alive, "it is not alive")
        release.set()
        assert query.answer.result(30).hits
        until(lambda: query_server.alive and not query_server.problem, "it is ready again")


def test_a_statement_that_waits_for_a_lock_ends_by_itself(database: str) -> None:
    limits = SessionLimits(statement_s=5, lock_s=0.2, idle_transaction_s=5)
    with connect(database, limits=limits) as conn, locked(database, "image"):
        began_s = time.monotonic()
        with pytest.raises(Exception, match="lock timeout"):
            conn.execute("SELECT count(*) FROM image")
        assert time.monotonic() - began_s < 3


def test_while_the_database_restarts_answers_keep_coming(
    services: Services, conn: Connection, postgres: Any, database: str
) -> None:
    leave_in(
        conn,
        stub_generation(conn),
        accepted(services.store, [f"image {number}" for number in range(10)]),
    )
    with serving(services) as (query_server, metrics):
        until(lambda: not query_server.problem, "it is ready")
        # Ten images: the first answers describe all of them.
        expected = {hit.image_id for hit in asked(query_server, "a query").hits}
        failures: list[BaseException] = []
        loads = value(metrics, "sigma_candidate_load_failures_total")
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        with psycopg.connect(postgres.get_uri(), autocommit=True) as admin:
            # As a restart does: all connections are lost, and for two seconds none is accepted.
            name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            admin.execute(ended, (name,))
            end_s = time.monotonic() + 2
            answered = 0
            while time.monotonic() < end_s:
                try:
                    assert {hit.image_id for hit in asked(query_server).hits} <= expected
                    answered += 1
                except SigmaError as error:
                    failures.append(error)
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
        assert failures == []
        assert answered > 10
        assert value(metrics, "sigma_candidate_load_failures_total") == loads
        with connect(database) as again:
            leave_in(again, 1, accepted(services.store, ["newcomer"]))
        until(
            lambda: "newcomer" in {hit.image_id for hit in asked(query_server).hits},
            "new images are found again",
        )


def test_a_query_that_needs_the_database_waits_for_its_return(
    services: Services, conn: Connection, postgres: Any, database: str
) -> None:
    leave_in(conn, stub_generation(conn), accepted(services.store, ["a", "b"]))
    with serving(services) as (query_server, _):
        until(lambda: not query_server.problem, "it is ready")
        name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
        with psycopg.connect(postgres.get_uri(), autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            query = PendingQuery("nothing is remembered", 10, "fused", None)
            query_server.submit(query)
            time.sleep(1)
            assert not query.answer.done()
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
        assert len(query.answer.result(30).hits) == 2


def test_a_model_that_gives_nan_gets_503_and_answers_of_nothing_are_counted(
    services: Services, conn: Connection
) -> None:
    leave_in(conn, stub_generation(conn), accepted(services.store, ["a", "b"]))
    load_stub = stub_searcher_loader(services)
    engines: list[QueryEngine] = []

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        searcher = load_stub(generation, previous, live)
        engines.append(searcher.engine)
        return searcher

    with serving(services, load) as (query_server, metrics):
        until(lambda: not query_server.problem, "it is ready")
        assert asked(query_server).hits
        engine = engines[-1]
        encoder = engine.encoder
        embed = encoder.embed_texts
        encoder.__dict__["embed_texts"] = lambda texts: embed(texts) * np.nan
        with pytest.raises(WorkFailedError, match="NaN"):
            asked(query_server, "another")
        assert value(metrics, "sigma_query_failures_total") == 1
        encoder.__dict__["embed_texts"] = embed
        no_scores = np.empty(0, np.float32)
        nothing = RankedImages(np.empty(0, np.int64), no_scores, 0, np.empty(0), no_scores)
        engine.__dict__["answer"] = lambda texts, *_: [nothing for _ in texts]
        assert asked(query_server, "a third").hits == ()
        assert value(metrics, "sigma_query_empty_total") == 1
        assert query_server.alive
