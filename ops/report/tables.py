"""The tables that both reports share: generations with their gates, alarms, and how the jobs went."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ops.report.html import Html, join, table, tag
from ops.report.page import Card, section
from ops.report.timeline import Timeline, mode_of
from ops.report.words import count, figure, moment, monitor_words, percent, plain, points, span
from schemas.generation_config import CohortComparison, GateVerdict
from workers.repository.alarms import Alarm
from workers.repository.generations import Generation

_GENERATIONS, _ALARMS, _REASONS, _LETTERS = 20, 40, 3, 160
_STATES = {"live": "good", "failed": "bad"}


def mark(word: str, tone: str) -> Html:
    """A small framed word."""
    return tag("span", word, class_=f"mark {tone}")


def alarm_card(happened: Timeline) -> Card:
    """The card of open alarms."""
    pages, tickets = (
        sum(one.level == level for one in happened.open) for level in ("page", "ticket")
    )
    if not pages + tickets:
        return Card("Open alarms", "none", "no monitor is beyond its limits", "good")
    shown = " · ".join(
        count(number, word) for number, word in ((pages, "page"), (tickets, "ticket")) if number
    )
    names = dict.fromkeys(monitor_words(one.monitor) for one in happened.open)
    return Card("Open alarms", shown, plain(", ".join(names), 120), "bad" if pages else "plain")


def generation_card(happened: Timeline) -> Card:
    """The card of the generation that answers."""
    live = happened.live
    if live is None:
        return Card("Generation", "none", "no generation is live", "bad")
    parent = live.config.training.parent
    made = {"full": "trained in full", "refresh": "refreshed", "recluster": "re-clustered"}.get(
        mode_of(live), plain(mode_of(live), 20)
    )
    source = f" from G{parent}" if parent is not None and mode_of(live) != "full" else ""
    return Card("Generation", f"G{live.id}", f"live since {moment(live.live_at)}, {made}{source}")


def shared(happened: Timeline, jobs: Html) -> Html:
    """Alarms, generations and jobs, in this order. `jobs` is the plot of the job history."""
    return join(
        (
            section("Alarms", _alarms(happened)),
            section("Generations and their gates", _generations(happened.generations)),
            jobs,
            section("Jobs", _jobs(happened)),
        )
    )


def _alarms(happened: Timeline) -> Html:
    newest = sorted(
        happened.alarms, key=lambda one: (one.cleared_at is None, one.raised_at), reverse=True
    )
    listed = table(
        "Alarms, open ones first",
        (
            "State",
            "Level",
            "Monitor",
            "Generation",
            "Effect",
            "Limit",
            "p",
            "R@10 of novel arrivals",
            "Raised",
            "Lasted",
        ),
        [_alarm(one, happened.until) for one in newest[:_ALARMS]],
        "No alarm was raised in this time, and none is open.",
    )
    left = len(newest) - _ALARMS
    return join(
        (
            listed,
            tag("p", f"{left:,} older ones are in the JSON document.", class_="empty")
            if left > 0
            else Html(""),
        )
    )


def _alarm(one: Alarm, until: datetime) -> tuple[object, ...]:
    lasted = span(((one.cleared_at or until) - one.raised_at).total_seconds())
    state = mark("open", "bad") if one.cleared_at is None else mark("cleared", "plain")
    place = "—" if one.generation is None else f"G{one.generation}"
    recall = "unknown" if one.recall is None else "{:.0%} → {:.0%}".format(*one.recall)
    figures = (figure(one.effect), figure(one.effect_limit), figure(one.p), recall)
    return (
        state,
        one.level,
        monitor_words(one.monitor),
        place,
        *figures,
        moment(one.raised_at),
        lasted,
    )


def _generations(found: tuple[Generation, ...]) -> Html:
    rows = [_generation(one) for one in reversed(found[-_GENERATIONS:])]
    return table(
        "Generations, newest first",
        ("", "State", "Made by", "Images", "Live since", "Gate"),
        rows,
        "There is no generation yet.",
    )


def _generation(one: Generation) -> tuple[object, ...]:
    images, parent = one.config.training.images, one.config.training.parent
    made = plain(mode_of(one), 20) + (f" of G{parent}" if parent is not None else "")
    live = moment(one.live_at) + (
        f", until {moment(one.ended_at)}" if one.live_at and one.ended_at else ""
    )
    state = mark(one.display_state, _STATES.get(one.display_state, "plain"))
    return (f"G{one.id}", state, made, figure(images), live, _gate(one.config.gate))


def _gate(gate: GateVerdict | None) -> Html:
    if gate is None:
        return tag("span", "not asked", class_="about")
    words = [plain(reason, _LETTERS) for reason in gate.reasons[:_REASONS]]
    words = words or _recalls(gate.cohorts)
    said = tag("div", "; ".join(words), class_="about") if words else Html("")
    return join((mark("passed", "good") if gate.passed else mark("refused", "bad"), said))


def _recalls(cohorts: Mapping[str, CohortComparison]) -> list[str]:
    """R@10 of the candidate by cohort, and its distance from the live generation's."""
    said = []
    for name, cohort in cohorts.items():
        difference = points(cohort.candidate_recall - cohort.live_recall)
        said.append(f"{plain(name, 20)} {percent(cohort.candidate_recall)} ({difference})")
    return said


def _jobs(happened: Timeline) -> Html:
    rows = [_job(one) for one in happened.jobs()]
    heads = ("Job", "Done", "Failed", "Skipped", "Last success", "Usually takes", "Last failure")
    return table(
        "How each job went",
        heads,
        rows,
        "No job has run in this time. Start a scheduler: sigma up, or sigma worker scheduler.",
    )


def _job(one: Mapping[str, Any]) -> tuple[object, ...]:
    runs, failure = one["runs"], one["last_failure"]
    why = plain(failure["error"] or "no reason noted", _LETTERS) if failure else ""
    reason = f"{moment(datetime.fromisoformat(failure['at']))}: {why}" if failure else "—"
    last = moment(datetime.fromisoformat(one["last_done_at"])) if one["last_done_at"] else "—"
    failed = mark(str(runs["failed"]), "bad") if runs["failed"] else "0"
    takes = "—" if one["median_s"] is None else span(one["median_s"])
    return (one["job"], f"{runs['done']:,}", failed, f"{runs['skipped']:,}", last, takes, reason)
