"""Retraining: the trainer's command line, and the error that its log ends with."""

from pathlib import Path

from ops.jobs.retraining import encoder_of, last_error, trainer_command
from schemas.training_record import KEPT_ENCODER, TrainingRecord


def test_several_processes_are_started_by_torchs_own_launcher() -> None:
    alone = trainer_command(1, ["--refresh"])
    four = trainer_command(4, ["--refresh"])
    assert "torch.distributed.run" not in alone
    assert four[four.index("--nproc-per-node") + 1] == "4"
    assert alone[-4:] == four[-4:] == ["train", "--refresh", "--stop-with-parent", "--json"]
    assert alone[:3] == four[:3] == ["nice", "-n", "10"]


def test_the_newest_message_of_the_command_line_is_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "retrain.log"
    log.write_text("sigma: an older run failed\nloading\nsigma: no room\nTraceback\n")
    assert last_error(log) == "no room"
    log.write_text("killed\n")
    assert last_error(log) == "it left no message"


def test_a_training_in_full_asks_for_the_encoder_of_the_live_generation(tmp_path: Path) -> None:
    kept = tmp_path / KEPT_ENCODER
    kept.mkdir()
    there = tmp_path / "there"
    there.mkdir()
    sources = {
        None: None,
        # It learns from captions, so it is opened anew.
        "efficientnet-minilm": "efficientnet-minilm",
        str(there): str(there),
        # Neither a hub nor a folder that is gone is needed.
        "google/siglip2-base-patch16-256@abc": str(kept),
        str(tmp_path / "gone"): str(kept),
    }
    for source, asked in sources.items():
        assert encoder_of(TrainingRecord(encoder_source=source), tmp_path) == asked
