"""Reports from a real database: empty, recorded for two weeks, and with jobs that had no work."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from model.drift.monitors import REFERENCE_IMAGES
from ops.bench.stub import stub_generation
from ops.report.documents import drift_report, recall_report
from ops.report.drift_page import drift_page
from ops.report.generation_comparison import GenerationComparison
from ops.report.recall_page import recall_page
from ops.report.text_report import drift_summary, recall_summary
from schemas.job_results import (
    CohortRecall,
    DriftReportResult,
    DriftReportSkipped,
    JobResult,
    MonitorReading,
    RecallProbeResult,
)
from stream.images.store import LocalImageStore
from tests.recorded import DAYS, EVERY, HOSTILE, MONITORS, SHAPE, record
from tests.stubs import accepted, leave_in
from workers.repository import job_runs
from workers.repository.connection import Connection
from workers.repository.generations import create_generation, promote, set_state
from workers.repository.history import newest_done

NOW = datetime.now(UTC)
ALONE = GenerationComparison(why="Only one generation can answer.")


def record_run(conn: Connection, job: str, result: JobResult, age: timedelta = timedelta()) -> None:
    number = job_runs.begin_manual_run(conn, job)
    job_runs.end_run(conn, number, "done", result.to_json())
    conn.execute(
        "UPDATE job_run SET started_at = %s, ended_at = %s WHERE id = %s",
        (NOW - age, NOW - age, number),
    )


def make_live(conn: Connection) -> int:
    number = create_generation(conn, SHAPE)
    set_state(conn, number, "shadow")
    promote(conn, number)
    return number


def test_an_empty_database_makes_pages_that_say_what_is_missing_and_what_makes_it(
    conn: Connection,
) -> None:
    recall = recall_report(conn, ALONE, NOW, 30)
    drift = drift_report(conn, NOW, 30)
    for page in (recall_page(recall, {}, "again"), drift_page(drift, "again")):
        assert "<code>sigma train --manifest F --promote</code>" in page
        assert "<svg" not in page
    assert "MISSING" in recall_summary(recall)
    (missing,) = json.loads(json.dumps(drift.to_dict()))["missing"]
    assert missing["command"].startswith("sigma train")
    make_live(conn)
    page = recall_page(recall_report(conn, ALONE, NOW, 30), {}, "again")
    assert "<code>sigma jobs run recall-probe</code>" in page
    assert "sigma jobs run drift-report" in drift_summary(drift_report(conn, NOW, 30))


def test_before_the_first_check_arrivals_are_counted_and_compared_with_what_was_there(
    conn: Connection, tmp_path: Path
) -> None:
    live = stub_generation(conn)
    store = LocalImageStore(tmp_path)
    leave_in(conn, live, accepted(store, [f"trained {number}" for number in range(30)]))
    conn.execute("UPDATE image_embedding SET trained = true")
    empty = drift_report(conn, NOW, 30).early
    assert empty is not None
    assert (empty.arrived, empty.has_reference, empty.elsewhere) == (0, False, None)
    leave_in(conn, live, accepted(store, [f"arrived {number}" for number in range(12)]))
    found = json.loads(json.dumps(recall_report(conn, ALONE, NOW, 30).to_dict()))["known_items"]
    assert found
    for example in found:
        # The caption of the stub's images.
        assert example["query"] == f"picture {example['image_id']}"
        assert example["cohort"] == ("trained" if "trained" in example["image_id"] else "hour")
    report = drift_report(conn, NOW, 30)
    early = report.early
    assert early is not None
    assert (early.arrived, early.wanted) == (12, REFERENCE_IMAGES)
    assert sum(code.arrivals for code in early.first_codes) == 12
    assert sum(code.images for code in early.first_codes) == 42
    before = Counter({code.code: code.images - code.arrivals for code in early.first_codes})
    gaps = [abs(code.arrivals / 12 - before[code.code] / 30) for code in early.first_codes]
    assert early.elsewhere == pytest.approx(sum(gaps) / 2)
    assert 0 < early.elsewhere < 1
    said = f"12 of the {REFERENCE_IMAGES:,} arrivals"
    assert said in drift_page(report, "again")
    assert said in drift_summary(report)
    assert json.loads(json.dumps(report.to_dict()))["early"]["arrived"] == 12
    # Once there is a check, it speaks.
    reading = MonitorReading(MONITORS[0], 0.1, 1.0, 0.5, 0.01, alarm=False)
    check = DriftReportResult(live, 1000, (reading,))
    record_run(conn, "drift-report", check)
    assert drift_report(conn, NOW, 30).early is None


def test_a_job_that_had_no_work_says_why(conn: Connection) -> None:
    why = "calibrating: 90 of 1000 have arrived"
    record_run(conn, "drift-report", DriftReportSkipped(make_live(conn), why))
    report = drift_report(conn, NOW, 30)
    assert report.newest is None
    assert why in report.missing[0][0]
    assert newest_done(conn, "drift-report", "monitors") is None


def test_a_scheduler_that_has_stopped_is_noticed_and_old_figures_are_still_shown(
    conn: Connection,
) -> None:
    shares = {"R@1": 0.5, "R@5": 0.75, "R@10": 1.0}
    probe = RecallProbeResult(make_live(conn), {"hour": CohortRecall(4, shares, shares)})
    record_run(conn, "recall-probe", probe, timedelta(days=90))
    report = recall_report(conn, ALONE, NOW, 30)
    assert report.probes == ()
    assert report.newest is not None
    assert "90 days ago" in report.missing[0][0]
    assert "100.0%" in recall_page(report, {}, "again")


@pytest.fixture
def recorded(conn: Connection) -> datetime:
    return record(conn)


def test_the_recall_document_holds_what_was_recorded(conn: Connection, recorded: datetime) -> None:
    recall = json.loads(json.dumps(recall_report(conn, ALONE, recorded, 30).to_dict()))
    assert len(recall["probes"]) == int(timedelta(days=DAYS) / EVERY) + 1
    assert (recall["generation"], recall["missing"]) == (3, [])
    assert recall["newest"] == recall["probes"][-1]
    young = recall["headline"]["younger_than_a_day"]
    cohorts = recall["newest"]["cohorts"]
    hits = sum(cohorts[name]["ours"]["R@10"] * cohorts[name]["queries"] for name in ("hour", "day"))
    assert young["ours"]["R@10"] == pytest.approx(hits / young["queries"])
    assert [switch["generation"] for switch in recall["switches"]] == [1, 3]
    first, second, third = recall["generations"]
    assert (first["id"], first["state"], first["gate"]) == (1, "retired", None)
    assert (second["id"], second["state"], second["gate"]["passed"]) == (2, "failed", False)
    assert (third["id"], third["state"], third["gate"]["passed"]) == (3, "live", True)


def test_the_drift_document_holds_what_was_recorded(conn: Connection, recorded: datetime) -> None:
    drift = json.loads(json.dumps(drift_report(conn, recorded, 30).to_dict()))
    assert len(drift["looks"]) == int(timedelta(days=DAYS) / EVERY) + 1
    assert [monitor["name"] for monitor in drift["newest"]["monitors"]] == list(MONITORS)
    codes = [len(drift["histograms"][level]["now"]) for level in ("id1", "id2", "id3", "id4")]
    assert codes == list(SHAPE.codes)
    alarms = [
        (alarm["level"], alarm["monitor"], alarm["cleared_at"] is None) for alarm in drift["alarms"]
    ]
    assert alarms == [
        ("ticket", "embedding", False),
        ("page", "id1", False),
        ("page", "novelty", False),
        ("ticket", "query-score", True),
    ]
    (prune,) = [job for job in drift["jobs"] if job["job"] == "prune"]
    assert prune["runs"] == {"done": DAYS - 1, "failed": 1, "skipped": 0, "running": 0}
    # Characters are as they were recorded: only a page escapes them.
    assert prune["last_failure"]["error"] == HOSTILE


def test_fewer_days_leave_out_what_is_older_but_not_what_is_open(
    conn: Connection, recorded: datetime
) -> None:
    conn.execute(
        "UPDATE alarm SET raised_at = raised_at - interval '9 days' WHERE cleared_at IS NULL"
    )
    report = drift_report(conn, recorded, 2)
    assert 0 < len(report.checks) < 15
    assert [alarm.monitor for alarm in report.timeline.alarms] == ["query-score"]
    assert report.switches == ()
    assert "query score" in drift_summary(report)


def test_a_page_of_two_days_is_made_without_a_warning(conn: Connection, recorded: datetime) -> None:
    # Between 36 and 48 hours, matplotlib's own choice of ticks warned; warnings are errors here.
    assert "<svg" in drift_page(drift_report(conn, recorded, 2), "again")
    assert "<svg" in recall_page(recall_report(conn, ALONE, recorded, 2), {}, "again")
