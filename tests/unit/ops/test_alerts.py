"""The alert rules: each fires in the outage that it is named after, and stays silent otherwise.

promtool evaluates them over scrapes of the real collectors.
"""

import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.events import ImageRejected
from tests.conftest import skip_or_fail
from tests.services.servers import ToolMissingError
from tests.watched_fleet import DEPLOY, RULE_FILE, WatchedFleet, promtool, rules
from workers.repository.monitoring import JobTotal
from workers.runtime.metrics import IndexMetrics, IntakeMetrics
from workers.runtime.query_metrics import QueryMetrics

Scenario = Callable[[WatchedFleet], None]

SCENARIOS: list[Scenario] = []

FIRED: dict[str, list[str]] = defaultdict(list)
"""Scenarios in which a rule fires, by its name."""

SILENT: dict[str, list[str]] = defaultdict(list)
"""Scenarios in which a rule could be thought to fire and must not."""

HOUR_S = 3600

DAY_S = 24 * HOUR_S

REJECTED = ImageRejected("a", "file:///a", "unreadable", "it is no picture", "intake")


@pytest.fixture(scope="module")
def tool() -> str:
    try:
        return promtool()
    except ToolMissingError as error:
        skip_or_fail(error)
        raise


def fires(rule: str) -> Callable[[Scenario], Scenario]:
    """Mark a scenario in which a rule fires."""
    return _marked(rule, FIRED)


def silent(rule: str) -> Callable[[Scenario], Scenario]:
    """Mark a scenario in which a rule must not fire."""
    return _marked(rule, SILENT)


def _marked(rule: str, names: dict[str, list[str]]) -> Callable[[Scenario], Scenario]:
    def mark(scenario: Scenario) -> Scenario:
        names[rule].append(scenario.__name__)
        SCENARIOS.append(scenario)
        return scenario

    return mark


@fires("ImagesWait")
def more_images_arrive_than_are_indexed(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.run(7, lambda: fleet.index.lag.set(1500))
    fleet.expect("ImagesWait")


@fires("ImagesWait")
def more_images_arrive_than_are_taken_in(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.run(7, lambda: fleet.intake.lag.set(1500))
    fleet.expect("ImagesWait")


@silent("ImagesWait")
def a_backlog_that_is_worked_off_in_minutes(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.run(4, lambda: fleet.index.lag.set(5000))
    fleet.expect()
    fleet.run(5)
    fleet.expect()


@silent("ImagesWait")
def one_of_two_index_workers_lost_the_database_when_many_waited(fleet: WatchedFleet) -> None:
    other = IndexMetrics(fleet.clock)
    fleet.targets["index-2:9870"] = other.registry
    fleet.run(3, lambda: other.lag.set(5000))
    # It tells nothing new any more, the other one does.
    fleet.run(15)
    fleet.expect()


@fires("IngestStopped")
def the_database_is_away_and_every_worker_waits_for_it(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.expect()
    never = IntakeMetrics(fleet.clock)
    fleet.targets["intake:9870"] = never.registry
    fleet.run(7)
    fleet.expect("IngestStopped")


@fires("IngestStopped")
def the_last_index_worker_was_removed_and_nobody_can_scrape_it(fleet: WatchedFleet) -> None:
    fleet.run(5)
    del fleet.targets["index:9870"]
    fleet.run(7)
    fleet.expect("IngestStopped")


@silent("IngestStopped")
def one_of_two_index_workers_was_removed(fleet: WatchedFleet) -> None:
    other = IndexMetrics(fleet.clock)
    fleet.targets["index-2:9870"] = other.registry
    fleet.run(5, lambda: other.lag.set(0))
    del fleet.targets["index:9870"]
    fleet.run(10, lambda: other.lag.set(0))
    fleet.expect()


@silent("IngestStopped")
def the_database_restarts(fleet: WatchedFleet) -> None:
    fleet.run(5)
    away = IntakeMetrics(fleet.clock)
    here = fleet.targets["intake:9870"]
    fleet.targets["intake:9870"] = away.registry
    fleet.run(3)
    fleet.targets["intake:9870"] = here
    fleet.run(5)
    fleet.expect()


@fires("StaleIndex")
def images_need_twenty_seconds(fleet: WatchedFleet) -> None:
    def slowly() -> None:
        for _ in range(20):
            fleet.index.age.observe(20)

    fleet.run(5)
    fleet.run(12, slowly)
    fleet.expect("StaleIndex")


@silent("StaleIndex")
def a_quiet_night_with_one_slow_image(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.arrivals = 0
    # Nothing arrives: the share of slow ones is nothing of nothing.
    fleet.run(10)
    fleet.expect()
    fleet.index.age.observe(30)
    for _ in range(12):
        fleet.run(1)
        fleet.expect()


@silent("StaleIndex")
def an_index_worker_that_starts_anew(fleet: WatchedFleet) -> None:
    fleet.run(5, lambda: fleet.index.age.observe(30))
    fleet.index = IndexMetrics(fleet.clock)
    fleet.restart("index:9870", fleet.index.registry)
    fleet.run(10)
    fleet.expect()


@fires("QueriesFail")
def one_of_two_query_workers_refuses_every_tenth_query(fleet: WatchedFleet) -> None:
    def refuse() -> None:
        for _ in range(10):
            fleet.query.count_response(503, "unavailable")

    fleet.run(5)
    fleet.run(8, refuse)
    fleet.expect("QueriesFail")


@fires("QueriesFail")
def clients_find_no_free_connection(fleet: WatchedFleet) -> None:
    def refuse() -> None:
        for _ in range(10):
            fleet.query.count_response(503, "connections")

    fleet.run(5)
    fleet.run(8, refuse)
    fleet.expect("QueriesFail")


@fires("QueriesFail")
def every_query_fails_and_none_is_answered(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.queries = 0
    fleet.run(12, lambda: fleet.query.count_response(500, "failed"))
    fleet.expect("QueriesFail")


@silent("QueriesFail")
def clients_that_ask_for_nonsense_and_leave(fleet: WatchedFleet) -> None:
    def nonsense() -> None:
        for _ in range(300):
            for status, cause in ((404, "invalid"), (422, "invalid"), (499, "client-left")):
                fleet.query.count_response(status, cause)

    fleet.run(15, nonsense)
    fleet.expect()


@silent("QueriesFail")
def a_short_failure_in_a_quiet_night(fleet: WatchedFleet) -> None:
    fleet.queries = 0
    fleet.run(10)
    fleet.expect()
    fleet.query.count_response(503, "timeout")
    for _ in range(8):
        fleet.run(1)
        fleet.expect()


@silent("QueriesFail")
def a_query_worker_that_had_failures_starts_anew(fleet: WatchedFleet) -> None:
    fleet.query.responses.labels("503", "unavailable").inc(100_000)
    fleet.run(5)
    fleet.query = QueryMetrics()
    fleet.serve(fleet.query)
    fleet.restart("query:8631", fleet.query.registry)
    fleet.run(10)
    fleet.expect()


@fires("QueriesSlow")
def one_query_in_ten_takes_two_seconds(fleet: WatchedFleet) -> None:
    def slowly() -> None:
        for _ in range(20):
            fleet.query.latency.observe(2)

    fleet.run(5)
    fleet.run(10, slowly)
    fleet.expect("QueriesSlow")


@silent("QueriesSlow")
def nobody_asks(fleet: WatchedFleet) -> None:
    fleet.queries = 0
    fleet.run(15)
    fleet.expect()


@fires("QueriesRefused")
def a_fifth_is_refused_while_scanners_ask_for_other_pages(fleet: WatchedFleet) -> None:
    def crowd() -> None:
        for _ in range(25):
            fleet.query.count_response(429, "overloaded")
        for _ in range(5000):
            fleet.query.count_response(404, "invalid")
            fleet.query.count_response(401, "unknown-key")
            fleet.query.count_response(429, "rate-limited")

    fleet.run(5)
    fleet.run(14, crowd)
    fleet.expect("QueriesRefused")


@silent("QueriesRefused")
def one_key_asks_more_than_its_rate(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.run(14, lambda: fleet.query.responses.labels("429", "rate-limited").inc(500))
    fleet.expect()


@silent("QueriesRefused")
def a_rush_that_ends_in_minutes(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.run(3, lambda: fleet.query.responses.labels("429", "overloaded").inc(500))
    fleet.run(12)
    fleet.expect()


@fires("AnswersEmpty")
def the_weights_of_one_worker_are_damaged(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.run(8, lambda: fleet.query.empty.inc(50))
    fleet.expect("AnswersEmpty")


@silent("AnswersEmpty")
def nobody_asks_and_nothing_is_empty(fleet: WatchedFleet) -> None:
    fleet.queries = 0
    fleet.run(15)
    fleet.expect()


@fires("NoGeneration")
def query_workers_start_and_none_can_load_a_generation(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.queries = 0
    for instance in ("query:8631", "query-2:8631"):
        fleet.restart(instance, QueryMetrics().registry)
    fleet.run(4)
    fleet.expect("NoGeneration")


@fires("NoGeneration")
def all_query_workers_were_removed_and_nobody_can_scrape_them(fleet: WatchedFleet) -> None:
    fleet.run(5)
    del fleet.targets["query:8631"]
    del fleet.targets["query-2:8631"]
    fleet.run(4)
    fleet.expect("NoGeneration")


@silent("NoGeneration")
def one_of_two_query_workers_has_none(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.restart("query:8631", QueryMetrics().registry)
    fleet.run(8)
    fleet.expect()


@fires("QueriesUnanswered")
def every_query_worker_is_stuck_and_the_balancer_sends_no_query(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.queries = 0
    fleet.query.ready.set(0)
    fleet.other_query.ready.set(0)
    fleet.run(4)
    fleet.expect("QueriesUnanswered")


@silent("QueriesUnanswered")
def one_of_two_query_workers_is_stuck(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.query.ready.set(0)
    fleet.run(10)
    fleet.expect()


@fires("WorkerGone")
def one_query_worker_does_not_answer(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.targets["query:8631"] = None
    fleet.run(3)
    fleet.expect("WorkerGone")


@silent("WorkerGone")
def a_worker_that_is_back_within_a_minute(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.targets["query:8631"] = None
    fleet.run(1)
    fleet.serve(fleet.query)
    fleet.restart("query:8631", fleet.query.registry)
    fleet.run(5)
    fleet.expect()


@fires("WorkerRestarts")
def a_worker_that_dies_again_and_again_and_answers_between(fleet: WatchedFleet) -> None:
    fleet.run(5)
    for _ in range(4):
        fleet.targets["intake:9870"] = None
        fleet.run(1)
        fleet.restart("intake:9870", fleet.intake.registry)
        fleet.run(1)
    fleet.expect("WorkerRestarts")


@silent("WorkerRestarts")
def two_new_versions_within_a_quarter_of_an_hour(fleet: WatchedFleet) -> None:
    for _ in range(2):
        fleet.run(5)
        for instance, registry in fleet.targets.items():
            assert registry is not None
            fleet.restart(instance, registry)
    fleet.run(5)
    fleet.expect()


@fires("ManyRejected")
def a_producer_sends_what_is_no_picture(fleet: WatchedFleet) -> None:
    def reject() -> None:
        for _ in range(5):
            fleet.intake.count_verdict(REJECTED)

    fleet.run(5)
    fleet.run(15, reject)
    fleet.expect("ManyRejected")


@fires("ManyRejected")
def pictures_of_the_store_are_gone_when_the_index_wants_them(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.run(15, lambda: fleet.index.rejected.labels("unreadable").inc(15))
    fleet.expect("ManyRejected")


@fires("ManyRejected")
def the_index_rejects_a_backlog_while_nothing_arrives(fleet: WatchedFleet) -> None:
    fleet.arrivals = 0
    fleet.run(5)
    fleet.run(15, lambda: fleet.index.rejected.labels("not-finite").inc(15))
    fleet.expect("ManyRejected")


@silent("ManyRejected")
def one_bad_picture_among_many_and_then_nothing(fleet: WatchedFleet) -> None:
    fleet.intake.count_verdict(REJECTED)
    fleet.run(5)
    fleet.intake.count_verdict(REJECTED)
    fleet.run(15)
    fleet.expect()
    fleet.arrivals = 0
    fleet.run(30)
    fleet.expect()


@fires("RecallMoved")
def drift_with_recall_lost(fleet: WatchedFleet) -> None:
    fleet.run(2)
    fleet.show(levels=("page",))
    fleet.run(1)
    fleet.expect("RecallMoved")


@fires("ArrivalsDrift")
def drift_while_recall_holds(fleet: WatchedFleet) -> None:
    fleet.run(2)
    fleet.show(levels=("ticket", "ticket"))
    fleet.run(12)
    fleet.expect("ArrivalsDrift")


@silent("RecallMoved")
@silent("ArrivalsDrift")
def an_alarm_that_cleared_at_the_next_window(fleet: WatchedFleet) -> None:
    fleet.run(2)
    fleet.show(levels=("ticket",))
    fleet.run(5)
    fleet.show(levels=())
    fleet.run(12)
    fleet.expect()


@fires("NewImagesHardToFind")
def new_images_lose_to_exact_search(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.show(recalls={"hour": (0.6, 0.85), "older": (0.8, 0.82)})
    fleet.repeat(190)
    fleet.expect("NewImagesHardToFind")


@silent("NewImagesHardToFind")
def one_probe_of_few_images_and_old_ones_that_are_hard_for_all(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.show(recalls={"hour": (0.5, 1.0), "older": (0.5, 0.9)})
    fleet.repeat(60)
    fleet.show(recalls={"hour": (1.0, 1.0), "day": (0.5, 0.5), "older": (0.5, 0.9)})
    fleet.repeat(200)
    fleet.expect()


@fires("SchedulerGone")
def nobody_started_a_scheduler(fleet: WatchedFleet) -> None:
    del fleet.targets["scheduler:9870"]
    fleet.run(17)
    fleet.expect("SchedulerGone")


@silent("SchedulerGone")
def a_new_scheduler_whose_jobs_are_all_off(fleet: WatchedFleet) -> None:
    fleet.run(40)
    fleet.expect()


@fires("JobOverdue")
def a_job_is_due_and_no_scheduler_runs_it(fleet: WatchedFleet) -> None:
    fleet.show(plans=(fleet.plan("prune", f"every {DAY_S}", -1, running=False),))
    fleet.run(30)
    fleet.expect("JobOverdue")


@fires("JobOverdue")
def the_probe_runs_and_never_succeeds(fleet: WatchedFleet) -> None:
    fleet.show(
        jobs=fleet.last_runs(recall_probe=0),
        plans=(fleet.plan("recall-probe", f"every {HOUR_S}", 0, running=True),),
    )
    fleet.repeat(170)
    fleet.expect()
    fleet.run(30)
    fleet.expect("JobOverdue")


@silent("JobOverdue")
def jobs_that_are_off_rare_or_at_work(fleet: WatchedFleet) -> None:
    week = f"every {7 * DAY_S}"
    fleet.show(
        jobs=fleet.last_runs(recall_probe=-30 * DAY_S, drift_report=-4 * DAY_S),
        plans=(
            fleet.plan("recall-probe", "off", 0, running=False),
            fleet.plan("drift-report", week, 0, running=False),
            fleet.plan("retrain", f"every {HOUR_S}", -5 * HOUR_S, running=True),
        ),
    )
    fleet.repeat(60)
    fleet.expect()


@fires("TrainingFailed")
def the_first_training_ever_fails(fleet: WatchedFleet) -> None:
    fleet.run(5)
    fleet.show(jobs=(_failed("retrain", 1, fleet.clock()),))
    fleet.run(2)
    fleet.expect("TrainingFailed")
    fleet.repeat(70)
    fleet.expect()


@fires("TrainingFailed")
def a_training_fails_after_old_runs_were_pruned(fleet: WatchedFleet) -> None:
    fleet.show(jobs=(_failed("recluster", 90, -DAY_S),))
    fleet.run(20)
    fleet.expect()
    fleet.show(jobs=(_failed("recluster", 2, fleet.clock()),))
    fleet.run(2)
    fleet.expect("TrainingFailed")


@silent("TrainingFailed")
def the_scheduler_of_an_old_failure_is_back_after_hours(fleet: WatchedFleet) -> None:
    fleet.show(jobs=(_failed("retrain", 3, -DAY_S),))
    fleet.run(5)
    registry = fleet.targets.pop("scheduler:9870")
    assert registry is not None
    fleet.repeat(90)
    fleet.restart("scheduler:9870", registry)
    fleet.run(5)
    fleet.expect()


@fires("CandidateRefused")
def the_gate_refused_a_candidate(fleet: WatchedFleet) -> None:
    fleet.run(2)
    fleet.show(refused=1)
    fleet.run(1)
    fleet.expect("CandidateRefused")


@silent("CandidateRefused")
def the_refused_candidate_was_dropped(fleet: WatchedFleet) -> None:
    fleet.show(refused=1)
    fleet.run(2)
    fleet.show(refused=0)
    fleet.run(1)
    fleet.expect()


@fires("JobFails")
def a_daily_job_failed_on_two_days(fleet: WatchedFleet) -> None:
    fleet.show(plans=(fleet.plan("prune", f"every {DAY_S}", 0, failures=2, running=False),))
    fleet.run(3)
    fleet.expect("JobFails")


@silent("JobFails")
def a_job_failed_once_and_a_training_more_often(fleet: WatchedFleet) -> None:
    fleet.show(
        plans=(
            fleet.plan("prune", f"every {DAY_S}", 0, failures=1, running=False),
            fleet.plan("retrain", f"every {DAY_S}", 0, failures=5, running=False),
        )
    )
    fleet.run(3)
    fleet.expect()


def _failed(job: str, runs: int, ended_s: float) -> JobTotal:
    return JobTotal(job, "failed", runs, ended_s)


@pytest.mark.parametrize("scenario", dict.fromkeys(SCENARIOS), ids=lambda one: one.__name__)
def test_the_alerts_that_must_fire_do_and_no_others(
    tool: str, scenario: Scenario, tmp_path: Path
) -> None:
    fleet = WatchedFleet()
    scenario(fleet)
    fleet.check(tmp_path)


def test_every_rule_has_a_fault_that_fires_it_and_a_case_in_which_it_stays_silent() -> None:
    names = {rule["alert"] for rule in rules()}
    assert set(FIRED) == names
    assert set(SILENT) == names


def test_promtool_takes_the_rules_and_the_configuration(tool: str, tmp_path: Path) -> None:
    # In its container the rules lie elsewhere.
    text = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("/etc/prometheus/alerts.yml", str(RULE_FILE)), encoding="utf-8")
    subprocess.run([tool, "check", "config", str(file)], check=True, capture_output=True)
    subprocess.run([tool, "check", "rules", str(RULE_FILE)], check=True, capture_output=True)
