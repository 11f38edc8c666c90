"""Images without captions through train, ingest, query and refresh."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.network.checkpoint import load_checkpoint
from model.network.profiles import Stage
from model.progress import quiet
from ops.cli.search import require_comprehension
from ops.evaluation import evaluate
from ops.jobs.candidate_promotion import CandidatePromoter
from ops.jobs.recall_probe import recall_probe
from schemas.errors import UsageError
from schemas.job_results import RecallProbeResult
from schemas.records import ManifestEntry
from schemas.training_record import VECTORS
from tests.captioner_checkpoints import blip, talking_qwen
from tests.integration.small_training import fill, profile_of_tests, request, tiny_services
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.query.loading import live_generation, open_searcher
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.stored_images import images_by_id
from workers.repository.training_data import embeddings_of, untrained_images
from workers.trainer import trainer
from workers.trainer.captioning import GENERATED, read_generated, with_captions
from workers.trainer.trainer import train
from workers.trainer.training_images import TrainingImages, from_store
from workers.trainer.training_run import TrainingRun

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
    load = assigner_loader(services.checkpoints, services.settings.retrieval)
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


def test_a_captioner_gives_captions_to_learn_from_and_a_refresh_asks_the_same_one(
    tmp_path: Path, database: str, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = str(talking_qwen(tmp_path / "captioner"))
    services = tiny_services(tmp_path / "home", database)
    # One image has a caption of a person's, which stays as it is.
    fill(services, conn, 1, captions=("a red star",))
    fill(services, conn, SEEN, first=1, captions=())
    learnt: list[tuple[tuple[str, ...], ...]] = []
    record_captions(monkeypatch, learnt)
    trained = train(services, None, request(services, captioner=captioner), quiet)
    assert trained.record.captioner == captioner
    assert "comprehend" in trained.record.stages
    assert learnt[0][0] == ("a red star", "a red star")
    generated = learnt[0][1:]
    assert all(len(own) == 1 for own in generated)
    assert len(set(generated)) > SEEN // 2
    # Nothing of a picture that may be deleted stays behind, and answers show no generated words.
    assert not list(services.checkpoints.rglob(GENERATED))
    assert not any(image.captions for image in images_by_id(conn, ["image 001"]).values())

    fill(services, conn, LATER, first=SEEN + 1, captions=())
    generation = live_generation(conn)
    load = assigner_loader(services.checkpoints, services.settings.retrieval)
    CatchUp(conn, generation, services.store, load).run()
    refreshed = train(services, None, request(services, mode="refresh"), quiet)
    assert refreshed.record.captioner == captioner
    assert all(learnt[-1])


def test_a_training_that_was_killed_among_its_captions_asks_only_for_the_others(
    tmp_path: Path, database: str, conn: Connection
) -> None:
    services = tiny_services(tmp_path / "home", database)
    keys = fill(services, conn, 4, captions=())
    images = from_store(conn, services.store, np.array(keys), profile_of_tests())
    folder = tmp_path / "run"
    folder.mkdir()
    whole = json.dumps({"image": keys[0], "caption": "kept"})
    (folder / GENERATED).write_text(whole + '\n{"image": 2, "capt', encoding="utf-8")
    captioner = str(blip(tmp_path / "captioner"))
    captioned = with_captions(images, captioner, folder, quiet)
    assert captioned.captions[0] == ("kept",)
    assert captioned.captioned.all()
    assert sorted(read_generated(folder / GENERATED)) == sorted(keys)
    # All are known now: the captioner is not even opened.
    again = with_captions(images, str(tmp_path / "gone"), folder, quiet)
    assert again.captions == captioned.captions


def record_captions(
    monkeypatch: pytest.MonkeyPatch, learnt: list[tuple[tuple[str, ...], ...]]
) -> None:
    """Keep the captions that each training learns from."""
    real = trainer.stages_of

    def stages_of(run: TrainingRun, images: TrainingImages) -> tuple[Stage, ...]:
        learnt.append(images.captions)
        return real(run, images)

    monkeypatch.setattr(trainer, "stages_of", stages_of)
