"""Generation configurations and training records: the same keys on disk, older ones read."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.generation_config import (
    CohortComparison,
    GateVerdict,
    GenerationConfig,
    config_changes,
)
from schemas.relevance import RelevanceCalibration
from schemas.training_record import ReclusterRecord, StageEvaluation, TrainingRecord

RECORD: dict[str, Any] = {
    "mode": "refresh",
    "parent": 3,
    "profile": "tiny",
    "seed": 7,
    "corpus": "store",
    "reclustered": True,
    "stages": ["codebook", "memorize"],
    "images": 36,
    "evaluations": {"memorize": {"samples": 32.0, "id1": 0.5, "training_loss": 1.25}},
    "recluster": {"kept": [1.0, 0.5], "images": 40, "moved": 4},
    "seconds": {"prepare": 1.5},
    "cpu_seconds": {"prepare": 1.25},
}

VERDICT: dict[str, Any] = {
    "passed": False,
    "reasons": ["R@10 of day falls"],
    "against": 1,
    "probes": {
        "day": {
            "queries": 40,
            "live_R@10": 0.9,
            "candidate_R@10": 0.5,
            "loss": 0.4,
            "loss_limit": 0.05,
        }
    },
    "missing": 0,
    "latency_ratio": None,
    "shadow_queries": 12,
    "shadow": {"queries": 12},
    "candidates": {"live": 30.0, "candidate": 31.0},
    "captions": {"live": 0.95, "candidate": 0.93},
    "checked_at": "2026-11-02T03:04:05+00:00",
}


@pytest.mark.parametrize(
    "stored",
    [
        RECORD,
        {"mode": "full", "parent": None, "stages": []},
        {"stages": ["codebook"], "key of a later version": {"a": [1]}},
    ],
)
def test_a_training_record_is_written_as_it_was_read(stored: dict[str, Any]) -> None:
    assert TrainingRecord.from_json(stored).to_json() == stored


def test_a_training_record_of_an_early_version_was_a_full_training() -> None:
    record = TrainingRecord.from_json({"manifest": "ab", "images": 3000})
    assert (record.mode, record.mode_or_full, record.stages) == (None, "full", ())
    assert (record.manifest, record.images, record.parent) == ("ab", 3000, None)


def test_the_parts_of_a_training_record_are_typed() -> None:
    record = TrainingRecord.from_json(RECORD)
    assert record.recluster == ReclusterRecord(40, 4, {"kept": [1.0, 0.5]})
    assert record.evaluations == {
        "memorize": StageEvaluation({"samples": 32.0, "id1": 0.5}, training_loss=1.25)
    }


def test_a_record_grows_by_copies_and_time_adds_up() -> None:
    begun = TrainingRecord(mode="full")
    once = begun.with_time("prepare", 1.004, 0.5).with_stage("codebook")
    twice = once.with_time("prepare", 2.0, 0.25).with_evaluation("align", StageEvaluation({}))
    assert (begun.stages, begun.seconds, begun.evaluations) == ((), {}, {})
    assert (once.stages, once.seconds) == (("codebook",), {"prepare": 1.0})
    assert (twice.seconds, twice.cpu_seconds) == ({"prepare": 3.0}, {"prepare": 0.75})
    assert twice.evaluations == {"align": StageEvaluation({})}


CALIBRATION = RelevanceCalibration(20.5, -10.25, 100, 150, 0.95, 0.97)


def test_a_calibration_is_in_the_record_and_in_the_row() -> None:
    record = TrainingRecord(mode="full", relevance=CALIBRATION)
    assert TrainingRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert config_changes(training=record)["relevance"] == CALIBRATION.to_json()
    assert "relevance" not in TrainingRecord(mode="full").to_json()


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "0.5",
        [1, 2],
        {},
        CALIBRATION.to_json() | {"slope": "steep"},
        CALIBRATION.to_json() | {"slope": -1.0},
        CALIBRATION.to_json() | {"slope": float("inf")},
        CALIBRATION.to_json() | {"offset": float("nan")},
    ],
)
def test_a_calibration_that_makes_no_sense_is_none(stored: object) -> None:
    assert TrainingRecord.from_json({"mode": "full", "relevance": stored}).relevance is None


@pytest.mark.parametrize(
    "stored",
    [
        RECORD,
        RECORD | {"gate": VERDICT},
        RECORD | {"gate": VERDICT | {"key of a later version": 1}},
        RECORD | {"failure": ["loss is inf"], "dropped_at": "2026-11-02T03:04:05.000006+00:00"},
    ],
)
def test_a_configuration_is_written_as_it_was_read(stored: dict[str, Any]) -> None:
    assert GenerationConfig.from_json(stored).to_json() == stored


def test_a_verdict_of_an_early_version_is_read() -> None:
    few = {"queries": 4, "live_R@10": 0.5, "candidate_R@10": 0.75}
    stored = {"gate": {"passed": True, "reasons": [], "against": 1, "probes": {"hour": few}}}
    gate = GenerationConfig.from_json(stored).gate
    assert gate == GateVerdict(True, against=1, cohorts={"hour": CohortComparison(4, 0.5, 0.75)})
    assert gate.to_json() == stored["gate"]
    assert GenerationConfig.from_json({"gate": {}}).gate is None


@pytest.mark.parametrize("gate", [None, {}, [], "passed", 1])
def test_a_verdict_that_is_none_is_left_out(gate: object) -> None:
    assert GenerationConfig.from_json({"gate": gate}).gate is None


def test_parts_of_a_verdict_that_cannot_be_understood_are_left_out() -> None:
    good = {"queries": 4, "live_R@10": 0.5, "candidate_R@10": 0.75}
    cohorts = {
        "hour": good,
        "day": {},
        "week": None,
        "older": good | {"queries": "4"},
        "trained": good | {"live_R@10": float("nan")},
    }
    gate = GateVerdict.from_json({"passed": "yes", "reasons": "no", "probes": cohorts})
    assert gate == GateVerdict(False, cohorts={"hour": CohortComparison(4, 0.5, 0.75)})
    assert GateVerdict.from_json({"passed": True, "probes": []}) == GateVerdict(True)


def test_changes_name_only_what_is_given() -> None:
    assert config_changes() == {}
    assert config_changes(failure=["a"]) == {"failure": ["a"]}
    assert config_changes(dropped_at=datetime(2026, 1, 1, tzinfo=UTC)) == {
        "dropped_at": "2026-01-01T00:00:00+00:00"
    }
    assert config_changes(gate=GateVerdict.from_json(VERDICT)) == {"gate": VERDICT}


def test_a_training_changes_its_row_but_not_what_it_was_begun_with() -> None:
    changes = config_changes(training=TrainingRecord.from_json(RECORD | {"manifest": "ab"}))
    begun = {"profile", "corpus", "reclustered", "manifest"}
    assert changes.keys() == RECORD.keys() - begun
