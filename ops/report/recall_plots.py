"""The recall report's plots: over time by age, by generation, and the newest probe beside exact search."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ops.report import ink
from ops.report.documents import RecallReport
from ops.report.figures import COHORTS, CUTOFFS, Probe, Recall
from ops.report.ink import Plot, Sheet
from ops.report.words import COHORT_WORDS, percent

_POINTS = 90
"""Points of one line: more cannot be told apart on a page."""

_GENERATIONS = 12
"""Generations side by side, the newest ones."""


@dataclass(frozen=True, slots=True)
class Point:
    """Recall of one cohort in a stretch of time: R@10 of both, and the interval of ours."""

    at: datetime
    ours: float
    exact: float
    low: float
    high: float


def recall_plots(report: RecallReport) -> list[Plot]:
    """All of them that there are figures for."""
    found = []
    if report.probes:
        found.append(_over_time(report))
    if report.newest is not None:
        found.append(_newest(report.newest))
    if len({one.generation for one in report.probes}) > 1:
        found.append(_by_generation(report.probes))
    return found


def thinned(
    probes: Sequence[Probe], cohort: str, since: datetime, until: datetime
) -> list[list[Point]]:
    """Lines of one cohort, one for each stretch of one generation: at most `_POINTS` points in all, each the mean of its stretch.

    The interval is that of one probe of mean size: probes ask some images again, so a pooled one would promise too much.
    """
    width = max((until - since) / _POINTS, timedelta(seconds=1))
    lines: list[list[Point]] = []
    bucket: list[tuple[Probe, Recall]] = []
    generation: int | None = None
    for probe in probes:
        if cohort not in probe.cohorts:
            continue
        if bucket and (probe.generation != generation or probe.at - bucket[0][0].at >= width):
            lines[-1].append(_mean(bucket))
            bucket = []
        if probe.generation != generation:
            lines.append([])
            generation = probe.generation
        bucket.append((probe, probe.cohorts[cohort]))
    if bucket:
        lines[-1].append(_mean(bucket))
    return lines


def _mean(bucket: Sequence[tuple[Probe, Recall]]) -> Point:
    total = sum(one.queries for _, one in bucket)
    ours, exact = (
        sum(getattr(one, name)["R@10"] * one.queries for _, one in bucket) / total
        for name in ("ours", "exact")
    )
    low, high = Recall(round(total / len(bucket)), {"R@10": ours}, {}).interval()
    middle = bucket[0][0].at + (bucket[-1][0].at - bucket[0][0].at) / 2
    return Point(middle, ours, exact, min(low, ours), max(high, ours))


def _present(probes: Sequence[Probe]) -> list[str]:
    return [name for name in COHORTS if any(name in one.cohorts for one in probes)]


def _floor(lowest: float) -> float:
    """Where the axis of recall begins: a round figure below everything, so that small moves can be seen."""
    return max(0.0, int((lowest - 0.02) * 10) / 10)


def _over_time(report: RecallReport) -> Plot:
    since, until = (
        max(report.timeline.since, report.probes[0].at - timedelta(hours=1)),
        report.timeline.until,
    )
    names = _present(report.probes)
    lines = {name: thinned(report.probes, name, since, until) for name in names}
    lowest = min(
        min(point.low, point.exact) for parts in lines.values() for part in parts for point in part
    )

    def draw(sheet: Sheet) -> Figure:
        figure, panels = sheet.panels(len(names), 150 if sheet.wide else 130)
        for name, axes in zip(names, panels, strict=True):
            last = lines[name][-1][-1]
            _title(axes, COHORT_WORDS[name], f"{percent(last.ours)} · exact {percent(last.exact)}")
            for part in lines[name]:
                _line(axes, part)
            axes.set_ylim(_floor(lowest), 1.01)
            ink.percent_axis(axes)
            ink.time_axis(axes, since, until)
            ink.switch_lines(axes, [(one.at, f"G{one.generation}") for one in report.switches])
        ink.legend(figure, panels[0], ("ours", "exact search"))
        return figure

    last = report.probes[-1]
    return ink.plot(
        "recall-time",
        "Recall over time, by the age of the image",
        f"Line charts of recall at ten from {since:%-d %B} to {until:%-d %B %Y}, one for each age of the image: {_spoken(last)}.",
        "Each panel follows images of one age. The line is our R@10 with its 95% interval, the dashes are exact search on the same "
        "queries, dotted lines mark switches. Look at the distance between line and dashes: when it grows for young images while exact "
        "search stays level, new images no longer fit the codes. `sigma jobs run recluster` and `sigma jobs run retrain` are the cures.",
        draw,
    )


def _line(axes: Axes, part: Sequence[Point]) -> None:
    times = [ink.moment(point.at) for point in part]
    axes.fill_between(
        times,
        [point.low for point in part],
        [point.high for point in part],
        color=ink.OURS,
        alpha=0.16,
        linewidth=0,
        label="_interval",
    )
    alone = ink.marks_if_few(len(part))
    if alone:
        axes.vlines(
            times,
            [point.low for point in part],
            [point.high for point in part],
            color=ink.OURS,
            linewidth=1.4,
            alpha=0.6,
        )
    axes.plot(
        times,
        [point.exact for point in part],
        color=ink.EXACT,
        linewidth=1.3,
        linestyle=(0, (4, 2)),
        label="exact search",
        **alone,
    )
    axes.plot(times, [point.ours for point in part], color=ink.OURS, label="ours", **alone)


def _title(axes: Axes, name: str, figures: str) -> None:
    axes.set_title(name[:1].upper() + name[1:], pad=19)
    inside: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(
        figures, (0, 1), xytext=(0, 6), va="bottom", fontsize=9.5, color=ink.MUTED, **inside
    )


def _newest(probe: Probe) -> Plot:
    names = [name for name in COHORTS if name in probe.cohorts][::-1]

    def draw(sheet: Sheet) -> Figure:
        rows = 30 * len(names) + 44
        figure = sheet.figure(rows + 40 if sheet.wide else 3 * rows + 40)
        grid = (
            figure.subplots(1, 3, sharey=True, squeeze=False)
            if sheet.wide
            else figure.subplots(3, 1, squeeze=False)
        )
        for cutoff, axes in zip(CUTOFFS, grid.flat, strict=True):
            _dumbbells(axes, probe, names, cutoff)
        ink.legend(figure, grid.flat[0], ("ours, 95% interval", "exact search"))
        return figure

    return ink.plot(
        "recall-newest",
        "The newest probe, by the age of the image",
        f"Dot plot of recall at one, five and ten of generation {probe.generation}, ours beside exact search: {_spoken(probe)}.",
        f"The probe of {probe.at:%-d %B %Y %H:%M} UTC on generation {probe.generation}, {probe.queries} queries. Dots are ours with their "
        "95% interval, diamonds are exact search. A dot far left of its diamond loses images that the embedding could have found: more "
        "beams or more postings an image (`SIGMA_BEAMS`, `SIGMA_POSTINGS`) close that distance at the price of time.",
        draw,
    )


def _dumbbells(axes: Axes, probe: Probe, names: Sequence[str], cutoff: str) -> None:
    for row, name in enumerate(names):
        one = probe.cohorts[name]
        low, high = one.interval(cutoff)
        axes.plot(
            [one.ours[cutoff], one.exact[cutoff]], [row, row], color=ink.GRID, linewidth=5, zorder=1
        )
        axes.plot([low, high], [row, row], color=ink.OURS, linewidth=1.6, zorder=2)
        axes.plot(
            [one.exact[cutoff]],
            [row],
            "D",
            color=ink.EXACT,
            markersize=6,
            zorder=3,
            clip_on=False,
            label="exact search",
        )
        axes.plot(
            [one.ours[cutoff]],
            [row],
            "o",
            color=ink.OURS,
            markersize=8,
            zorder=4,
            clip_on=False,
            label="ours, 95% interval",
        )
    axes.set_title(cutoff)
    axes.set_yticks(range(len(names)), [COHORT_WORDS[name] for name in names])
    axes.tick_params(axis="y", labelcolor=ink.TEXT)
    axes.set_ylim(-0.6, len(names) - 0.4)
    lowest = min(
        min(probe.cohorts[name].interval(cutoff)[0], probe.cohorts[name].exact[cutoff])
        for name in names
    )
    axes.set_xlim(_floor(lowest), 1.0)
    axes.xaxis.set_major_locator(ink.few_ticks())
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    ink.percent_axis(axes, "x")


def _by_generation(probes: Sequence[Probe]) -> Plot:
    numbers = sorted({one.generation for one in probes})[-_GENERATIONS:]
    names = _present([one for one in probes if one.generation in numbers])
    last = {
        (name, one.generation): one.cohorts[name]
        for one in probes
        for name in names
        if name in one.cohorts
    }

    def draw(sheet: Sheet) -> Figure:
        figure, panels = sheet.panels(len(names), 140 if sheet.wide else 120)
        shown = {key: one for key, one in last.items() if key[1] in numbers}
        lowest = min(min(one.interval()[0], one.exact["R@10"]) for one in shown.values())
        for name, axes in zip(names, panels, strict=True):
            for at, generation in enumerate(numbers):
                if (name, generation) in last:
                    _generation(axes, at, last[name, generation])
            first = COHORT_WORDS[name]
            axes.set_title(first[:1].upper() + first[1:])
            axes.set_xticks(range(len(numbers)), [f"G{number}" for number in numbers])
            axes.set_xlim(-0.6, len(numbers) - 0.4)
            axes.set_ylim(_floor(lowest), 1.01)
            ink.percent_axis(axes)
        ink.legend(figure, panels[0], ("ours, 95% interval", "exact search"))
        return figure

    spoken = "; ".join(
        f"generation {number}: "
        + ", ".join(
            f"{percent(last[name, number].ours['R@10'])} {COHORT_WORDS[name]}"
            for name in names
            if (name, number) in last
        )
        for number in numbers
    )
    return ink.plot(
        "recall-generation",
        "Recall by generation",
        f"Dot plots of recall at ten by generation, one for each age of the image. {spoken}.",
        "Each generation's R@10 in the last probe while it was live. Dots whose intervals overlap widely are no news; a generation that "
        "stands clearly below the one before it for any age should go back: `sigma generations rollback`.",
        draw,
    )


def _generation(axes: Axes, at: int, one: Recall) -> None:
    low, high = one.interval()
    axes.plot([at, at], [low, high], color=ink.OURS, linewidth=1.6)
    axes.plot(
        [at],
        [one.exact["R@10"]],
        "D",
        color=ink.EXACT,
        markersize=5.5,
        clip_on=False,
        label="exact search",
    )
    axes.plot(
        [at],
        [one.ours["R@10"]],
        "o",
        color=ink.OURS,
        markersize=7,
        clip_on=False,
        label="ours, 95% interval",
    )


def _spoken(probe: Probe) -> str:
    return "; ".join(
        f"{COHORT_WORDS[name]} {percent(one.ours['R@10'])}, exact search {percent(one.exact['R@10'])}"
        for name, one in probe.cohorts.items()
    )
