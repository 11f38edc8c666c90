"""Images without captions through train, ingest, query and refresh."""

from pathlib import Path

import numpy as np
import pytest

from model.network.checkpoint import load_checkpoint
from model.progress import quiet
from ops.cli.search import require_comprehension
from ops.evaluation import evaluate
from ops.jobs.candidate_promotion import CandidatePromoter
from ops.jobs.recall_probe import recall_probe
from schemas.errors import UsageError
from schemas.job_results import RecallProbeResult
from schemas.records import ManifestEntry
from schemas.training_record import VECTORS
from tests.integration.small_training import fill, request, tiny_services
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.query.searcher import live_generation, open_searcher
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.training_data import embeddings_of, untrained_images
from workers.trainer.trainer import train

SEEN, LATER = 16, 6


def test_images_without_captions_are_trained_on_searched_by_text_and_learnt_in_a_refresh(
    tmp_path: Path, database: str, conn: Connection
) -> None:
    services = tiny_services(tmp_path / "home", database)
    fill(services, conn, SEEN, captions=())
    trained = train(services, None, request(services), quiet)
    assert (trained.state, trained.images) == ("live", SEEN)
    # Nothing to comprehend; every other stage was trained and measured.
    assert set(trained.record.evaluations) == {"memorize", "align"}
    figures = trained.record.evaluations["align"].figures
    assert figures["asked"] == SEEN
    assert figures["dense"] > figures["chance"]
    reading = load_checkpoint(services.checkpoints / "g1").sigma.projector
    assert reading is not None
    assert reading.reading.pictures

    later = fill(services, conn, LATER, first=SEEN, captions=())
    generation = live_generation(conn)
    load = assigner_loader(services.checkpoints, services.settings.retrieval.postings)
    CatchUp(conn, generation, services.store, load).run()
    assert embeddings_of(conn, generation.id, np.array(later)).present.all()
    searcher = open_searcher(services, generation)
    (fused,) = searcher.search(["a small red circle"], 50)
    (paper,) = searcher.search(["a small red circle"], 50, "paper")
    entry = ManifestEntry("image 000", "0.png", test_captions=("a small red circle",))
    evaluation = evaluate(searcher, conn, [entry], limit=None, seed=0)
    searcher.close()
    assert evaluation.captions is None
    # 20 beams reach every leaf of so small a corpus.
    assert len(fused.hits) == SEEN + LATER
    assert paper.hits

    # Without a caption to ask for, a picture asks for itself, and the probe says so.
    assert generation.config.training.reads == VECTORS
    probe = recall_probe(conn, lambda wanted: open_searcher(services, wanted), count=60)
    assert isinstance(probe, RecallProbeResult)
    assert probe.by_picture == probe.queries > SEEN // 2
    assert probe.cohorts["trained"].exact["R@10"] > 10 / (SEEN + LATER)

    with pytest.raises(UsageError, match="trained without captions"):
        require_comprehension(conn, generation)

    assert untrained_images(conn, generation.id) == LATER
    refreshed = train(services, None, request(services, mode="refresh"), quiet)
    assert (refreshed.state, refreshed.record.stages[-1]) == ("shadow", "align")
    assert untrained_images(conn, refreshed.generation) == 0
    candidate = generations.get(conn, refreshed.generation)
    verdict = CandidatePromoter.on_services(services, conn, queries=40).judge(candidate, generation)
    # The gate has something to compare, old images and new ones.
    assert {"trained", "hour"} <= set(verdict.cohorts)
