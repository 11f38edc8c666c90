"""A query worker has several generations in memory: each query is answered by one of them, before,
during and after a switch."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.bench.stub import StubAssigner, shadow_generation, stub_generation
from ops.bench.stub_query import stub_searcher_loader
from schemas.errors import RefuseToStartError, SigmaError, UsageError
from schemas.settings import RetrievalSettings
from stream.log.postgres import PostgresLog
from tests.stubs import accepted, leave_in, services_at
from workers.generations.catch_up import CatchUp
from workers.generations.switching import promote, rollback
from workers.query.engine import QueryEngine
from workers.query.pending import PendingQuery
from workers.query.searcher import AnsweredQuery, Searcher
from workers.query.server import QueryServer
from workers.query.shadowing import BACKLOG
from workers.query.updates import LoadSearcher
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.postings import identifiers_of
from workers.repository.shadow_queries import prune_shadow_queries, shadow_summary
from workers.runtime.metrics import QueryMetrics
from workers.runtime.services import Services

PATIENCE_S = 60.0


@pytest.fixture
def services(database: str, tmp_path: Path) -> Services:
    log = PostgresLog(database)
    log.ensure_topics()
    log.close()
    return services_at(database, tmp_path, shadow_share=1.0)


@contextmanager
def serving(
    services: Services, load: LoadSearcher | None = None
) -> Iterator[tuple[QueryServer, QueryMetrics]]:
    """A running server, with the stub model unless another loader is given."""
    metrics = QueryMetrics()
    server = QueryServer(
        services, "test", threading.Event(), metrics, load or stub_searcher_loader(services)
    )
    server.start()
    try:
        yield server, metrics
    finally:
        server.close()


def until(condition: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def asked(
    server: QueryServer, text: str = "something", generation: int | None = None
) -> AnsweredQuery:
    """One answered query."""
    query = PendingQuery(text, 10, "fused", generation)
    server.submit(query)
    return query.answer.result(PATIENCE_S)


def answers(server: QueryServer, generation: int | None) -> bool:
    """Whether a query for that generation is answered."""
    try:
        return asked(server, generation=generation).generation == generation
    except SigmaError:
        return False


def value(metrics: QueryMetrics, name: str) -> float:
    """A metric's value."""
    return metrics.registry.get_sample_value(name) or 0.0


def filled(services: Services, conn: Connection, count: int = 30) -> tuple[int, int]:
    """A live generation and a shadow one, both complete."""
    first, second = stub_generation(conn), shadow_generation(conn)
    leave_in(conn, first, accepted(services.store, [f"image {number}" for number in range(count)]))
    CatchUp(conn, generations.get(conn, second), services.store, StubAssigner.of).run()
    return first, second


def of_one_generation(conn: Connection, result: AnsweredQuery) -> bool:
    """Whether every identifier of an answer is the one that its generation gave."""
    keys = dict(conn.execute("SELECT image_id, image_key FROM image").fetchall())
    shape = generations.get(conn, result.generation).shape
    known = identifiers_of(conn, result.generation, shape, list(keys.values()))
    return all(list(hit.identifier) == known[keys[hit.image_id]] for hit in result.hits)


def test_a_switch_and_a_rollback_are_answered_without_a_gap_and_without_a_mixture(
    services: Services, conn: Connection
) -> None:
    first, second = filled(services, conn)
    results: list[AnsweredQuery] = []
    failed: list[BaseException] = []
    done = threading.Event()
    with serving(services) as (server, metrics):
        until(lambda: answers(server, first) and answers(server, second), "both are loaded")

        def ask_on() -> None:
            try:
                while not done.is_set():
                    results.append(asked(server, f"query {len(results)}"))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=ask_on)
        thread.start()
        until(lambda: results, "the first answer")
        promote(conn, second, services.store, StubAssigner.of)
        until(lambda: results[-1].generation == second, "the switch")
        rollback(conn, services.store, StubAssigner.of)
        until(lambda: results[-1].generation == first, "the rollback")
        done.set()
        thread.join(PATIENCE_S)
        assert value(metrics, "sigma_switches_total") == 2
        assert value(metrics, "sigma_generation") == first
    assert not failed
    order = [result.generation for result in results]
    # Each generation answered for one stretch of time: first, second, first.
    assert [number for at, number in enumerate(order) if at == 0 or order[at - 1] != number] == [
        first,
        second,
        first,
    ]
    assert all(of_one_generation(conn, result) for result in results)
    assert all(result.hits for result in results)


def test_what_arrives_before_a_switch_is_reported_searchable_whoever_answers(
    services: Services, conn: Connection
) -> None:
    first, second = filled(services, conn)
    with serving(services) as (server, _):
        until(lambda: answers(server, first) and answers(server, second), "both are loaded")
        # In the candidate only, as if the live one's follower were slow: the switch makes it
        # searchable.
        leave_in(conn, second, accepted(services.store, ["newcomer"]))
        promote(conn, second, services.store, StubAssigner.of)
        query = """SELECT count(*) FROM visibility JOIN image USING (image_key)
                   WHERE image_id = 'newcomer'"""
        until(lambda: conn.execute(query).fetchone() != (0,), "the newcomer is searchable")


def test_a_candidate_that_cannot_be_loaded_is_counted_and_the_live_generation_answers(
    services: Services, conn: Connection
) -> None:
    first, second = filled(services, conn)

    load_stub = stub_searcher_loader(services)

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        if generation.id == second:
            raise RefuseToStartError("the folder is empty")
        return load_stub(generation, previous, live)

    with serving(services, load) as (server, metrics):
        until(
            lambda: value(metrics, "sigma_candidate_load_failures_total"), "the failure is counted"
        )
        until(lambda: answers(server, first), "the live generation answers")
        assert server.problem == ""
        assert server.alive
        with pytest.raises(UsageError, match="not served here"):
            asked(server, generation=second)


def test_a_live_generation_that_cannot_be_loaded_is_named_as_the_problem(
    services: Services, conn: Connection
) -> None:
    filled(services, conn)

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        raise RefuseToStartError(f"generation {generation.id} is damaged")

    with serving(services, load) as (server, _):
        until(lambda: "damaged" in server.problem, "the problem is named")
        assert server.alive


def test_generations_that_are_needed_no_more_are_unloaded(
    services: Services, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = filled(services, conn)
    closed: list[int] = []

    load_stub = stub_searcher_loader(services)

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        searcher = load_stub(generation, previous, live)
        close = searcher.engine.close

        def close_engine() -> None:
            closed.append(generation.id)
            close()

        monkeypatch.setattr(searcher.engine, "close", close_engine)
        return searcher

    with serving(services, load) as (server, _):
        until(lambda: answers(server, first) and answers(server, second), "both are loaded")
        promote(conn, second, services.store, StubAssigner.of)
        third = shadow_generation(conn)
        until(lambda: answers(server, third), "the third is loaded")
        promote(conn, third, services.store, StubAssigner.of)
        # The second is the fallback now, the first is not needed.
        until(lambda: closed == [first], "the first is unloaded")
        assert answers(server, second)
        generations.drop(conn, first)
        generations.set_state(conn, shadow_generation(conn), "failed")
        assert answers(server, third)
    assert sorted(closed) == [first, second, third]


def test_the_fallback_generation_can_be_left_out_of_memory(
    database: str, services: Services, conn: Connection, tmp_path: Path
) -> None:
    first, second = filled(services, conn)
    with serving(services_at(database, tmp_path, keep_fallback=False, shadow_share=0.0)) as (
        server,
        metrics,
    ):
        until(lambda: answers(server, first) and answers(server, second), "both are loaded")
        promote(conn, second, services.store, StubAssigner.of)
        until(lambda: value(metrics, "sigma_generations_held") == 1, "only the live one is loaded")
        rollback(conn, services.store, StubAssigner.of)
        until(lambda: asked(server).generation == first, "it is loaded again")


def test_live_queries_are_answered_by_the_shadow_too_and_compared(
    database: str, services: Services, conn: Connection, tmp_path: Path
) -> None:
    first, second = filled(services, conn)
    # Beams that reach every leaf, and ranking by the cosine alone: what exact search does.
    with serving(
        services_at(
            database,
            tmp_path,
            shadow_share=1.0,
            retrieval=RetrievalSettings(beams=200, fusion_weight=0.0),
        )
    ) as (server, metrics):
        until(lambda: answers(server, first) and answers(server, second), "both are loaded")
        texts = [f"query {number}" for number in range(5)]
        for text in texts:
            asked(server, text)
        until(
            lambda: shadow_summary(conn, second, first).queries >= len(texts),
            "the comparisons are written",
        )
        assert value(metrics, "sigma_shadow_queries_total") >= len(texts)
    found = shadow_summary(conn, second, first)
    assert found.latency_ratio is not None
    assert (found.live_recall, found.candidate_recall) == (1.0, 1.0)
    assert found.overlap is not None
    assert 0 < found.overlap < 1
    conn.execute(
        """UPDATE shadow_query SET asked_at = now() - interval '40 days'
           WHERE id = (SELECT min(id) FROM shadow_query)"""
    )
    assert prune_shadow_queries(conn, 30) == 1


def test_a_busy_worker_drops_comparisons_and_no_query(services: Services, conn: Connection) -> None:
    first, second = filled(services, conn)
    with serving(services) as (server, metrics):
        until(lambda: answers(server, first) and answers(server, second), "both are loaded")
        queries: Sequence[PendingQuery] = [
            PendingQuery(f"query {number}", 10, "fused", None) for number in range(BACKLOG + 80)
        ]
        for query in queries:
            server.submit(query)
        assert {query.answer.result(PATIENCE_S).generation for query in queries} == {first}
        until(
            lambda: (
                value(metrics, "sigma_shadow_queries_total")
                + value(metrics, "sigma_shadow_dropped_total")
                >= len(queries)
            ),
            "every query was compared or counted as dropped",
        )
        assert value(metrics, "sigma_shadow_dropped_total") > 0
