"""Generations end to end, with the real model.

What the gate refuses, and how a bad generation that was forced is rolled back.
"""

import time

import numpy as np
import pytest

from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.parts import parts_from_base
from model.network.profiles import profile
from ops.bench.generation_copy import copy_generation
from ops.bench.switch import SwitchConfig, switch
from ops.embedded.database import open_services
from ops.jobs.candidate_promotion import CandidatePromoter
from schemas.errors import WorkFailedError
from schemas.maintenance_results import GateResult
from schemas.settings import Settings
from schemas.training_record import TrainingRecord
from tests.acceptance.conftest import TRAINED, Home
from tests.integration.test_serving import answers, asked, serving, until
from tests.stubs import accepted, held_by
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.generations.switching import rollback
from workers.query.residents import searcher_loader
from workers.repository import generations
from workers.repository.connection import Connection, migrate
from workers.repository.image_acceptance import accept_images
from workers.runtime.services import Services

ROLLBACK_S = 10.0


def undertrained(found: Services, conn: Connection, source: generations.Generation) -> int:
    """A candidate whose model never learnt the identifiers that its codebook gives."""
    parts = parts_from_base(Base.load(SHIPPED), profile("tiny"))
    book = load_checkpoint(found.checkpoints / f"g{source.id}").codebook
    save_checkpoint(
        Checkpoint(parts.sigma, book, parts.encoder, TrainingRecord(stages=("codebook",))),
        found.checkpoints / "undertrained",
    )
    return generations.create_generation(
        conn, source.shape, codebook_version=book.version, checkpoint_path="undertrained"
    )


def test_bad_candidates_are_refused_with_reasons_and_one_that_was_forced_is_rolled_back_at_once(
    home: Home,
) -> None:
    with open_services(Settings(home=home.folder)) as found, found.connect("test") as conn:
        migrate(conn)
        first = generations.live(conn)
        assert first is not None
        order = np.random.default_rng(0).permutation(TRAINED).tolist()
        shuffled = copy_generation(found.connect, conn, first, order)
        promoter = CandidatePromoter.on_services(found, conn, queries=160)
        for bad in (shuffled, undertrained(found, conn, first)):
            generations.set_state(conn, bad, "shadow")
            with pytest.raises(WorkFailedError, match=r"is refused and 1 stays live: .* --force"):
                promoter.promote(bad)
            verdict = generations.get(conn, bad).config.gate
            assert verdict is not None
            print("gate", bad, verdict.reasons)
            assert not verdict.passed
            assert verdict.missing == 0
            assert generations.live_number(conn) == first.id
        with serving(found, searcher_loader(found)) as (server, _):
            until(
                lambda: answers(server, first.id) and answers(server, shuffled), "both are loaded"
            )
            promoter.promote(shuffled, force=True)
            until(lambda: asked(server).generation == shuffled, "the bad one answers")
            # Arrives at a worker that has not loaded the fallback generation.
            accept_images(conn, accepted(found.store, ["newcomer"]))
            load = assigner_loader(found.checkpoints, found.settings.retrieval)
            CatchUp(conn, generations.get(conn, shuffled), found.store, load).run()
            began = time.monotonic()
            assert rollback(conn, found.store, load).generation == first.id
            until(
                lambda: asked(server).generation == first.id,
                "the good one answers again",
                ROLLBACK_S,
            )
            print("rolled back within", round(time.monotonic() - began, 2), "s")
        assert len(held_by(conn, first.id)) == TRAINED + 1
        assert held_by(conn, first.id) == held_by(conn, shuffled)


def test_an_equal_candidate_passes_the_gate_and_the_job_promotes_it_where_that_is_allowed(
    home: Home,
) -> None:
    with (
        open_services(Settings(home=home.folder, auto_promote=True)) as found,
        found.connect("test") as conn,
    ):
        migrate(conn)
        first = generations.live(conn)
        assert first is not None
        equal = copy_generation(found.connect, conn, first)
        generations.set_state(conn, equal, "shadow")
        promoter = CandidatePromoter.on_services(found, conn, queries=60)
        result = promoter.run_gate(auto_promote=found.settings.auto_promote)
        assert isinstance(result, GateResult)
        assert result.promoted == equal
        assert result.judged[equal].cohorts["all"].loss == 0
        assert generations.live_number(conn) == equal


@pytest.mark.timeout(600)
def test_switches_and_rollbacks_under_load_fail_mix_and_lose_nothing() -> None:
    done = switch(SwitchConfig(seconds=2, switches=2, rollbacks=1, stub=True))
    answers = done.answers
    assert (answers.failed, answers.mixed, set(answers.missing.values())) == (0, 0, {0})
    assert answers.generations_that_answered == 3
    assert answers.empty == 0
