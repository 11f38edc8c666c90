"""A report in a few lines of text for the terminal."""

from collections.abc import Sequence

from ops.report.documents import DriftReport, RecallReport
from ops.report.early_arrivals import early_sentence
from ops.report.formatting import format_number, format_time, percent
from ops.report.recorded_runs import recall_interval
from ops.report.timeline import Timeline
from ops.report.words import COHORT_WORDS, monitor_words
from schemas.job_results import CohortRecall, MonitorReading
from workers.repository.alarms import Alarm


def recall_summary(report: RecallReport) -> str:
    """The newest probe by age of the image, and the alarms."""
    lines: list[str] = []
    if report.newest is not None:
        result = report.newest.result
        lines.append(
            f"probe        {format_time(report.newest.at)}, generation {result.generation}; "
            f"R@10 of {result.queries} queries"
        )
        for name, recall in result.cohorts.items():
            lines.append(_cohort_line(name, recall))
        switches = len(report.switches)
        lines.append(f"probes       {len(report.probes)} in this time, {switches} switches")
    lines += _closing_lines(report.timeline, report.missing, "recall")
    return "\n".join(lines)


def drift_summary(report: DriftReport) -> str:
    """The newest drift check, monitors nearest to their limits first, and the alarms."""
    lines: list[str] = []
    if report.newest is not None:
        result = report.newest.result
        lines.append(
            f"check        {format_time(report.newest.at)}, generation {result.generation}; "
            f"{result.images:,} images"
        )
        nearest_first = sorted(result.monitors, key=lambda reading: -reading.ratio)
        lines += map(_monitor_line, nearest_first)
        switches = len(report.switches)
        lines.append(f"checks       {len(report.checks)} in this time, {switches} switches")
    if report.early is not None:
        lines.append(f"so far       {early_sentence(report.early)}")
    lines += _closing_lines(report.timeline, report.missing, "drift")
    return "\n".join(lines)


def _cohort_line(name: str, recall: CohortRecall) -> str:
    low, high = recall_interval(recall)
    ours = f"{percent(recall.ours['R@10']):>6} ({percent(low)} to {percent(high)})"
    exact = percent(recall.exact["R@10"])
    return f"  {COHORT_WORDS[name]:<22} {ours}, exact {exact}, {recall.queries} queries"


def _monitor_line(reading: MonitorReading) -> str:
    state = "ALARM" if reading.alarm else "within limits"
    effect = f"{format_number(reading.effect):>8} of {format_number(reading.effect_limit):<8}"
    return f"  {monitor_words(reading.monitor):<28} {effect} {state}"


def _closing_lines(timeline: Timeline, missing: Sequence[tuple[str, str]], kind: str) -> list[str]:
    alarms = [_alarm_line(alarm) for alarm in timeline.open_alarms]
    return [
        *(alarms or ["alarms       none open"]),
        *(f"MISSING      {what}  {command}" for what, command in missing),
        f"as a page:   sigma report {kind} --out {kind}.html",
    ]


def _alarm_line(alarm: Alarm) -> str:
    effect = f"effect {format_number(alarm.effect)} of {format_number(alarm.effect_limit)}"
    since = format_time(alarm.raised_at)
    return f"ALARM        {alarm.level}: {monitor_words(alarm.monitor)}, {effect}, since {since}"
