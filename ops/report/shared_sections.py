"""What both pages share: cards of alarms and the live generation; alarms, generations and jobs."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from ops.report.formatting import (
    format_count,
    format_duration,
    format_number,
    format_time,
    one_line,
    percent,
    percentage_points,
)
from ops.report.html import Html, join, table, tag
from ops.report.job_plots import job_plot
from ops.report.page import Card, mark, plot_sections, section
from ops.report.timeline import JobSummary, Timeline
from ops.report.words import monitor_words
from schemas.generation_config import CohortComparison, GateVerdict
from schemas.json_values import finite_number
from workers.repository.alarms import Alarm
from workers.repository.generations import Generation

# Rows of the table of generations, the newest ones.
_MAX_GENERATIONS = 20

# Rows of the table of alarms; the JSON document has all.
_MAX_ALARMS = 40

# Reasons of a gate's refusal that are shown.
_MAX_REASONS = 3

# Characters of one reason, or of a job's error.
_MAX_REASON_LENGTH = 160

# Tone of a generation's state; all others are plain.
_STATE_TONES = {"live": "good", "failed": "bad"}

_MODE_WORDS = {"full": "trained in full", "refresh": "refreshed", "recluster": "re-clustered"}

_ALARM_HEADINGS = (
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
)

_JOB_HEADINGS = (
    "Job",
    "Done",
    "Failed",
    "Skipped",
    "Last success",
    "Usually takes",
    "Last failure",
)


def alarm_card(timeline: Timeline) -> Card:
    """The card of open alarms."""
    alarms = timeline.open_alarms
    if not alarms:
        return Card("Open alarms", "none", "no monitor is beyond its limits", "good")
    pages = timeline.open_pages
    tickets = len(alarms) - pages
    parts = []
    if pages:
        parts.append(format_count(pages, "page"))
    if tickets:
        parts.append(format_count(tickets, "ticket"))
    # Two generations may have an open alarm of the same monitor.
    names = dict.fromkeys(monitor_words(alarm.monitor) for alarm in alarms)
    note = one_line(", ".join(names), 120)
    return Card("Open alarms", " · ".join(parts), note, "bad" if pages else "plain")


def generation_card(timeline: Timeline) -> Card:
    """The card of the live generation."""
    live = timeline.live
    if live is None:
        return Card("Generation", "none", "no generation is live", "bad")
    training = live.config.training
    # Every mode of `TrainingMode` has words.
    made = _MODE_WORDS[training.mode_or_full]
    if training.parent is not None and training.mode_or_full != "full":
        made += f" from G{training.parent}"
    return Card("Generation", f"G{live.id}", f"live since {format_time(live.live_at)}, {made}")


def shared_sections(timeline: Timeline) -> Html:
    """Alarms, generations and jobs, in this order."""
    history = job_plot(timeline)
    return join(
        (
            section("Alarms", _alarms(timeline)),
            section("Generations and their gates", _generations(timeline.generations)),
            plot_sections([history] if history else []),
            section("Jobs", _jobs(timeline)),
        )
    )


def _alarms(timeline: Timeline) -> Html:
    # Open ones first, and the newest first among both.
    alarms = sorted(
        timeline.alarms,
        key=lambda alarm: (alarm.cleared_at is None, alarm.raised_at),
        reverse=True,
    )
    listed = table(
        "Alarms, open ones first",
        _ALARM_HEADINGS,
        [_alarm_row(alarm, timeline.until) for alarm in alarms[:_MAX_ALARMS]],
        "No alarm was raised in this time, and none is open.",
    )
    not_shown = len(alarms) - _MAX_ALARMS
    if not_shown <= 0:
        return listed
    note = tag("p", f"{not_shown:,} older ones are in the JSON document.", class_="empty")
    return join((listed, note))


def _alarm_row(alarm: Alarm, until: datetime) -> tuple[object, ...]:
    lasted = (alarm.cleared_at or until) - alarm.raised_at
    return (
        mark("open", "bad") if alarm.cleared_at is None else mark("cleared", "plain"),
        alarm.level,
        monitor_words(alarm.monitor),
        f"G{alarm.generation}",
        format_number(alarm.effect),
        format_number(alarm.effect_limit),
        format_number(alarm.p),
        _recall_of_novel_arrivals(alarm),
        format_time(alarm.raised_at),
        format_duration(lasted.total_seconds()),
    )


def _recall_of_novel_arrivals(alarm: Alarm) -> str:
    if alarm.recall is None:
        return "unknown"
    then, now = alarm.recall
    return f"{then:.0%} → {now:.0%}"


def _generations(generations: Sequence[Generation]) -> Html:
    newest_first = reversed(generations[-_MAX_GENERATIONS:])
    return table(
        "Generations, newest first",
        ("", "State", "Made by", "Images", "Live since", "Gate"),
        [_generation_row(generation) for generation in newest_first],
        "There is no generation yet.",
    )


def _generation_row(generation: Generation) -> tuple[object, ...]:
    training = generation.config.training
    made: str = training.mode_or_full
    if training.parent is not None:
        made += f" of G{training.parent}"
    live = format_time(generation.live_at)
    if generation.live_at and generation.ended_at:
        live += f", until {format_time(generation.ended_at)}"
    state = generation.display_state
    return (
        f"G{generation.id}",
        mark(state, _STATE_TONES.get(state, "plain")),
        made,
        format_number(finite_number(training.images)),
        live,
        _gate(generation.config.gate),
    )


def _gate(verdict: GateVerdict | None) -> Html:
    if verdict is None:
        return tag("span", "not asked", class_="about")
    outcome = mark("passed", "good") if verdict.passed else mark("refused", "bad")
    # A candidate that passed has no reasons: its recalls are said instead.
    reasons = [one_line(reason, _MAX_REASON_LENGTH) for reason in verdict.reasons[:_MAX_REASONS]]
    said = reasons or _cohort_differences(verdict.cohorts)
    if not said:
        return outcome
    return join((outcome, tag("div", "; ".join(said), class_="about")))


def _cohort_differences(cohorts: Mapping[str, CohortComparison]) -> list[str]:
    """R@10 of the candidate by cohort, and its difference from the live generation's."""
    said = []
    for name, cohort in cohorts.items():
        difference = percentage_points(cohort.candidate_recall - cohort.live_recall)
        said.append(f"{one_line(name, 20)} {percent(cohort.candidate_recall)} ({difference})")
    return said


def _jobs(timeline: Timeline) -> Html:
    return table(
        "How each job went",
        _JOB_HEADINGS,
        [_job_row(summary) for summary in timeline.job_summaries()],
        "No job has run in this time. Start a scheduler: sigma up, or sigma worker scheduler.",
    )


def _job_row(summary: JobSummary) -> tuple[object, ...]:
    failed = summary.runs["failed"]
    median_s = summary.median_s
    return (
        summary.job,
        f"{summary.runs['done']:,}",
        mark(str(failed), "bad") if failed else "0",
        f"{summary.runs['skipped']:,}",
        format_time(summary.last_done_at),
        "—" if median_s is None else format_duration(median_s),
        _last_failure(summary),
    )


def _last_failure(summary: JobSummary) -> str:
    if summary.last_failure is None:
        return "—"
    reason = one_line(summary.last_error or "no reason noted", _MAX_REASON_LENGTH)
    return f"{format_time(summary.last_failure.started_at)}: {reason}"
