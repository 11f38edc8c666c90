"""Jobs: each run window and each alarm has one run.

No window that was missed vanishes, and what is wrong is told.
"""

import json
from argparse import Namespace
from datetime import UTC, datetime

import pytest

from ops.cli.jobs import jobs as jobs_command
from ops.cli.jobs import list_jobs, run_by_hand
from ops.jobs.registry import JOBS, Job, job_named, run_job
from ops.jobs.timetable import OVERDUE_S, job_alarms
from schemas.errors import RetryLaterError, UsageError, WorkFailedError
from schemas.job_results import skip_reason
from schemas.schedules import Schedule
from schemas.settings import Settings
from tests.integration.scheduler_process import Figures
from workers.repository.connection import Connection, connect
from workers.repository.job_runs import (
    MAX_ATTEMPTS,
    MAX_BACKLOG,
    AlarmTriggers,
    apply_schedule,
    begin_manual_run,
    begin_next_run,
    claim_job,
    claim_scheduler,
    end_run,
    job_is_claimed,
    job_run,
    job_runs,
    release_job,
    run_is_pending,
)
from workers.runtime.services import Services

TEN = Schedule.parse("every 10")
NOW = int(datetime(2026, 11, 25, 12, 0, 5, tzinfo=UTC).timestamp())


def nothing(services: Services, conn: Connection) -> Figures:
    """A job's work."""
    return Figures({})


def work_off(conn: Connection, schedule: Schedule, now: int) -> list[int]:
    """Run everything that is due; its windows."""
    found = []
    while (number := begin_next_run(conn, "j", schedule, now=now)) is not None:
        end_run(conn, number, "done", {})
        found.append(job_run(conn, number).run_window)
    return found


def test_a_window_is_begun_once_and_again_only_if_its_process_died(conn: Connection) -> None:
    assert begin_next_run(conn, "j", TEN, now=NOW) is None
    apply_schedule(conn, "j", TEN, now=NOW)
    first = begin_next_run(conn, "j", TEN, now=NOW)
    assert first is not None
    # Still marked as running, and whoever asks holds the job: its process must be gone.
    assert begin_next_run(conn, "j", TEN, now=NOW + 1) == first
    end_run(conn, first, "done", {"n": 1})
    assert begin_next_run(conn, "j", TEN, now=NOW + 4) is None
    assert [(run.run_window, run.attempt, run.outcome) for run in job_runs(conn)] == [
        (NOW // 10 * 10, 2, "done")
    ]


def test_missed_windows_are_made_up_for_in_order_and_older_ones_recorded_as_skipped(
    conn: Connection,
) -> None:
    for schedule, step in ((TEN, 10), (Schedule.parse("* * * * *"), 60)):
        conn.execute("TRUNCATE job_run, job_schedule")
        apply_schedule(conn, "j", schedule, now=NOW)
        work_off(conn, schedule, NOW + step)
        before = len(job_runs(conn))
        made_up = work_off(conn, schedule, NOW + step * (MAX_BACKLOG + 6))
        found = {run.run_window: run for run in job_runs(conn, limit=1000)}
        assert sorted(found) == list(range(min(found), max(found) + 1, step))
        assert len(found) == before + MAX_BACKLOG + 5
        assert made_up == sorted(made_up)
        skipped = sorted(window for window, run in found.items() if run.outcome == "skipped")
        assert len(skipped) == 5
        assert max(skipped) < made_up[0]
        assert found[skipped[0]].figures == {
            "why": f"more than {MAX_BACKLOG} run windows were missed"
        }


def test_another_schedule_skips_what_the_old_one_still_had_and_counts_from_now(
    conn: Connection,
) -> None:
    apply_schedule(conn, "j", TEN, now=NOW)
    assert len(work_off(conn, TEN, NOW)) == 1
    daily = Schedule.parse("0 3 * * *")
    apply_schedule(conn, "j", daily, now=NOW + 30)
    runs = job_runs(conn)
    assert [run.outcome for run in runs].count("skipped") == 3
    assert {"why": "its schedule was every 10 and became 0 3 * * *"} in [
        run.figures for run in runs
    ]
    # A leader that does not know yet finds nothing by the schedule that no longer holds.
    assert begin_next_run(conn, "j", TEN, now=NOW + 100) is None
    assert work_off(conn, daily, NOW + 86_400) == [NOW // 86_400 * 86_400 + 86_400 + 3 * 3600]
    # While it is off there are no windows, and then they do not count as missed.
    apply_schedule(conn, "j", Schedule(), now=NOW + 90_000)
    apply_schedule(conn, "j", daily, now=NOW + 90_000 + 5 * 86_400)
    assert work_off(conn, daily, NOW + 90_000 + 5 * 86_400) == []


def test_a_run_that_takes_its_process_with_it_fails_at_last_and_one_by_hand_at_once(
    conn: Connection,
) -> None:
    apply_schedule(conn, "j", TEN, now=NOW)
    numbers = [begin_next_run(conn, "j", TEN, now=NOW) for _ in range(MAX_ATTEMPTS + 1)]
    assert len(set(numbers[:MAX_ATTEMPTS])) == 1
    assert numbers[MAX_ATTEMPTS] is None
    by_hand = begin_manual_run(conn, "j")
    assert begin_next_run(conn, "j", TEN, now=NOW) is None
    first, second = job_run(conn, numbers[0] or 0), job_run(conn, by_hand)
    assert (first.outcome, first.attempt, first.figures) == (
        "failed",
        MAX_ATTEMPTS,
        {"error": f"its process died {MAX_ATTEMPTS} times"},
    )
    assert (second.outcome, second.run_window, second.cause, second.figures) == (
        "failed",
        -1,
        {"by": "hand"},
        {"error": "its process died"},
    )


def test_an_alarm_calls_for_one_run_and_a_flood_waits_for_the_cool_down(conn: Connection) -> None:
    off = Schedule()
    apply_schedule(conn, "j", off, now=NOW)
    assert not run_is_pending(conn, "j", off)
    assert run_is_pending(conn, "j", off, AlarmTriggers([3, 4], 3600))
    number = begin_next_run(conn, "j", off, AlarmTriggers([3, 4], 3600))
    assert number is not None
    # Its process dies: it is begun again for the same alarms.
    assert begin_next_run(conn, "j", off, AlarmTriggers([3, 4, 5], 3600)) == number
    end_run(conn, number, "failed", {})
    assert job_run(conn, number).cause == {"alarms": [3, 4]}
    assert begin_next_run(conn, "j", off, AlarmTriggers([3, 4, 5], 3600)) is None
    conn.execute("UPDATE job_run SET ended_at = ended_at - interval '1 hour'")
    assert begin_next_run(conn, "j", off, AlarmTriggers([3, 4], 3600)) is None
    later = begin_next_run(conn, "j", off, AlarmTriggers([3, 4, 5], 3600))
    assert later is not None
    assert job_run(conn, later).cause == {"alarms": [5]}


def test_only_one_leads_and_only_one_holds_a_job(conn: Connection, database: str) -> None:
    assert claim_scheduler(conn)
    claim = claim_job(conn, "j")
    assert claim
    with connect(database) as other:
        assert not claim_scheduler(other)
        assert not claim_job(other, "j")
        assert job_is_claimed(other, "j")
        assert not job_is_claimed(other, "k")
        release_job(conn, claim)
        assert not job_is_claimed(other, "j")
        assert claim_job(other, "j")


@pytest.mark.parametrize("error", [WorkFailedError("no room"), ValueError("no room")])
def test_a_failure_is_recorded_and_told_until_the_job_succeeds(
    conn: Connection, database: str, error: Exception
) -> None:
    def fail(services: Services, conn: Connection) -> Figures:
        raise error

    jobs = {"broken": Job("broken", "fails", fail, TEN)}
    services = Services(Settings(), database)
    apply_schedule(conn, "broken", TEN, now=NOW)
    with pytest.raises(WorkFailedError, match="no room"):
        run_job(services, conn, jobs["broken"], begin_manual_run(conn, "broken"))
    (found,) = job_runs(conn, "broken")
    assert (found.outcome, found.run_window) == ("failed", -1)
    (alarm,) = job_alarms(conn, jobs, now=NOW)
    assert alarm.startswith("job broken failed at 20")
    assert (
        "no room; it runs again at 2026-11-25 12:00:05 UTC, or now: sigma jobs run broken" in alarm
    )
    works = Job("broken", "works", nothing, TEN)
    run_job(services, conn, works, begin_manual_run(conn, "broken"))
    assert job_alarms(conn, jobs, now=NOW) == []


def test_a_window_that_nobody_runs_is_told_once_it_waited_too_long(conn: Connection) -> None:
    jobs = {"j": Job("j", "", nothing, TEN)}
    assert job_alarms(conn, jobs, now=NOW) == []
    apply_schedule(conn, "j", TEN, now=NOW)
    assert job_alarms(conn, jobs, now=NOW) == []
    (alarm,) = job_alarms(conn, jobs, now=NOW + OVERDUE_S)
    assert alarm.startswith("job j is due since 2026-11-25 12:00:00 UTC and no process runs it")
    assert begin_next_run(conn, "j", TEN, now=NOW) is not None
    assert job_alarms(conn, jobs, now=NOW) == [
        "job j was left unfinished by a process that died: see that a scheduler runs (sigma up)"
    ]
    assert claim_job(conn, "j")
    assert job_alarms(conn, jobs, now=NOW + OVERDUE_S) == []


def test_the_list_shows_schedules_next_windows_and_results(conn: Connection, database: str) -> None:
    services = Services(Settings.from_environment({"SIGMA_SCHEDULE": "prune=0 3 * * 0"}), database)
    apply_schedule(conn, "recall-probe", Schedule.parse("every 3600"))
    run = run_by_hand(services, conn, "prune")
    assert (run.outcome, run.cause) == ("done", {"by": "hand"})
    assert run.figures["generations"] == []
    assert not job_is_claimed(conn, "prune")
    listing = list_jobs(conn, services.settings)
    document, text = listing.to_json(), listing.text()
    assert (document["runs"][0]["job"], document["runs"][0]["window"]) == ("prune", -1)
    found = {job["name"]: job for job in document["jobs"]}
    assert set(found) == set(JOBS)
    assert (found["prune"]["schedule"], found["prune"]["last"]["outcome"]) == ("0 3 * * 0", "done")
    assert f"{datetime.fromisoformat(found['prune']['next']):%a %H:%M}" == "Sun 03:00"
    assert found["recall-probe"]["every_s"] == 3600
    assert datetime.fromisoformat(found["recall-probe"]["next"]) <= datetime.now(UTC)
    assert "0 3 * * 0" in text
    json.dumps(document)


@pytest.mark.parametrize("name", ["recall-probe", "drift-report", "gate", "retrain", "recluster"])
def test_jobs_without_a_live_generation_say_that_they_had_nothing_to_do(
    conn: Connection, database: str, name: str
) -> None:
    run = run_by_hand(Services(Settings(), database), conn, name)
    assert run.outcome == "done"
    assert (skip_reason(run.figures) or "").startswith("no generation is live")


def test_a_job_that_runs_elsewhere_is_not_run_by_hand(conn: Connection, database: str) -> None:
    services = Services(Settings(), database)
    assert claim_job(conn, "prune")
    with (
        connect(database) as other,
        pytest.raises(RetryLaterError, match="prune is running elsewhere"),
    ):
        run_by_hand(services, other, "prune")
    with pytest.raises(UsageError, match="recall-probe"):
        job_named("nothing")


def test_the_command_wants_a_name_to_run_and_only_then(database: str) -> None:
    settings = Settings(database_url=database)
    for action, name in (("run", None), ("list", "prune")):
        with pytest.raises(UsageError, match="sigma jobs run NAME"):
            jobs_command(Namespace(action=action, name=name, json=True), settings)


def test_windows_of_an_older_schema_are_named_by_their_second(conn: Connection) -> None:
    from schemas.named_sql import migrations

    conn.execute("TRUNCATE job_run")
    conn.execute("DROP TABLE job_schedule")
    conn.execute("ALTER TABLE job_run DROP COLUMN cause")
    conn.execute("DROP INDEX job_run_newest")
    hour, day = NOW // 3600, NOW // 86_400
    conn.execute(
        "INSERT INTO job_run (job, time_window, outcome)"
        " VALUES ('recall-probe', %s, 'done'), ('prune', %s, 'done')",
        (hour, day),
    )
    conn.execute(next(step.sql for step in migrations() if step.version == 7))
    assert {run.job: run.run_window for run in job_runs(conn)} == {
        "recall-probe": hour * 3600,
        "prune": day * 86_400,
    }
    apply_schedule(conn, "recall-probe", Schedule.parse("every 3600"), now=NOW + 7200)
    number = begin_next_run(conn, "recall-probe", Schedule.parse("every 3600"), now=NOW + 7200)
    assert job_run(conn, number or 0).run_window == (hour + 1) * 3600


def test_an_answer_to_an_alarm_is_given_once_more_when_there_was_time_to_learn(
    conn: Connection,
) -> None:
    off, calls = Schedule(), AlarmTriggers([3], 3600, 86_400)
    apply_schedule(conn, "j", off, now=NOW)
    by_hand = begin_manual_run(conn, "j")
    end_run(conn, by_hand, "done", {})
    conn.execute("UPDATE job_run SET ended_at = ended_at - interval '2 days'")
    assert not run_is_pending(conn, "j", off, AlarmTriggers([], 3600, 86_400)), (
        "nobody's alarm was answered"
    )
    first = begin_next_run(conn, "j", off, calls)
    assert first is not None
    end_run(conn, first, "done", {})
    conn.execute("UPDATE job_run SET ended_at = ended_at - interval '23 hours'")
    assert not run_is_pending(conn, "j", off, calls)
    conn.execute("UPDATE job_run SET ended_at = ended_at - interval '1 hour'")
    assert not run_is_pending(conn, "j", off, AlarmTriggers([3], 3600)), "not every job asks for it"
    assert run_is_pending(conn, "j", off, calls)
    # The alarm may be over: its generation is not live any more.
    second = begin_next_run(conn, "j", off, AlarmTriggers([], 3600, 86_400))
    assert second is not None
    assert job_run(conn, second).cause == {"after": first}
    assert begin_next_run(conn, "j", off, calls) == second, "its process died"
    end_run(conn, second, "done", {})
    conn.execute("UPDATE job_run SET ended_at = ended_at - interval '2 days'")
    assert not run_is_pending(conn, "j", off, calls), "a second answer has no third"


def test_a_failed_answer_is_left_to_the_person_on_call(conn: Connection) -> None:
    off, calls = Schedule(), AlarmTriggers([3], 3600, 86_400)
    apply_schedule(conn, "j", off, now=NOW)
    number = begin_next_run(conn, "j", off, calls)
    assert number is not None
    end_run(conn, number, "failed", {})
    conn.execute("UPDATE job_run SET ended_at = ended_at - interval '2 days'")
    assert not run_is_pending(conn, "j", off, calls)
