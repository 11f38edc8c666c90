"""Reports from a real database: empty, recorded for two weeks, and with jobs that found nothing to do."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ops.report.documents import drift_report, recall_report
from ops.report.drift_page import drift_page
from ops.report.examples import Comparison
from ops.report.recall_page import recall_page
from ops.report.summary import drift_summary, recall_summary
from tests.recorded import DAYS, EVERY, HOSTILE, MONITORS, SHAPE, record
from workers.repository import job_runs as jobs
from workers.repository.connection import Connection
from workers.repository.generations import create_generation, promote, set_state
from workers.repository.history import newest_done

NOW = datetime.now(UTC)
ALONE = Comparison(why="Only one generation can answer.")


def ran(
    conn: Connection, job: str, figures: dict[str, object], age: timedelta = timedelta()
) -> None:
    number = jobs.begin_manual_run(conn, job)
    jobs.end_run(conn, number, "done", figures)
    conn.execute(
        "UPDATE job_run SET started_at = %s, ended_at = %s WHERE id = %s",
        (NOW - age, NOW - age, number),
    )


def live(conn: Connection) -> int:
    number = create_generation(conn, SHAPE)
    set_state(conn, number, "shadow")
    promote(conn, number)
    return number


def test_an_empty_database_makes_pages_that_say_what_is_missing_and_what_makes_it(
    conn: Connection,
) -> None:
    recall, drift = recall_report(conn, ALONE, NOW, 30), drift_report(conn, NOW, 30)
    for page in (recall_page(recall, {}, "again"), drift_page(drift, "again")):
        assert "<code>sigma train --manifest F --promote</code>" in page
        assert "<svg" not in page
    assert "MISSING" in recall_summary(recall)
    assert drift.to_dict()["missing"][0]["command"].startswith("sigma train")
    live(conn)
    assert "<code>sigma jobs run recall-probe</code>" in recall_page(
        recall_report(conn, ALONE, NOW, 30), {}, "again"
    )
    assert "sigma jobs run drift-report" in drift_summary(drift_report(conn, NOW, 30))


def test_a_job_that_found_nothing_to_do_says_why(conn: Connection) -> None:
    number = live(conn)
    idle = {
        "generation": number,
        "images": 0,
        "monitors": [],
        "pages": 0,
        "tickets": 0,
        "why": "calibrating: 90 of 1000 have arrived",
    }
    ran(conn, "drift-report", idle)
    found = drift_report(conn, NOW, 30)
    assert found.newest is None
    assert "calibrating: 90 of 1000 have arrived" in found.missing[0][0]
    assert newest_done(conn, "drift-report", "monitors") is None


def test_a_scheduler_that_has_gone_is_noticed_and_old_figures_are_still_shown(
    conn: Connection,
) -> None:
    shares = {"R@1": 0.5, "R@5": 0.75, "R@10": 1.0}
    one = {"queries": 4, "ours": shares, "exact_dense": shares}
    ran(
        conn,
        "recall-probe",
        {"generation": live(conn), "cohorts": {"hour": one}},
        timedelta(days=90),
    )
    found = recall_report(conn, ALONE, NOW, 30)
    assert found.probes == ()
    assert found.newest is not None
    assert "90 days ago" in found.missing[0][0]
    assert "100.0%" in recall_page(found, {}, "again")


@pytest.fixture
def recorded(conn: Connection) -> datetime:
    return record(conn)


def test_the_documents_hold_what_was_recorded(conn: Connection, recorded: datetime) -> None:
    recall, drift = (
        json.loads(json.dumps(one.to_dict()))
        for one in (recall_report(conn, ALONE, recorded, 30), drift_report(conn, recorded, 30))
    )
    runs = int(timedelta(days=DAYS) / EVERY) + 1
    assert len(recall["probes"]) == len(drift["looks"]) == runs
    assert (recall["generation"], recall["missing"], recall["newest"]) == (
        3,
        [],
        recall["probes"][-1],
    )
    young, cohorts = recall["headline"]["younger_than_a_day"], recall["newest"]["cohorts"]
    hits = sum(cohorts[name]["ours"]["R@10"] * cohorts[name]["queries"] for name in ("hour", "day"))
    assert young["ours"]["R@10"] == pytest.approx(hits / young["queries"])
    assert [one["generation"] for one in recall["switches"]] == [1, 3]
    assert {
        one["id"]: (one["state"], one["gate"] and one["gate"]["passed"])
        for one in recall["generations"]
    } == {
        1: ("retired", None),
        2: ("failed", False),
        3: ("live", True),
    }
    assert [one["name"] for one in drift["newest"]["monitors"]] == list(MONITORS)
    assert [len(drift["histograms"][f"id{level}"]["now"]) for level in (1, 2, 3, 4)] == list(
        SHAPE.codes
    )
    assert [
        (one["level"], one["monitor"], one["cleared_at"] is None) for one in drift["alarms"]
    ] == [
        ("ticket", "embedding", False),
        ("page", "id1", False),
        ("page", "novelty", False),
        ("ticket", "query-score", True),
    ]
    prune = next(one for one in drift["jobs"] if one["job"] == "prune")
    assert prune["runs"] == {"done": DAYS - 1, "failed": 1, "skipped": 0, "running": 0}
    # Characters are as they were: escaping is the page's business.
    assert prune["last_failure"]["error"] == HOSTILE


def test_fewer_days_leave_out_what_is_older_but_not_what_is_open(
    conn: Connection, recorded: datetime
) -> None:
    conn.execute(
        "UPDATE alarm SET raised_at = raised_at - interval '9 days' WHERE cleared_at IS NULL"
    )
    found = drift_report(conn, recorded, 2)
    assert 0 < len(found.looks) < 15
    assert [one.monitor for one in found.timeline.alarms] == ["query-score"]
    assert found.switches == ()
    assert "query score" in drift_summary(found)
