"""The drift report on a real database: its reference, its windows, its alarms, its metrics."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest

from model.drift.monitors import RecallCount
from model.identifiers.codebook import CodebookConfig, fit_codebook
from ops.jobs.alarm_updates import CLEAR_AFTER_WINDOWS
from ops.jobs.arrival_windows import ArrivalWindowReader, served_scores
from ops.jobs.drift_report import DriftReporter, novel_recall
from ops.jobs.drift_watcher import DriftWatcher, monitoring_snapshot
from ops.jobs.registry import Job, run_job
from ops.status import read_status
from schemas.events import OPERATIONS, ImageAccepted, OperationsEvent, QueryServed, decode
from schemas.identifiers import IdentifierShape
from schemas.job_results import (
    CohortRecall,
    DriftReportResult,
    DriftReportSkipped,
    RecallProbeResult,
)
from schemas.records import Assignment, Posting
from schemas.schedules import Schedule
from schemas.settings import Settings
from stream.log.event_log import message
from workers.query.searcher import Searcher
from workers.repository import alarms, generations, monitoring, postings
from workers.repository import job_runs as jobs
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.image_acceptance import accept_images
from workers.runtime.metrics import DriftMetrics
from workers.runtime.services import Services

SHAPE = IdentifierShape((4, 2, 2, 2), 1000)
WIDTH, SAMPLE, REFERENCE = 8, 100, 200
MIDDLES = np.eye(4, WIDTH, dtype=np.float32)


@pytest.fixture
def services(database: str, tmp_path: Path) -> Services:
    return Services(Settings(home=tmp_path), database)


@pytest.fixture
def generation(conn: Connection, services: Services) -> int:
    """A live generation with a codebook and no model: only measuring recall needs one."""
    rng = np.random.default_rng(0)
    rows = MIDDLES[rng.integers(0, 4, 200)] + 0.1 * rng.normal(size=(200, WIDTH)).astype(np.float32)
    book = fit_codebook(rows, CodebookConfig(SHAPE))
    number = generations.create_generation(
        conn, SHAPE, codebook_version=book.version, checkpoint_path="g1"
    )
    book.save(services.checkpoints / "g1")
    accept(conn, number, 50, rng, trained=True)
    for state in ("shadow", "live"):
        generations.set_state(conn, number, state)
    log = services.open_log()
    log.ensure_topics()
    log.close()
    return number


def accept(
    conn: Connection,
    generation: int,
    count: int,
    rng: np.random.Generator,
    *,
    new: float = 0.0,
    trained: bool = False,
) -> list[int]:
    """Images of four topics, and a share of something else, assigned as a model would."""
    first = conn.execute("SELECT count(*) FROM image").fetchone()
    assert first is not None
    events = [
        ImageAccepted(
            f"i{first[0] + n:05d}",
            "file:///a.png",
            "file:///b.png",
            "0" * 64,
            8,
            8,
            datetime.now(UTC),
            captions=("a",),
        )
        for n in range(count)
    ]
    keys = [stored.image_key for stored in accept_images(conn, events)]
    work = []
    for key in keys:
        odd, topic = rng.random() < new, int(rng.integers(0, 4))
        middle = -MIDDLES[topic] if odd else MIDDLES[topic]
        embedding = (middle + 0.1 * rng.normal(size=WIDTH)).astype(np.float16)
        leaf = SHAPE.pack((topic, *(int(code) for code in rng.integers(0, 2, 3))))
        confidence = float(rng.normal(-3 if odd else -1, 0.3))
        work.append(Assignment(key, (Posting(leaf, 0.0),), embedding, confidence, trained=trained))
    postings.append(conn, generation, SHAPE, work)
    return keys


def report(
    services: Services,
    conn: Connection,
    recall: RecallCount | None = None,
    asked: list[int] | None = None,
) -> jobs.JobRun:
    """One run of the job as the scheduler does it, with small sizes.

    Recall is `recall` whatever is asked for; the keys asked for are appended to `asked`.
    """

    def measure_recall(generation: Generation, keys: Sequence[int]) -> RecallCount | None:
        if asked is not None:
            asked.extend(keys)
        return recall

    def work(services: Services, conn: Connection) -> DriftReportResult | DriftReportSkipped:
        windows = ArrivalWindowReader(services.checkpoints, services.open_log)
        return DriftReporter(conn, windows, measure_recall, SAMPLE, REFERENCE).report()

    job = Job("drift-report", "", work)
    return run_job(services, conn, job, jobs.begin_manual_run(conn, job.name))


def notes(services: Services) -> list[OperationsEvent]:
    log = services.open_log()
    found = [decode(OPERATIONS, event.value) for event in log.read(OPERATIONS, 0)]
    log.close()
    return [event for event in found if isinstance(event, OperationsEvent)]


def test_the_reference_is_the_first_arrivals_of_the_live_generation(
    conn: Connection, services: Services, generation: int
) -> None:
    rng = np.random.default_rng(1)
    first = accept(conn, generation, REFERENCE - 1, rng)
    assert (
        report(services, conn).figures["why"]
        == "calibrating: 199 of 200 reference images have arrived"
    )
    first += accept(conn, generation, 1, rng)
    figures = report(services, conn, RecallCount(90, 100)).figures
    assert figures["why"] == "calibrated on 200 images"
    assert figures["monitors"] == []
    kept = monitoring.stored_reference(conn, generation)
    assert kept is not None
    assert (kept.last_key, kept.recall) == (first[-1], (90, 100))
    # Trained images are of another kind, and queries were too few to be watched.
    assert monitoring.first_arrivals(conn, generation, 0, 1) == first[:1]
    assert set(kept.document["watched"]) >= {"id1", "embedding", "agreement", "leaf-load"}
    assert "query-score" not in kept.document["watched"]
    assert (
        report(services, conn).figures["why"]
        == "0 of the 100 images of the next window have arrived"
    )


def test_an_alarm_is_raised_once_shown_and_cleared_after_quiet_windows(
    conn: Connection, services: Services, generation: int
) -> None:
    rng = np.random.default_rng(2)
    accept(conn, generation, REFERENCE, rng)
    report(services, conn, RecallCount(90, 100))
    accept(conn, generation, SAMPLE, rng)
    quiet = report(services, conn).figures
    assert (quiet["images"], quiet["tickets"], quiet["pages"]) == (SAMPLE, 0, 0)
    assert len(quiet["histograms"]["id1"]["now"]) == 4
    assert quiet["leaf"]["max"] >= quiet["leaf"]["p99"] > 0

    accept(conn, generation, SAMPLE, rng, new=0.5)
    alarming = report(services, conn, RecallCount(88, 100)).figures
    raised = {monitor["name"] for monitor in alarming["monitors"] if monitor["alarm"]}
    assert {"embedding", "novelty"} <= raised
    assert (alarming["tickets"], alarming["pages"]) == (len(raised), 0)
    assert {alarm.monitor for alarm in alarms.open_alarms(conn)} == raised
    log = services.open_log()
    assert any("ticket: embedding of generation" in line for line in read_status(conn, log).alarms)
    log.close()
    assert [note.kind for note in notes(services)] == ["alarm"] * len(raised)

    accept(conn, generation, SAMPLE, rng, new=0.5)
    assert report(services, conn, RecallCount(88, 100)).figures["tickets"] == 0
    for window in range(CLEAR_AFTER_WINDOWS):
        assert {alarm.monitor for alarm in alarms.open_alarms(conn)} == raised, window
        accept(conn, generation, SAMPLE, rng)
        report(services, conn)
    assert alarms.open_alarms(conn) == []
    assert {
        alarm.monitor for alarm in alarms.alarms_since(conn, datetime.now(UTC) - timedelta(hours=1))
    } == raised
    assert {note.kind for note in notes(services)} == {"alarm", "alarm-cleared"}


def test_a_ticket_becomes_a_page_when_recall_falls(
    conn: Connection, services: Services, generation: int
) -> None:
    rng = np.random.default_rng(3)
    accept(conn, generation, REFERENCE, rng)
    report(services, conn, RecallCount(180, 200))
    accept(conn, generation, SAMPLE, rng, new=0.5)
    assert report(services, conn, None).figures["pages"] == 0
    accept(conn, generation, SAMPLE, rng, new=0.5)
    assert report(services, conn, RecallCount(120, 200)).figures["pages"] > 0
    # A monitor that alarmed before and not now stays what it was.
    assert {
        alarm.level
        for alarm in alarms.open_alarms(conn)
        if alarm.monitor in ("embedding", "novelty")
    } == {"page"}
    assert alarms.open_alarms(conn)[0].detail == {
        "recall_then": {"hits": 180, "queries": 200},
        "recall_now": {"hits": 120, "queries": 200},
    }
    assert alarms.open_alarms(conn)[0].recall == (0.9, 0.6)
    assert any(
        note.message.startswith("page: ")
        and "R@10 of the most novel arrivals 60%, at first 90%" in note.message
        for note in notes(services)
    )


def test_recall_is_asked_for_what_is_least_like_the_reference(
    conn: Connection, services: Services, generation: int
) -> None:
    rng, asked = np.random.default_rng(3), list[int]()
    accept(conn, generation, REFERENCE, rng)
    report(services, conn)
    accept(conn, generation, SAMPLE // 2, rng)
    new = accept(conn, generation, SAMPLE - SAMPLE // 2, rng, new=1.0)
    report(services, conn, asked=asked)
    assert len(asked) == SAMPLE
    assert set(asked[: len(new)]) == set(new)


def test_windows_tile_the_stream_and_a_rush_of_arrivals_is_sampled(
    conn: Connection, services: Services, generation: int
) -> None:
    rng = np.random.default_rng(4)
    accept(conn, generation, REFERENCE, rng)
    report(services, conn)
    rush = accept(conn, generation, 12 * SAMPLE, rng)
    figures = report(services, conn).figures
    assert figures["images"] == SAMPLE
    assert figures["first_key"] < rush[3 * SAMPLE]
    assert figures["last_key"] > rush[-3 * SAMPLE]
    # What came after the last one of the sample belongs to the next window.
    left = rush[-1] - figures["last_key"]
    accept(conn, generation, SAMPLE, rng)
    again = report(services, conn).figures
    assert figures["last_key"] < again["first_key"] <= figures["last_key"] + left + SAMPLE
    draws = [monitoring.sample_arrivals(conn, generation, rush[0], SAMPLE) for _ in range(2)]
    assert draws[0] == draws[1] == sorted(set(draws[0]))


def test_alarms_end_with_their_generation(
    conn: Connection, services: Services, generation: int
) -> None:
    alarms.raise_alarm(
        conn, generation, "id1", "ticket", effect=1, effect_limit=0.1, p=0, p_limit=1e-5
    )
    other = generations.create_generation(conn, SHAPE)
    generations.set_state(conn, other, "shadow")
    generations.promote(conn, other)
    report(services, conn)
    assert alarms.open_alarms(conn) == []


def test_at_most_one_alarm_of_a_monitor_is_open(conn: Connection, generation: int) -> None:
    def up(level: str) -> int | None:
        return alarms.raise_alarm(
            conn, generation, "id1", level, effect=0.4, effect_limit=0.1, p=1e-9, p_limit=1e-5
        )

    number = up("ticket")
    assert up("ticket") is None
    assert up("page") == number
    assert up("page") is None
    assert up("ticket") is None
    assert [alarm.level for alarm in alarms.open_alarms(conn)] == ["page"]
    assert number is not None
    assert alarms.clear_alarm(conn, number)
    assert not alarms.clear_alarm(conn, number)
    assert up("ticket") not in (None, number)
    with pytest.raises(psycopg.errors.CheckViolation):
        alarms.raise_alarm(
            conn, generation, "id2", "shout", effect=1, effect_limit=1, p=1, p_limit=1
        )


def test_the_key_of_a_moment_is_found_by_looks(conn: Connection, generation: int) -> None:
    rng = np.random.default_rng(5)
    old = accept(conn, generation, 40, rng)
    conn.execute("UPDATE image SET accepted_at = accepted_at - interval '1 day'")
    moment = datetime.now(UTC) - timedelta(hours=12)
    assert monitoring.first_key_since(conn, moment) == old[-1] + 1
    new = accept(conn, generation, 3, rng)
    assert monitoring.first_key_since(conn, moment) == new[0]
    assert monitoring.first_key_since(conn, moment - timedelta(days=30)) <= old[0]


def test_the_best_scores_of_served_queries_are_read_per_generation(
    services: Services, generation: int
) -> None:
    log = services.open_log()
    served = [
        QueryServed("q", generation + n % 2, 1.0, ("a", "b"), (float(n), 0.0)) for n in range(40)
    ]
    served.append(QueryServed("nothing found", generation, 1.0, (), ()))
    log.publish(None, [message(query, query.query_id) for query in served])
    scores = served_scores(log, generation)
    log.close()
    assert sorted(scores.tolist()) == [float(n) for n in range(0, 40, 2)]


def test_recall_is_unknown_without_enough_captions(
    conn: Connection, services: Services, generation: int
) -> None:
    keys = accept(conn, generation, 190, np.random.default_rng(6))

    def open_searcher(generation: Generation) -> Searcher:
        raise AssertionError("no model is loaded for too few captions")

    recall = novel_recall(conn, generations.get(conn, generation), keys, open_searcher)
    assert recall is None


def test_a_scheduler_shows_what_the_database_says(
    conn: Connection, services: Services, generation: int
) -> None:
    metrics = DriftMetrics()
    rng = np.random.default_rng(7)
    accept(conn, generation, REFERENCE, rng)
    report(services, conn)
    accept(conn, generation, SAMPLE, rng, new=0.5)
    report(services, conn)
    probed = jobs.begin_manual_run(conn, "recall-probe")
    ours = {"R@1": 0.5, "R@5": 0.7, "R@10": 0.8}
    exact = {"R@1": 0.6, "R@5": 0.8, "R@10": 0.9}
    probe = RecallProbeResult(generation, {"hour": CohortRecall(40, ours, exact)})
    jobs.end_run(conn, probed, "done", probe.to_json())
    metrics.snapshot = monitoring_snapshot(conn)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert (value("sigma_drift_effect", monitor="embedding") or 0) > (
        value("sigma_drift_limit", monitor="embedding") or 1
    )
    assert value("sigma_alarms_open", level="ticket") == len(alarms.open_alarms(conn))
    assert value("sigma_alarms_open", level="page") == 0
    assert value("sigma_recall_at_10", cohort="hour", kind="ours") == 0.8
    assert value("sigma_recall_at_10", cohort="hour", kind="exact") == 0.9
    assert value("sigma_job_runs_total", job="drift-report", outcome="done") == 2
    assert value("sigma_job_last_success_timestamp_seconds", job="drift-report") == pytest.approx(
        datetime.now(UTC).timestamp(), abs=300
    )


def test_a_scheduler_shows_when_jobs_failed_and_when_they_are_due(conn: Connection) -> None:
    metrics = DriftMetrics()
    day = Schedule.parse("every 86400")
    jobs.apply_schedule(conn, "prune", day, now=100_000)
    jobs.apply_schedule(conn, "trim-log", Schedule.parse("off"), now=100_000)
    outcomes = {"prune": "failed done failed failed", "retrain": "done", "trim-log": "failed done"}
    for job, each in outcomes.items():
        for outcome in each.split():
            jobs.end_run(conn, jobs.begin_manual_run(conn, job), outcome, {})
    metrics.snapshot = monitoring_snapshot(conn)

    def value(name: str, job: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"job": job})

    assert value("sigma_job_failures_in_a_row", "prune") == 2
    assert value("sigma_job_failures_in_a_row", "retrain") == 0
    assert value("sigma_job_failures_in_a_row", "trim-log") == 0
    assert value("sigma_job_due_timestamp_seconds", "prune") == 86_400
    assert value("sigma_job_period_seconds", "prune") == 86_400
    assert value("sigma_job_due_timestamp_seconds", "trim-log") is None
    failed = "sigma_job_last_failure_timestamp_seconds"
    assert value(failed, "prune") == pytest.approx(datetime.now(UTC).timestamp(), abs=300)
    assert value(failed, "retrain") is None


def test_a_record_that_cannot_be_read_does_not_stop_the_metrics(
    conn: Connection, services: Services, generation: int
) -> None:
    for job, figures in (
        ("drift-report", {"generation": generation, "monitors": [{"name": "id1"}]}),
        ("recall-probe", {"generation": generation, "cohorts": {"hour": {"queries": "many"}}}),
    ):
        jobs.end_run(conn, jobs.begin_manual_run(conn, job), "done", figures)
    snapshot = monitoring_snapshot(conn)
    assert (snapshot.effects, snapshot.recalls) == ({}, {})


def test_the_watcher_keeps_the_metrics_up_to_date_until_it_is_closed(
    conn: Connection, services: Services, generation: int
) -> None:
    alarms.raise_alarm(
        conn, generation, "id1", "ticket", effect=1, effect_limit=0.1, p=0, p_limit=1e-5
    )
    metrics = DriftMetrics()
    watcher = DriftWatcher(services.connect, metrics)
    watcher.start()
    deadline = time.monotonic() + 30
    while not metrics.snapshot.levels:
        assert time.monotonic() < deadline, "the watcher saw nothing in time"
        time.sleep(0.02)
    watcher.close()
    assert metrics.snapshot.levels == ("ticket",)
