"""The paper's three models from folders: model, encoder and teacher of the real classes.

Miniatures of their shapes; the numbers come from a profile file, as a person would write one.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.network.checkpoint import load_checkpoint
from model.network.encoders.pretrained import PretrainedEncoder
from model.network.profile_document import profile_document, read_profile
from model.network.reranker import RerankerTeacher
from model.progress import quiet
from ops.cli.main import parser
from ops.cli.train import check, training_request
from ops.evaluation import evaluate
from ops.jobs.retraining import CandidateTrainer, TrainerProcess
from schemas.errors import RefuseToStartError, WorkFailedError
from schemas.records import ManifestEntry
from tests import vl_checkpoints
from tests.integration.small_training import LENIENT, fill, tiny_services
from tests.unit.model.conftest import TEXTS
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.query.loading import live_generation, open_searcher
from workers.repository import generations
from workers.repository.connection import Connection
from workers.runtime.services import Services
from workers.trainer.request import TrainRequest
from workers.trainer.trainer import TrainResult, train

SEEN, LATER = 12, 4

PROFILE = """
base = "qwen-3b"
name = "miniature"
max_pixels = 19600

[shape]
codes = [4, 3, 3, 2]
suffixes = 8

[stages.memorize]
epochs = 1
batch = 8

[stages.comprehend]
epochs = 1
batch = 8
rounds = 1

[stages.align]
epochs = 1
batch = 8

[refresh.memorize]
epochs = 1

[refresh.comprehend]
epochs = 1
rounds = 1

[refresh.align]
epochs = 1
"""


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """The three folders and the profile's file."""
    root = tmp_path / "sources"
    file = root / "miniature.toml"
    folders = {
        "model": vl_checkpoints.qwen(root / "model"),
        "encoder": vl_checkpoints.jina_v4(root / "encoder"),
        "teacher": vl_checkpoints.reranker(root / "teacher"),
    }
    file.write_text(PROFILE, encoding="utf-8")
    return folders | {"profile": file}


def asked(sources: dict[str, Path], *more: str) -> TrainRequest:
    """The request of `sigma train` with those options, with gates that random pictures pass."""
    arguments = ["train", *more]
    for name, source in sources.items():
        arguments += [f"--{name}", str(source)]
    options = parser().parse_args(arguments)
    check(options)
    return replace(training_request(options), gates=LENIENT)


def catch_up(services: Services, conn: Connection) -> None:
    """Assign what has arrived to the live generation."""
    load = assigner_loader(services.checkpoints, services.settings.retrieval)
    CatchUp(conn, live_generation(conn), services.store, load).run()


def offline(services: Services, database: str, *arguments: str) -> str:
    """The output of a command whose hub is out of reach and whose cache is empty."""
    empty = services.home / "empty"
    empty.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {
        "SIGMA_HOME": str(services.home),
        "SIGMA_DATABASE_URL": database,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(empty),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ops.cli", *arguments],
        env=kept | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not any(empty.rglob("*.safetensors"))
    return done.stdout


def evaluated(services: Services, conn: Connection) -> None:
    searcher = open_searcher(services, live_generation(conn))
    entries = []
    for number in range(SEEN + LATER):
        entries.append(
            ManifestEntry(
                image_id=f"image {number:03}", path="/nowhere", test_captions=(TEXTS[number % 4],)
            )
        )
    evaluation = evaluate(searcher, conn, entries, limit=None, seed=0)
    searcher.close()
    assert evaluation.gallery == SEEN + LATER
    assert evaluation.invalid_identifiers == 0


def test_three_folders_make_a_generation_that_goes_on_without_them(
    tmp_path: Path, database: str, conn: Connection, sources: dict[str, Path]
) -> None:
    services = tiny_services(tmp_path / "home", database)
    fill(services, conn, SEEN)
    first = train(services, None, asked(sources, "--from-store"), quiet)
    assert first.state == "live"
    assert first.record.encoder_source == str(sources["encoder"])
    # The model sees 140 x 140 pixels, more than the 112 x 112 of the encoder.
    assert first.record.encoder_px == 140
    _assert_recorded(first, services, sources)

    # From here on model and encoder are those of the generation's folder.
    shutil.rmtree(sources["model"])
    shutil.rmtree(sources["encoder"])
    fill(services, conn, LATER, first=SEEN)
    catch_up(services, conn)
    answer = json.loads(offline(services, database, "query", TEXTS[0], "--json"))
    assert len(answer["results"]) == 10
    explained = json.loads(offline(services, database, "explain", "image 000", "--json"))
    assert explained["caption"]
    evaluated(services, conn)

    refresh = TrainRequest(mode="refresh", gates=LENIENT)
    refreshed = train(services, None, refresh, quiet)
    assert (refreshed.state, refreshed.record.profile) == ("shadow", "miniature")
    _assert_recorded(refreshed, services, sources)
    # A query worker holds both.
    candidate = live_generation(conn, refreshed.generation)
    with (
        closing(open_searcher(services, live_generation(conn))) as live,
        closing(open_searcher(services, candidate)) as shadow,
    ):
        assert live.engine.encoder is shadow.engine.encoder


def _assert_recorded(result: TrainResult, services: Services, sources: dict[str, Path]) -> None:
    """Every number is in the record and in the checkpoint, with where the weights came from."""
    file = sources["profile"]
    expected = profile_document(
        replace(
            read_profile(str(file)), model=str(sources["model"]), teacher=str(sources["teacher"])
        )
    )
    assert result.record.profile_numbers == expected
    folder = services.checkpoints / f"g{result.generation}"
    assert json.loads((folder / "checkpoint.json").read_text())["profile_numbers"] == expected
    loaded = load_checkpoint(folder)
    assert profile_document(loaded.sigma.profile) == expected
    assert isinstance(loaded.encoder, PretrainedEncoder)
    assert loaded.encoder.width == 48
    # The picture processor has the bounds of the profile.
    processor = json.loads((folder / "processor" / "preprocessor_config.json").read_text())
    assert processor["size"]["longest_edge"] == 19600
    assert loaded.sigma.preprocessor.side_px == 140


def test_the_teacher_gives_the_soft_labels_of_a_training(
    tmp_path: Path,
    database: str,
    conn: Connection,
    sources: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels: list[np.ndarray] = []
    score = RerankerTeacher.score

    def noted(*given: object) -> np.ndarray:
        labels.append(score(*given))  # type: ignore[arg-type]
        return labels[-1]

    monkeypatch.setattr(RerankerTeacher, "score", noted)
    services = tiny_services(tmp_path / "home", database)
    fill(services, conn, SEEN)
    train(services, None, asked(sources, "--from-store", "--stage", "comprehend"), quiet)
    # Only alignment needs it.
    assert not labels
    train(services, None, asked({}, "--resume"), quiet)
    assert np.concatenate(labels).std() > 0


@pytest.mark.parametrize(
    ("role", "wrong", "sentence"),
    [
        ("model", "teacher", "must hold a model of type qwen2_5_vl, got one of type qwen2_vl"),
        ("encoder", "teacher", "got qwen2_vl; see docs"),
        ("teacher", "model", "must hold a model of type qwen2_vl, got one of type qwen2_5_vl"),
    ],
)
def test_a_folder_of_another_kind_is_refused_before_any_picture_is_read(
    tmp_path: Path,
    database: str,
    conn: Connection,
    sources: dict[str, Path],
    role: str,
    wrong: str,
    sentence: str,
) -> None:
    services = tiny_services(tmp_path / "home", database)
    fill(services, conn, SEEN)
    shutil.rmtree(services.home / "images", ignore_errors=True)
    with pytest.raises(RefuseToStartError, match=sentence):
        train(services, None, asked(sources | {role: sources[wrong]}, "--from-store"), quiet)
    (generation,) = generations.generations(conn)
    assert generation.state == "failed"


def test_a_training_that_is_resumed_has_the_numbers_that_it_began_with(
    tmp_path: Path, database: str, conn: Connection, sources: dict[str, Path]
) -> None:
    services = tiny_services(tmp_path / "home", database)
    fill(services, conn, SEEN)
    begun = asked(sources, "--from-store", "--stage", "codebook")
    assert train(services, None, begun, quiet).state == "building"
    sources["profile"].write_text("no profile any more")
    shutil.rmtree(sources["model"])
    resumed = train(services, None, asked({}, "--resume"), quiet)
    assert (resumed.state, resumed.record.profile) == ("live", "miniature")
    assert begun.profile is not None
    assert resumed.record.profile_numbers == profile_document(begun.profile)


def test_a_retraining_in_full_beside_a_generation_of_a_file_makes_one_of_the_same_kind(
    tmp_path: Path, database: str, conn: Connection, sources: dict[str, Path]
) -> None:
    services = tiny_services(tmp_path / "home", database)
    fill(services, conn, SEEN)
    begun = asked(sources, "--from-store")
    train(services, None, begun, quiet)
    sources["profile"].unlink()
    asked_for: list[Sequence[str]] = []

    class Noting(TrainerProcess):
        def run(self, arguments: Sequence[str], log: Path) -> int:
            asked_for.append(arguments)
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("")
            return 1

    process = Noting(services.home, database, 1)
    job = CandidateTrainer(conn, process, services.checkpoints, lambda number: None)
    with pytest.raises(WorkFailedError, match="exit code 1"):
        job.retrain(replace(services.settings, retrain="full"))
    (arguments,) = asked_for
    options = parser().parse_args(["train", *arguments])
    check(options)
    made = training_request(options)
    assert (made.mode, made.encoder) == ("full", str(sources["encoder"]))
    assert made.profile == begun.profile
