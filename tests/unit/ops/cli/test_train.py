"""`sigma train`: options that contradict each other are refused before anything starts."""

import json
import re
from dataclasses import replace

import pytest

from model.network.base import SHIPPED
from model.network.profiles import profile
from ops.cli.main import main, parser
from ops.cli.train import check, summary, training_request
from schemas.errors import UsageError
from schemas.training_record import ReclusterRecord, TrainingRecord
from tests.doc_blocks import blocks
from workers.trainer.seeding import RejectedEntry
from workers.trainer.trainer import TrainResult


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], "name what to train on"),
        (["--manifest", "m", "--from-store"], "exclude each other"),
        (["--manifest", "m", "--refresh"], "exclude each other"),
        (["--from-store", "--recluster"], "exclude each other"),
        (["--refresh", "--adapt", "never"], "base weights"),
        (["--recluster", "--base", "b"], "base weights"),
        (["--recluster", "--stage", "align"], "runs no stage"),
        (["--refresh", "--expect", "50000"], "shape of identifiers"),
        (["--resume", "--expect", "50000"], "shape of identifiers"),
        (["--resume", "--captioner", "c"], "a training that begins"),
        (["--recluster", "--captioner", "c"], "a training that begins"),
        (["--refresh", "--model", "m"], "what a generation is made of"),
        (["--resume", "--teacher", "t"], "what a generation is made of"),
        (["--from-store", "--profile", "tiny", "--model", "m"], "--model needs a profile that"),
        (["--from-store", "--profile", "small", "--teacher", "t"], "--teacher needs a profile"),
        (["--refresh", "--query-head"], "what a generation is made of"),
        (["--from-store", "--profile", "huge"], "one of tiny, small, qwen-3b, qwen-7b or a file"),
        (["--from-store", "--profile", "huge.toml"], "huge.toml cannot be read"),
    ],
)
def test_contradictions_are_refused_in_one_line(arguments: list[str], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        check(parser().parse_args(["train", *arguments]))


def test_a_model_that_is_named_is_trained_with_the_papers_numbers() -> None:
    options = parser().parse_args(["train", "--from-store", "--model", "/m", "--teacher", "o/t@1"])
    check(options)
    expected = replace(profile("qwen-3b"), model="/m", teacher="o/t@1")
    assert training_request(options).profile == expected
    larger = ["train", "--from-store", "--model", "/m", "--profile", "qwen-7b"]
    named = training_request(parser().parse_args(larger)).profile
    assert named == replace(profile("qwen-7b"), model="/m")
    assert training_request(parser().parse_args(["train", "--from-store"])).profile is None


def test_a_query_head_is_added_to_the_profile_that_is_named_or_to_tiny() -> None:
    options = ["train", "--from-store", "--query-head"]
    own = training_request(parser().parse_args(options)).profile
    assert own == replace(profile("tiny"), query_head=True)
    named = training_request(parser().parse_args([*options, "--profile", "qwen-7b"])).profile
    assert named == replace(profile("qwen-7b"), query_head=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--manifest", "m"],
        ["--from-store"],
        ["--from-store", "--expect", "50000"],
        ["--refresh"],
        ["--recluster"],
        ["--refresh", "--recluster", "--stage", "memorize"],
        ["--resume"],
    ],
)
def test_what_belongs_together_is_accepted(arguments: list[str]) -> None:
    check(parser().parse_args(["train", *arguments]))


@pytest.mark.parametrize(
    ("arguments", "mode", "recluster", "until"),
    [
        (["--manifest", "m"], "full", False, "align"),
        (["--from-store", "--stage", "memorize"], "full", False, "memorize"),
        (["--refresh"], "refresh", False, "align"),
        (["--refresh", "--recluster"], "refresh", True, "align"),
        (["--recluster"], "recluster", False, "align"),
        (["--resume"], None, False, "align"),
    ],
)
def test_options_name_the_mode_of_the_request(
    arguments: list[str], mode: str | None, recluster: bool, until: str
) -> None:
    request = training_request(parser().parse_args(["train", *arguments]))
    assert (request.mode, request.recluster, request.until) == (mode, recluster, until)
    assert request.base == SHIPPED


def test_an_encoder_on_the_command_line_goes_before_that_of_the_settings() -> None:
    named = parser().parse_args(["train", "--manifest", "m", "--encoder", "/models/clip"])
    unnamed = parser().parse_args(["train", "--manifest", "m"])
    assert training_request(named, "owner/name@1").encoder == "/models/clip"
    assert training_request(unnamed, "owner/name@1").encoder == "owner/name@1"
    assert training_request(unnamed).encoder is None


@pytest.mark.parametrize("kept", ["--refresh", "--recluster", "--resume"])
def test_an_encoder_is_refused_where_that_of_the_generation_is_kept(kept: str) -> None:
    with pytest.raises(UsageError, match="--encoder chooses the encoder of a generation"):
        check(parser().parse_args(["train", kept, "--encoder", "/models/clip"]))


@pytest.mark.parametrize(
    ("state", "next_step"),
    [
        ("building", "go on with --resume"),
        ("shadow", "sigma generations promote 4"),
        ("live", "it answers queries"),
    ],
)
def test_the_summary_names_the_next_step(state: str, next_step: str) -> None:
    result = TrainResult(4, state, TrainingRecord(mode="refresh", images=1200))
    assert summary(result).startswith(f"generation 4 is {state}, trained on 1,200 images; ")
    assert summary(result).endswith(next_step)


def test_the_summary_of_a_re_clustering_counts_moves_and_lists_what_was_left_out() -> None:
    record = TrainingRecord(mode="recluster", images=40, recluster=ReclusterRecord(40, 3))
    rejected = (RejectedEntry("a.png", "too small"),)
    lines = summary(TrainResult(2, "shadow", record, rejected)).splitlines()
    assert "3 of 40 images have moved" in lines[0]
    assert lines[1:] == ["left out a.png: too small"]


def test_the_document_of_a_training_has_its_keys_even_where_nothing_is_recorded() -> None:
    document = TrainResult(1, "live", TrainingRecord(mode="full", images=3)).to_json()
    assert document == {
        "generation": 1,
        "state": "live",
        "images": 3,
        "rejected": [],
        "figures": {
            "mode": "full",
            "parent": None,
            "evaluations": None,
            "relevance": None,
            "recluster": None,
            "seconds": None,
            "cpu_seconds": None,
        },
    }


def test_the_dry_run_of_the_page_about_gpus_prints_the_row_of_its_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = re.findall(r"^\$ sigma (.*)$", *blocks("docs/gpu.md", "console"), re.MULTILINE)
    (command,) = commands
    assert main(command.split()) == 0
    assert "4 x a6000, 113,287 images, 566,747 captions" in capsys.readouterr().out


def test_a_dry_run_prints_what_it_computes_and_loads_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["train", "--json", "--dry-run", "--images", "1000", "--captions", "5000"]
    assert main([*arguments, "--profile", "qwen-3b", "--gpu", "a6000", "--gpus", "4"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["computed"] is True
    steps = {stage["name"]: stage["steps"] for stage in document["stages"]}
    # 5 epochs of 1,000 images in batches of 64.
    assert steps["memorize"] == 5 * 16
    memory = document["stages"][0]["memory"]
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")
    assert document["between"].keys() == {"weights", "encoder", "teacher", "total"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run"], "needs either --manifest F or --images N"),
        (["--dry-run", "--images", "5", "--manifest", "m"], "needs either"),
        (["--dry-run", "--images", "0"], "must be 1 or more"),
        (["--dry-run", "--images", "5", "--gpu", "h900"], "gpu must be one of"),
        (["--dry-run", "--images", "5", "--gpus", "1"], "it fits with --gpus 2"),
    ],
)
def test_a_dry_run_refuses_what_it_cannot_compute_or_what_cannot_fit(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    assert said in capsys.readouterr().err
