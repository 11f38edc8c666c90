"""A query worker has several generations in memory: each query is answered by one of them, before,
during and after a switch."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from model.decoding.decoder import Decoder
from model.decoding.graphs import EagerReason, Program, SearchGraphs, Tensors
from model.network.checkpoint import Checkpoint
from model.network.parts import parts_from_base
from ops.bench.stub import SHAPE, StubAssigner, shadow_generation, stub_generation
from ops.bench.stub_query import StubEncoder, stub_searcher_loader
from schemas.errors import RefuseToStartError, UsageError
from schemas.retrieval_settings import RetrievalSettings
from stream.log.postgres import PostgresLog
from tests.serving import PATIENCE_S, answers, asked, filled, serving, until, value
from tests.stubs import accepted, leave_in, services_at
from tests.unit.model.conftest import small_base, small_profile
from tests.unit.model.network.test_checkpoint import codebook_of
from workers.generations.switching import promote, rollback
from workers.query.engine import QueryEngine
from workers.query.gallery import Gallery
from workers.query.loading import follow
from workers.query.model_engine import ModelEngine
from workers.query.pending import PendingQuery
from workers.query.searcher import AnsweredQuery, Searcher
from workers.query.shadowing import BACKLOG
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.postings import identifiers_of
from workers.repository.shadow_queries import prune_shadow_queries, shadow_summary
from workers.runtime.query_metrics import EAGER_REASONS
from workers.runtime.services import Services


@pytest.fixture
def services(database: str, tmp_path: Path) -> Services:
    log = PostgresLog(database)
    log.ensure_topics()
    log.close()
    return services_at(database, tmp_path, shadow_share=1.0)


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


def test_a_database_that_goes_away_while_a_generation_is_loaded_leaves_nothing_open(
    services: Services, conn: Connection
) -> None:
    first, _ = filled(services, conn)
    load_stub = stub_searcher_loader(services)
    opened: list[int] = []
    closed: list[int] = []

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        searcher = load_stub(generation, previous, live)
        close = searcher.engine.close

        def close_and_count() -> None:
            closed.append(generation.id)
            close()

        searcher.engine.__dict__["close"] = close_and_count
        opened.append(generation.id)
        if len(opened) <= 2:
            # As when PostgreSQL restarts just now.
            searcher.follower.close()
        return searcher

    with serving(services, load) as (server, _):
        until(lambda: answers(server, first), "it is loaded once more")
        until(lambda: len(opened) == 4, "both were interrupted, and both are loaded")
    assert sorted(closed) == sorted(opened)


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
    loaded: list[int] = []
    closed: list[int] = []

    load_stub = stub_searcher_loader(services)

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        searcher = load_stub(generation, previous, live)
        loaded.append(generation.id)
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
    # Perhaps the fourth too, which was a candidate for a moment.
    assert sorted(closed) == sorted(loaded)
    assert {first, second, third} <= set(closed)


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


def test_a_busy_worker_drops_comparisons_and_no_query(
    database: str, services: Services, conn: Connection, tmp_path: Path
) -> None:
    first, second = filled(services, conn)
    patient = services_at(database, tmp_path, shadow_share=1.0, query_backlog=1000)
    with serving(patient) as (server, metrics):
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


def test_searches_that_no_graph_answers_are_counted_by_the_reason(
    services: Services, conn: Connection
) -> None:
    assert get_args(EagerReason) == EAGER_REASONS
    leave_in(conn, stub_generation(conn), accepted(services.store, ["a", "b"]))
    parts = parts_from_base(small_base(), replace(small_profile(), shape=SHAPE))

    def refuse(program: Program, inputs: Tensors) -> Program:
        raise RuntimeError("no memory for a graph")

    def load(
        generation: Generation, previous: Searcher[QueryEngine] | None, live: bool
    ) -> Searcher[QueryEngine]:
        decoder = Decoder(parts.sigma, SearchGraphs(refuse))
        checkpoint = Checkpoint(parts.sigma, codebook_of(parts, seed=0), StubEncoder())
        gallery = Gallery.open(services.cache)
        engine = ModelEngine(generation.id, checkpoint, decoder, decoder, gallery)
        return follow(services, generation, engine)

    with serving(services, load) as (server, metrics):
        until(lambda: not server.problem, "it is ready")
        for text in ("short", "another"):
            assert asked(server, text).hits
        assert asked(server, "word " * 400).hits

        def counted(reason: EagerReason) -> float | None:
            name = "sigma_query_eager_searches_total"
            return metrics.registry.get_sample_value(name, {"reason": reason})

        assert (counted("capture"), counted("length"), counted("beams")) == (3, 0, 0)
