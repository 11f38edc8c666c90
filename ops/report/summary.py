"""The summary: a report in a few lines for the terminal."""

from collections.abc import Sequence

from ops.report.documents import DriftReport, RecallReport
from ops.report.figures import COHORTS
from ops.report.timeline import Timeline
from ops.report.words import COHORT_WORDS, figure, moment, monitor_words, percent
from workers.repository.alarms import Alarm


def recall_summary(report: RecallReport) -> str:
    """The newest probe by age, and the alarms."""
    lines = []
    if report.newest is not None:
        lines.append(
            f"probe        {moment(report.newest.at)}, generation {report.newest.generation}; R@10 of {report.newest.queries} queries"
        )
        for name in COHORTS:
            if name in report.newest.cohorts:
                one = report.newest.cohorts[name]
                low, high = one.interval()
                shown = f"{percent(one.ours['R@10']):>6} ({percent(low)} to {percent(high)}), exact {percent(one.exact['R@10'])}"
                lines.append(f"  {COHORT_WORDS[name]:<22} {shown}, {one.queries} queries")
        lines.append(
            f"probes       {len(report.probes)} in this time, {len(report.switches)} switches"
        )
    return "\n".join([*lines, *_tail(report.timeline, report.missing, "recall")])


def drift_summary(report: DriftReport) -> str:
    """The newest look, the monitors nearest to their limits first, and the alarms."""
    lines = []
    if report.newest is not None:
        look = report.newest
        lines.append(
            f"look         {moment(look.at)}, generation {look.generation}; {look.images:,} images"
        )
        for one in sorted(look.readings, key=lambda one: -one.ratio):
            state = "ALARM" if one.alarm else "within limits"
            lines.append(
                f"  {monitor_words(one.monitor):<28} {figure(one.effect):>8} of {figure(one.limit):<8} {state}"
            )
        lines.append(
            f"looks        {len(report.looks)} in this time, {len(report.switches)} switches"
        )
    return "\n".join([*lines, *_tail(report.timeline, report.missing, "drift")])


def _tail(happened: Timeline, missing: Sequence[tuple[str, str]], kind: str) -> list[str]:
    alarms = [
        f"ALARM        {one.level}: {monitor_words(one.monitor)}, {_of(one)}, since {moment(one.raised_at)}"
        for one in happened.open
    ]
    lacking = [f"MISSING      {what}  {command}" for what, command in missing]
    return [
        *(alarms or ["alarms       none open"]),
        *lacking,
        f"as a page:   sigma report {kind} --out {kind}.html",
    ]


def _of(one: Alarm) -> str:
    return f"effect {figure(one.effect)} of {figure(one.effect_limit)}"
