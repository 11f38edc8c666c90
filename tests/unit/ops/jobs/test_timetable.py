"""The timetable's decisions: what settings change, which alarms start a job, what is reported."""

from datetime import UTC, datetime

import pytest

from ops.jobs.registry import JOBS, Job
from ops.jobs.timetable import (
    OVERDUE_S,
    JobSchedule,
    alarms_of_job,
    job_schedules,
    timetable_entry,
)
from schemas.errors import UsageError
from schemas.job_results import JobResult
from schemas.maintenance_results import GateSkipped
from schemas.schedules import Schedule
from schemas.settings import Settings
from workers.repository.alarms import Alarm
from workers.repository.connection import Connection
from workers.repository.job_runs import JobRun, JobState
from workers.runtime.services import Services

NOON = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp())
TEN = Schedule.parse("every 10")


def nothing(services: Services, conn: Connection) -> JobResult:
    """A job's work."""
    return GateSkipped("nothing to do")


def settings(schedules: str = "") -> Settings:
    return Settings.from_environment({"SIGMA_SCHEDULE": schedules})


def alarm(number: int, monitor: str, level: str) -> Alarm:
    moment = datetime(2026, 11, 25, tzinfo=UTC)
    return Alarm(number, 1, monitor, level, 0.3, 0.2, 1e-9, 1e-5, {}, moment, None)


def ended(outcome: str, figures: dict[str, object]) -> JobRun:
    moment = datetime(2026, 11, 25, 11, 59, tzinfo=UTC)
    return JobRun("j", NOON - 60, 1, outcome, figures, moment, moment)


def state(
    schedule: Schedule | None = TEN,
    handled_until: int | None = NOON - 10,
    *,
    running: bool = False,
    abandoned: bool = False,
    last: JobRun | None = None,
) -> JobState:
    return JobState(schedule, handled_until, running, abandoned, last)


def test_settings_override_schedules_switch_jobs_off_and_must_name_jobs_that_exist() -> None:
    jobs = {
        "a": Job("a", "", nothing, TEN),
        "b": Job("b", "", nothing, on_alarm=frozenset({"page"})),
    }
    schedules = job_schedules(settings("a=0 3 * * 0"), jobs)
    assert schedules["a"].schedule.text == "0 3 * * 0"
    assert schedules["b"].schedule.text == "off"
    assert schedules["b"].on_alarm == {"page"}
    schedules = job_schedules(settings("a=off; b=off"), jobs)
    assert (schedules["a"].schedule.off, schedules["b"].on_alarm) == (True, frozenset())
    with pytest.raises(UsageError, match="SIGMA_SCHEDULE must name jobs of a, b, got 'c'"):
        job_schedules(settings("c=off"), jobs)


def test_what_keeps_the_index_fresh_runs_by_itself() -> None:
    schedules = job_schedules(settings())
    assert schedules.keys() == JOBS.keys()
    assert [name for name, scheduled in schedules.items() if scheduled.schedule.off] == []
    retrain = schedules["retrain"]
    assert (retrain.schedule.text, retrain.on_alarm) == ("0 3 * * 0", frozenset({"page"}))
    assert schedules["recluster"].schedule.text == "0 5 1 * *"


def test_schedules_of_the_jobs_are_ones_that_a_person_could_write() -> None:
    for job in JOBS.values():
        assert Schedule.parse(job.schedule.text) == job.schedule


def test_an_alarm_starts_the_jobs_that_name_its_monitor_or_its_level() -> None:
    alarms = [alarm(3, "id1", "page"), alarm(4, "leaf-load", "ticket"), alarm(5, "id2", "ticket")]
    job = Job("j", "", nothing, cooldown_s=60.0, again_s=600.0)
    triggers = JobSchedule(job, TEN, frozenset({"page", "leaf-load"})).triggers(alarms)
    assert (triggers.alarms, triggers.cooldown_s, triggers.again_s) == ([3, 4], 60.0, 600.0)
    # A job that no alarm starts has no second run after one by alarm.
    triggers = JobSchedule(job, TEN, frozenset()).triggers(alarms)
    assert (triggers.alarms, triggers.again_s) == ([], None)


def test_an_entry_shows_the_schedule_of_the_leader_and_the_wanted_one() -> None:
    wanted = JobSchedule(Job("j", "about", nothing, TEN), TEN, frozenset({"page"}))
    hourly = Schedule.parse("every 3600")
    document = timetable_entry(wanted, state(hourly, NOON - 1), NOON).to_json()
    assert (document["schedule"], document["wanted"]) == ("every 3600", "every 10")
    assert (document["next"], document["every_s"]) == ("2026-11-25T12:00:00+00:00", 3600)
    assert (document["last"], document["on_alarm"]) == (None, ["page"])
    # Before any scheduler led, the wanted schedule counts from now.
    failed = ended("failed", {"error": "no room"})
    document = timetable_entry(wanted, state(None, None, last=failed), NOON).to_json()
    assert (document["schedule"], document["next"]) == ("every 10", "2026-11-25T12:00:10+00:00")
    assert document["last"] == {
        "outcome": "failed",
        "ended_at": "2026-11-25T11:59:00+00:00",
        "error": "no room",
    }


def test_a_failed_run_is_told_with_its_reason_and_its_next_run() -> None:
    failed = ended("failed", {"error": "no room"})
    assert alarms_of_job("j", state(last=failed), NOON) == [
        "job j failed at 2026-11-25 11:59:00 UTC: no room; it runs again at "
        "2026-11-25 12:00:00 UTC, or now: sigma jobs run j"
    ]
    off = state(Schedule(), NOON, last=ended("failed", {}))
    (told,) = alarms_of_job("j", off, NOON)
    assert "no reason was recorded; nothing runs it again by itself, or now" in told
    assert alarms_of_job("j", state(last=ended("done", {})), NOON) == []


def test_a_run_window_is_overdue_after_a_while_and_an_abandoned_run_at_once() -> None:
    assert alarms_of_job("j", state(), NOON + OVERDUE_S) == []
    (overdue,) = alarms_of_job("j", state(), NOON + OVERDUE_S + 1)
    assert overdue.startswith("job j is due since 2026-11-25 12:00:00 UTC and no process runs it")
    assert alarms_of_job("j", state(running=True), NOON + OVERDUE_S + 1) == []
    (abandoned,) = alarms_of_job("j", state(abandoned=True), NOON + OVERDUE_S + 1)
    assert abandoned.startswith("job j was left unfinished by a process that died")
    assert alarms_of_job("j", state(None, None), NOON + OVERDUE_S + 1) == []
