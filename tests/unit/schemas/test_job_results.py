"""What jobs record is read again as it was written; what cannot be understood is left out."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from schemas.generation_config import GateVerdict
from schemas.job_results import (
    CodeShares,
    CohortRecall,
    DriftCalibration,
    DriftReportResult,
    DriftReportSkipped,
    JobFailure,
    LeafLoads,
    MonitorReading,
    RecallProbeResult,
    RecallProbeSkipped,
    skip_reason,
)
from schemas.maintenance_results import (
    CandidateResult,
    CandidateSkipped,
    GateResult,
    GateSkipped,
    PruneResult,
)
from schemas.training_record import TrainingRecord

RECALLS = {"R@1": 0.5, "R@5": 0.8, "R@10": 0.9}
EXACT = {"R@1": 0.6, "R@5": 0.9, "R@10": 1.0}
COHORT = CohortRecall(40, RECALLS, EXACT, (0.77, 0.96))
READING = MonitorReading("id1", 0.3, 0.2, 1e-9, 1e-5, alarm=True)
PROBE = RecallProbeResult(3, {"hour": COHORT, "trained": COHORT}, 41.5)
DRIFT = DriftReportResult(
    generation=2,
    images=1000,
    monitors=(READING,),
    first_key=7,
    last_key=1900,
    histograms={"id1": CodeShares((0.25, 0.75), (0.5, 0.5))},
    leaf=LeafLoads(0.4, 31.0, 60),
    suffix_pressure=0.02,
    tickets=1,
)


def stored(document: dict[str, object]) -> dict[str, Any]:
    """A document as it comes back from the database."""
    loaded: dict[str, Any] = json.loads(json.dumps(document))
    return loaded


def test_a_recall_probe_is_read_as_it_was_written() -> None:
    document = stored(PROBE.to_json())
    assert document["queries"] == 80
    assert document["cohorts"]["hour"] == {
        "queries": 40,
        "ours": RECALLS,
        "exact_dense": EXACT,
        "ours_R@10_95%": [0.77, 0.96],
    }
    assert RecallProbeResult.from_json(document) == PROBE
    assert RecallProbeSkipped.from_json(document) is None


def test_a_drift_report_is_read_as_it_was_written() -> None:
    document = stored(DRIFT.to_json())
    assert document["monitors"][0]["name"] == "id1"
    assert document["leaf"] == {"gini": 0.4, "p99": 31.0, "max": 60}
    assert DriftReportResult.from_json(document) == DRIFT
    assert DRIFT.alarming == {"id1"}


def test_runs_that_had_nothing_to_do_say_why_under_the_keys_of_their_job() -> None:
    calibration = DriftCalibration(("id1", "embedding"), (90, 100))
    calibrated = DriftReportSkipped(1, "calibrated on 200 images", calibration)
    assert stored(calibrated.to_json()) == {
        "generation": 1,
        "images": 0,
        "monitors": [],
        "pages": 0,
        "tickets": 0,
        "why": "calibrated on 200 images",
        "watched": ["id1", "embedding"],
        "recall": [90, 100],
    }
    assert DriftReportSkipped.from_json(stored(calibrated.to_json())) == calibrated
    assert DriftReportResult.from_json(calibrated.to_json()) is None
    assert RecallProbeSkipped("idle").to_json() == {"queries": 0, "why": "idle"}
    assert RecallProbeResult.from_json({"queries": 0, "why": "idle"}) is None
    assert GateSkipped("idle").to_json() == {"judged": {}, "why": "idle"}
    assert GateSkipped.from_json({"judged": {}, "why": "idle"}) == GateSkipped("idle")
    assert CandidateSkipped("idle").to_json() == {"generation": None, "why": "idle"}
    assert CandidateSkipped.from_json({"generation": None, "why": "idle"}) == CandidateSkipped(
        "idle"
    )
    assert skip_reason(calibrated.to_json()) == "calibrated on 200 images"
    assert skip_reason({"why": ""}) is None


def test_the_results_of_the_other_jobs_are_read_as_they_were_written() -> None:
    verdict = GateVerdict(passed=True, against=1, missing=0)
    gate = GateResult({4: verdict}, promoted=4, fallback_caught_up=3)
    assert gate.to_json() == {
        "judged": {"4": verdict.to_json()},
        "promoted": 4,
        "way_back_caught_up": 3,
    }
    assert GateResult.from_json(stored(gate.to_json())) == gate
    training = TrainingRecord(mode="refresh", parent=1, images=36, stages=("codebook",))
    made = CandidateResult(5, "shadow", replace(training, seed=3, corpus="store"), resumed=True)
    assert made.to_json() == {
        "generation": 5,
        "state": "shadow",
        "mode": "refresh",
        "parent": 1,
        "images": 36,
        "stages": ["codebook"],
        "resumed": True,
    }
    made = replace(made, training=training, failure=("loss rises",))
    assert CandidateResult.from_json(stored(made.to_json())) == made
    waiting = CandidateSkipped("waits for its gate", CandidateResult(5, "shadow", training))
    assert CandidateSkipped.from_json(stored(waiting.to_json())) == waiting
    pruned = PruneResult(7, (2, 3), {"sigma.images.arrived": 4})
    assert pruned.to_json() == {
        "shadow_query": 7,
        "generations": [2, 3],
        "sigma.images.arrived": 4,
    }
    assert PruneResult.from_json(stored(pruned.to_json())) == pruned
    assert JobFailure.from_json(JobFailure("no room").to_json()) == JobFailure("no room")
    assert JobFailure.from_json({}) is None


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"error": "its process died"},
        {"generation": 1, "cohorts": [], "monitors": {}, "judged": [], "shadow_query": "3"},
        {"generation": "1", "cohorts": {"hour": COHORT.to_json()}, "monitors": [5, None]},
        {"generation": True, "cohorts": {"hour": None}, "monitors": [READING.to_json()]},
        {"generation": -1, "cohorts": {"hour": COHORT.to_json() | {"ours": {"R@1": "high"}}}},
        {"generation": 5, "state": "shadow", "evaluations": [1]},
    ],
)
def test_what_cannot_be_understood_is_none_and_never_a_crash(figures: dict[str, Any]) -> None:
    readers = (RecallProbeResult, DriftReportResult, GateResult, CandidateResult, PruneResult)
    assert [reader.from_json(figures) for reader in readers] == [None] * len(readers)


def test_parts_that_cannot_be_understood_are_left_out() -> None:
    probe = RecallProbeResult.from_json(
        {
            "generation": 3,
            "candidates": math.nan,
            "cohorts": {
                "trained": COHORT.to_json() | {"ours_R@10_95%": [0.1]},
                "hour": COHORT.to_json() | {"ours": RECALLS | {"R@10": 1.2}},
                "day": {"queries": -1},
                "new": COHORT.to_json(),
            },
        }
    )
    assert probe is not None
    assert list(probe.cohorts) == ["hour", "trained"]
    assert probe.cohorts["hour"].ours["R@10"] == 1.0
    assert probe.cohorts["trained"].interval is None
    assert probe.candidates is None
    drift = DriftReportResult.from_json(
        {
            "generation": 2,
            "monitors": [READING.to_json(), READING.to_json() | {"effect": None}, "id2"],
            "histograms": {
                "id1": {"then": [1, 3], "now": [2, 2]},
                "id2": {"then": [1], "now": [1, 2]},
                "id3": None,
                "id4": {"then": [0], "now": [0]},
            },
            "leaf": {"gini": 0.5, "p99": "many"},
        }
    )
    assert drift is not None
    assert (drift.monitors, drift.images, drift.suffix_pressure) == ((READING,), 0, None)
    assert drift.histograms == {"id1": CodeShares((0.25, 0.75), (0.5, 0.5))}
    assert drift.leaf == LeafLoads(0.5)
    gate = GateResult.from_json({"judged": {"2": {"probes": {"hour": {}}}, "3": None, "new": {}}})
    assert gate == GateResult({}, promoted=None, fallback_caught_up=0)


def test_shares_that_moved_and_effects_beside_their_limits() -> None:
    assert CodeShares((0.25, 0.75), (0.5, 0.5)).moved == pytest.approx(0.25)
    assert READING.ratio == pytest.approx(1.5)
    assert MonitorReading("m", 0.1, 0.0, None, None, alarm=False).ratio == math.inf
    assert MonitorReading("m", 0.0, 0.0, None, None, alarm=False).ratio == 0
