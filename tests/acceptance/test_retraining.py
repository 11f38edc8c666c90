"""The jobs that retrain, with the real trainer process on the small trained home."""

from pathlib import Path

import pytest

from model.progress import quiet
from ops.embedded.database import open_services
from ops.jobs.retraining import CandidateTrainer
from schemas.errors import WorkFailedError
from schemas.generation_config import GateVerdict
from schemas.maintenance_results import CandidateResult, CandidateSkipped
from schemas.settings import Settings
from stream.manifest import read_manifest
from tests.acceptance.conftest import TRAINED, Home
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.training_data import indexed_images
from workers.runtime.services import Services
from workers.trainer.seeding import seed_images

NEW = 24


def catch_up_first(services: Services, conn: Connection) -> None:
    """Assign in generation 1 what it lacks."""
    load = assigner_loader(services.checkpoints, services.settings.retrieval)
    CatchUp(conn, generations.get(conn, 1), services.store, load).run()


def test_a_job_resumes_what_was_left_makes_one_candidate_and_waits_for_its_gate(
    home: Home, corpus: Path
) -> None:
    settings = Settings(home=home.folder)
    with open_services(settings) as found, found.connect("test") as conn:
        trainer = CandidateTrainer.on_services(found, conn)
        assert trainer.retrain(settings).to_json()["generation"] is None
        seed_images(
            conn,
            found.store,
            found.limits,
            read_manifest(corpus / "stream" / "manifest.jsonl")[:NEW],
            quiet,
        )
        catch_up_first(found, conn)
        left = home.ok("train", "--refresh", "--stage", "codebook")
        assert (left["generation"], left["state"], left["images"]) == (
            2,
            "building",
            NEW + NEW // 2,
        )
        made = trainer.retrain(settings)
        assert isinstance(made, CandidateResult)
        assert (made.generation, made.state, made.resumed) == (2, "shadow", True)
        assert made.training.mode == "refresh"
        assert made.training.evaluations.keys() == {"memorize", "comprehend", "align"}
        assert made.training.cpu_seconds["align"] > 0
        assert indexed_images(conn, 2).trained.sum() == TRAINED + NEW
        assert (home.folder / "logs" / "retrain.log").is_file()
        skipped = trainer.retrain(settings)
        assert isinstance(skipped, CandidateSkipped)
        assert "waits for its gate" in skipped.why
        assert skipped.to_json()["generation"] == 2
        # One that its gate refused makes room.
        generations.update(
            conn, 2, gate=GateVerdict(passed=False, reasons=("R@10 falls",), against=1)
        )
        assert "generation 2 was refused" in home.ok("status")["alarms"][0]
        figures = trainer.recluster().to_json()
        assert (figures["generation"], figures["state"], figures["mode"]) == (
            3,
            "shadow",
            "recluster",
        )
    states = {
        one["id"]: (one["state"], one["dropped"])
        for one in home.ok("generations", "drop", "3")["generations"]
    }
    assert states == {1: ("live", False), 2: ("failed", True), 3: ("failed", True)}
    assert [path.name for path in (home.folder / "generations").iterdir()] == ["g1"]


def test_a_job_whose_trainer_fails_says_why(home: Home, corpus: Path) -> None:
    with open_services(Settings(home=home.folder)) as found, found.connect("test") as conn:
        trainer = CandidateTrainer.on_services(found, conn)
        assert "trained on every image" in str(trainer.recluster().to_json()["why"])
        seed_images(
            conn,
            found.store,
            found.limits,
            read_manifest(corpus / "stream" / "manifest.jsonl")[:1],
            quiet,
        )
        catch_up_first(found, conn)
        for file in (home.folder / "generations" / "g1").glob("*.safetensors"):
            file.write_bytes(b"damaged")
        with pytest.raises(WorkFailedError, match=r"exit code 2: .*cannot be read"):
            trainer.recluster()
