"""Run files of the study, its configuration and its folders."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from ops.cli.measure import STUDY_OUT, STUDY_RESULTS, StudyFolders, study_folders
from ops.study.streams import StreamConfig
from ops.study.study_config import StudyConfig
from ops.study.study_runs import (
    MEASURES,
    BackwardTransfer,
    PolicyRun,
    SessionResult,
    Upkeep,
    read_runs,
    run_file,
    write_run,
)
from schemas.errors import UsageError
from schemas.settings import Settings

STORED_RUNS = sorted((Path(__file__).parents[4] / STUDY_RESULTS / "runs").glob("*.json"))


def example_run() -> PolicyRun:
    recall = {"R@1": 0.5, "R@5": 0.75, "R@10": 1.0}
    session = SessionResult(
        session=1,
        later_share=0.6,
        images=30,
        recall=dict.fromkeys(MEASURES, recall),
        upkeep=Upkeep("refresh", cpu_s=1.5, moved=0.25, alarms=("novelty",)),
    )
    return PolicyRun(
        policy="drift",
        stream="abrupt",
        seed=2,
        config=StreamConfig("abrupt", seed=2),
        beams=20,
        sessions=(session,),
        backward_transfer=BackwardTransfer(ours=-0.01, dense=0.0),
    )


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_run(tmp_path, example_run())
    assert read_runs(tmp_path) == [example_run()]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["abrupt-2-drift.json"]


def test_the_stored_runs_of_the_study_are_read_without_a_loss() -> None:
    assert len(STORED_RUNS) == 45
    for path in STORED_RUNS:
        document = json.loads(path.read_text(encoding="utf-8"))
        assert PolicyRun.from_json(document).to_json() == document, path.name


def test_a_run_with_settings_of_another_version_is_read(tmp_path: Path) -> None:
    document = example_run().to_json()
    document["config"]["weather"] = "rain"
    path = run_file(tmp_path, "abrupt", 2, "drift")
    path.parent.mkdir()
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_runs(tmp_path) == [example_run()]


@pytest.mark.parametrize("text", ["{", "[]", '{"policy": "drift"}'])
def test_a_file_that_is_no_run_is_named(tmp_path: Path, text: str) -> None:
    path = run_file(tmp_path, "abrupt", 0, "drift")
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"abrupt-0-drift\.json must be a run of the study"):
        read_runs(tmp_path)


def test_a_study_of_unknown_policies_is_refused() -> None:
    with pytest.raises(UsageError, match="never, recluster, periodic, drift, full"):
        StudyConfig(policies=("hope",))


def test_a_study_has_a_stream_of_each_kind_and_seed() -> None:
    config = StudyConfig(seeds=(0, 4), kinds=("abrupt", "gradual"))
    streams = [(stream.kind, stream.seed) for stream in config.streams]
    assert streams == [("abrupt", 0), ("gradual", 0), ("abrupt", 4), ("gradual", 4)]


def test_a_reduced_study_stays_apart_from_the_runs_of_the_whole_one(tmp_path: Path) -> None:
    settings = replace(Settings(), home=tmp_path)
    whole = Namespace(reduced=False, out=None, results=None)
    assert study_folders(whole, settings) == StudyFolders(STUDY_OUT, STUDY_RESULTS)

    reduced = Namespace(reduced=True, out=None, results=None)
    assert study_folders(reduced, settings) == StudyFolders(tmp_path / "study", tmp_path / "study")

    elsewhere = Namespace(reduced=True, out=tmp_path / "out", results=None)
    assert study_folders(elsewhere, settings).results == tmp_path / "out"
