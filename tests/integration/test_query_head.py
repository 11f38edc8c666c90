"""A generation with a query head: trained, asked without its encoder, refreshed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.network import checkpoint as checkpoints
from model.network.checkpoint import load_checkpoint
from model.network.query_head import QueryHeadEncoder
from model.progress import quiet
from ops.evaluation import evaluate
from schemas.errors import UsageError
from schemas.records import ManifestEntry
from tests.integration.small_training import fill, profile_of_tests, request, tiny_services
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.query.loading import live_generation, open_searcher
from workers.query.residents import searcher_loader
from workers.repository.connection import Connection
from workers.trainer.trainer import train

SEEN, LATER = 16, 6
PROFILE = replace(profile_of_tests(), query_head=True)


def test_a_query_worker_loads_no_encoder_and_a_refresh_keeps_the_head(
    tmp_path: Path, database: str, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = tiny_services(tmp_path / "home", database)
    fill(services, conn, SEEN)
    train(services, None, request(services, profile=PROFILE), quiet)
    generation = live_generation(conn)
    # An index worker embeds images, with the encoder.
    fill(services, conn, LATER, first=SEEN)
    load = assigner_loader(services.checkpoints, services.settings.retrieval)
    CatchUp(conn, generation, services.store, load).run()

    with monkeypatch.context() as without_encoder:

        def load_encoder(*_: object) -> None:
            raise AssertionError("the encoder was loaded")

        without_encoder.setattr(checkpoints, "_load_encoder", load_encoder)
        # As a query worker does.
        searcher = searcher_loader(services)(generation, None, True)
        (fused,) = searcher.search(["a small red circle"], 50)
        (paper,) = searcher.search(["a small red circle"], 50, "paper")
        searcher.close()
    assert len(fused.hits) == SEEN + LATER
    assert paper.hits

    searcher = open_searcher(services, generation, with_encoder=True)
    assert isinstance(searcher.engine.encoder, QueryHeadEncoder)
    entry = ManifestEntry("image 000", "0.png", test_captions=("a small red circle",))
    figures = evaluate(searcher, conn, [entry], limit=None, seed=0).to_json()
    searcher.close()
    assert figures["splits"]["seen"]["ours_with_tower"]["R@20"] >= 0

    refreshed = train(services, None, request(services, profile=None, mode="refresh"), quiet)
    old, new = (
        load_checkpoint(services.checkpoints / f"g{number}", for_queries=True).sigma.query_head
        for number in (generation.id, refreshed.generation)
    )
    assert old is not None
    assert new is not None
    assert old.space == new.space
    # Kept, and trained on.
    before, after = old.state_dict(), new.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    moves = torch.cat([(before[name] - after[name]).abs().flatten() for name in before])
    assert moves.mean() < 0.05


def test_a_model_that_reads_vectors_is_refused_before_anything_is_trained(
    tmp_path: Path, database: str, conn: Connection
) -> None:
    services = tiny_services(tmp_path / "home", database)
    fill(services, conn, SEEN, captions=())
    with pytest.raises(UsageError, match="cannot have a query head"):
        train(services, None, request(services, profile=PROFILE), quiet)
