"""The plots of the recall report: over time, of the newest probe run, and by generation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ops.report import colours
from ops.report.documents import RecallReport
from ops.report.formatting import capitalized, percent
from ops.report.plotting import (
    DASHES,
    Canvas,
    Plot,
    annotate_at,
    few_ticks,
    legend,
    make_plot,
    marks_if_few,
    percent_axis,
    plot_time,
    switch_lines,
    time_axis,
)
from ops.report.recorded_runs import ProbeRun, recall_interval
from ops.report.words import COHORT_WORDS
from schemas.job_results import COHORTS, RECALL_CUTOFFS, CohortRecall

# Points of one line: more cannot be told apart on a page.
_MAX_POINTS = 90

# Generations side by side, the newest ones.
_MAX_GENERATIONS = 12

_EXACT_LABEL = "exact search"
_LINE_LABEL = "ours"
_DOT_LABEL = "ours, 95% interval"

# Top of a recall axis: a line at 100% is not cut.
_FULL_RECALL = 1.01


@dataclass(frozen=True, slots=True)
class RecallPoint:
    """R@10 of one cohort in a stretch of time: ours with its interval, and that of exact search."""

    at: datetime
    ours: float
    exact: float
    low: float
    high: float


def recall_plots(report: RecallReport) -> list[Plot]:
    """Draw those plots that there are figures for."""
    plots = []
    if report.probes:
        plots.append(_over_time(report))
    if report.newest is not None:
        plots.append(_newest(report.newest))
    # A comparison needs two.
    if len({probe.generation for probe in report.probes}) > 1:
        plots.append(_by_generation(report.probes))
    return plots


def recall_lines(
    probes: Sequence[ProbeRun], cohort: str, since: datetime, until: datetime
) -> list[list[RecallPoint]]:
    """The lines of one cohort, one for each stretch of one generation.

    Each point is the mean of a stretch of time; there are at most `_MAX_POINTS` in all. Its
    interval is that of one probe run of mean size: runs ask some images again, so an interval of
    all their queries would be too narrow.
    """
    width = max((until - since) / _MAX_POINTS, timedelta(seconds=1))
    lines: list[list[RecallPoint]] = []
    bucket: list[tuple[datetime, CohortRecall]] = []
    generation: int | None = None
    for probe in probes:
        recall = probe.result.cohorts.get(cohort)
        if recall is None:
            continue
        switched = probe.generation != generation
        # A stretch of time ends after its width, and at a switch.
        if bucket and (switched or probe.at - bucket[0][0] >= width):
            lines[-1].append(_mean_point(bucket))
            bucket = []
        if switched:
            lines.append([])
            generation = probe.generation
        bucket.append((probe.at, recall))
    if bucket:
        lines[-1].append(_mean_point(bucket))
    return lines


def _mean_point(bucket: Sequence[tuple[datetime, CohortRecall]]) -> RecallPoint:
    queries = sum(recall.queries for _, recall in bucket)
    ours = sum(recall.ours["R@10"] * recall.queries for _, recall in bucket) / queries
    exact = sum(recall.exact["R@10"] * recall.queries for _, recall in bucket) / queries
    mean_run = CohortRecall(round(queries / len(bucket)), {"R@10": ours}, {})
    low, high = recall_interval(mean_run)
    first = bucket[0][0]
    last = bucket[-1][0]
    # Rounded to whole hits, the interval may miss the mean by a hair.
    return RecallPoint(first + (last - first) / 2, ours, exact, min(low, ours), max(high, ours))


def _over_time(report: RecallReport) -> Plot:
    # A new installation begins at the left edge instead of behind weeks of nothing.
    since = max(report.timeline.since, report.probes[0].at - timedelta(hours=1))
    until = report.timeline.until
    cohorts = _cohorts_of(report.probes)
    lines = {name: recall_lines(report.probes, name, since, until) for name in cohorts}
    floor = _axis_floor(_lowest_of_lines(lines))
    switches = [(switch.at, f"G{switch.generation}") for switch in report.switches]

    def draw(canvas: Canvas) -> Figure:
        height_pt = 150 if canvas.wide else 130
        figure, panels = canvas.panels(len(cohorts), height_pt, share_y=True)
        for name, axes in zip(cohorts, panels, strict=True):
            # The last point of the last line: every cohort here has at least one.
            newest = lines[name][-1][-1]
            _title(axes, name, newest)
            for line in lines[name]:
                _draw_line(axes, line)
            axes.set_ylim(floor, _FULL_RECALL)
            percent_axis(axes)
            time_axis(axes, since, until)
            switch_lines(axes, switches)
        legend(figure, panels[0], (_LINE_LABEL, _EXACT_LABEL))
        return figure

    return make_plot(
        "recall-time",
        "Recall over time, by the age of the image",
        f"Line charts of recall at ten from {since:%-d %B} to {until:%-d %B %Y}, "
        f"one for each age of the image: {_spoken(report.probes[-1])}.",
        "Each panel follows images of one age. The line is our R@10 with its 95% interval, the "
        "dashes are exact search on the same queries, dotted lines mark switches. Look at the "
        "distance between line and dashes: when it grows for young images while exact search stays "
        "level, new images no longer fit the codes. `sigma jobs run recluster` and "
        "`sigma jobs run retrain` correct this.",
        draw,
    )


def _lowest_of_lines(lines: Mapping[str, Sequence[Sequence[RecallPoint]]]) -> float:
    lowest = 1.0
    for parts in lines.values():
        for line in parts:
            for point in line:
                lowest = min(lowest, point.low, point.exact)
    return lowest


def _title(axes: Axes, cohort: str, newest: RecallPoint) -> None:
    axes.set_title(capitalized(COHORT_WORDS[cohort]), pad=19)
    figures = f"{percent(newest.ours)} · exact {percent(newest.exact)}"
    annotate_at(axes, figures, (0, 1), (0, 6), va="bottom", fontsize=9.5)


def _draw_line(axes: Axes, line: Sequence[RecallPoint]) -> None:
    times = [plot_time(point.at) for point in line]
    lows = [point.low for point in line]
    highs = [point.high for point in line]
    marks = marks_if_few(len(line))
    # The underscore keeps the interval out of the legend.
    axes.fill_between(
        times, lows, highs, color=colours.OURS, alpha=0.16, linewidth=0, label="_interval"
    )
    if marks:
        # The band of a single point has no width, so its interval is drawn as a line.
        axes.vlines(times, lows, highs, color=colours.OURS, linewidth=1.4, alpha=0.6)
    axes.plot(
        times,
        [point.exact for point in line],
        color=colours.EXACT,
        linewidth=1.3,
        linestyle=DASHES,
        label=_EXACT_LABEL,
        **marks,
    )
    axes.plot(
        times,
        [point.ours for point in line],
        color=colours.OURS,
        label=_LINE_LABEL,
        **marks,
    )


def _newest(probe: ProbeRun) -> Plot:
    # The first row of a plot is at the bottom.
    bottom_up = list(reversed(_cohorts_of([probe])))

    def draw(canvas: Canvas) -> Figure:
        rows_pt = 30 * len(bottom_up) + 44
        if canvas.wide:
            figure = canvas.figure(rows_pt + 40)
            grid = figure.subplots(1, 3, sharey=True, squeeze=False)
        else:
            figure = canvas.figure(3 * rows_pt + 40)
            grid = figure.subplots(3, 1, squeeze=False)
        for cutoff, axes in zip(RECALL_CUTOFFS, grid.flat, strict=True):
            _draw_cutoff(axes, probe, bottom_up, cutoff)
        legend(figure, grid.flat[0], (_DOT_LABEL, _EXACT_LABEL))
        return figure

    return make_plot(
        "recall-newest",
        "The newest probe run, by the age of the image",
        f"Dot plot of recall at one, five and ten of generation {probe.generation}, "
        f"ours beside exact search: {_spoken(probe)}.",
        f"The probe run of {probe.at:%-d %B %Y %H:%M} UTC on generation {probe.generation}, "
        f"{probe.result.queries} queries. Dots are ours with their 95% interval, diamonds are "
        "exact search. A dot far left of its diamond loses images that the embedding could have "
        "found: more beams or more postings for each image (`SIGMA_BEAMS`, `SIGMA_POSTINGS`) "
        "close that distance, but take more time.",
        draw,
    )


def _draw_cutoff(axes: Axes, probe: ProbeRun, cohorts: Sequence[str], cutoff: str) -> None:
    lowest = 1.0
    for row, name in enumerate(cohorts):
        recall = probe.result.cohorts[name]
        ours = recall.ours[cutoff]
        exact = recall.exact[cutoff]
        low, high = recall_interval(recall, cutoff)
        lowest = min(lowest, low, exact)
        # A grey bar joins both marks, so that their distance is seen at once.
        axes.plot([ours, exact], [row, row], color=colours.GRID, linewidth=5, zorder=1)
        axes.plot([low, high], [row, row], color=colours.OURS, linewidth=1.6, zorder=2)
        _draw_diamond(axes, exact, row, size_pt=6, zorder=3)
        _draw_dot(axes, ours, row, size_pt=8, zorder=4)
    axes.set_title(cutoff)
    axes.set_yticks(range(len(cohorts)), [COHORT_WORDS[name] for name in cohorts])
    axes.tick_params(axis="y", labelcolor=colours.TEXT)
    axes.set_ylim(-0.6, len(cohorts) - 0.4)
    axes.set_xlim(_axis_floor(lowest), 1.0)
    axes.xaxis.set_major_locator(few_ticks())
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    percent_axis(axes, "x")


def _by_generation(probes: Sequence[ProbeRun]) -> Plot:
    numbers = sorted({probe.generation for probe in probes})[-_MAX_GENERATIONS:]
    shown = [probe for probe in probes if probe.generation in numbers]
    cohorts = _cohorts_of(shown)
    last = _last_recalls(shown)
    lowest = 1.0
    for recall in last.values():
        lowest = min(lowest, recall_interval(recall)[0], recall.exact["R@10"])

    def draw(canvas: Canvas) -> Figure:
        height_pt = 140 if canvas.wide else 120
        figure, panels = canvas.panels(len(cohorts), height_pt, share_y=True)
        for name, axes in zip(cohorts, panels, strict=True):
            for column, generation in enumerate(numbers):
                if (name, generation) in last:
                    _draw_generation(axes, column, last[name, generation])
            axes.set_title(capitalized(COHORT_WORDS[name]))
            axes.set_xticks(range(len(numbers)), [f"G{number}" for number in numbers])
            axes.set_xlim(-0.6, len(numbers) - 0.4)
            axes.set_ylim(_axis_floor(lowest), _FULL_RECALL)
            percent_axis(axes)
        legend(figure, panels[0], (_DOT_LABEL, _EXACT_LABEL))
        return figure

    spoken = "; ".join(_spoken_generation(number, cohorts, last) for number in numbers)
    return make_plot(
        "recall-generation",
        "Recall by generation",
        f"Dot plots of recall at ten by generation, one for each age of the image. {spoken}.",
        "Each generation's R@10 in the last probe run while it was live. Dots whose intervals "
        "overlap widely show no clear difference; a generation that is clearly below the one "
        "before it for any age should be rolled back: `sigma generations rollback`.",
        draw,
    )


def _last_recalls(probes: Iterable[ProbeRun]) -> dict[tuple[str, int], CohortRecall]:
    """Recall by cohort and generation in the last of the probe runs that has it."""
    last: dict[tuple[str, int], CohortRecall] = {}
    for probe in probes:
        for name, recall in probe.result.cohorts.items():
            last[name, probe.generation] = recall
    return last


def _draw_generation(axes: Axes, column: int, recall: CohortRecall) -> None:
    low, high = recall_interval(recall)
    axes.plot([column, column], [low, high], color=colours.OURS, linewidth=1.6)
    _draw_diamond(axes, column, recall.exact["R@10"], size_pt=5.5)
    _draw_dot(axes, column, recall.ours["R@10"], size_pt=7)


def _draw_dot(axes: Axes, x: float, y: float, *, size_pt: float, zorder: float = 2) -> None:
    axes.plot(
        [x],
        [y],
        "o",
        color=colours.OURS,
        markersize=size_pt,
        zorder=zorder,
        clip_on=False,
        label=_DOT_LABEL,
    )


def _draw_diamond(axes: Axes, x: float, y: float, *, size_pt: float, zorder: float = 2) -> None:
    axes.plot(
        [x],
        [y],
        "D",
        color=colours.EXACT,
        markersize=size_pt,
        zorder=zorder,
        clip_on=False,
        label=_EXACT_LABEL,
    )


def _cohorts_of(probes: Sequence[ProbeRun]) -> list[str]:
    """Cohorts that at least one probe run asked for, youngest first."""
    present: set[str] = set()
    for probe in probes:
        present.update(probe.result.cohorts)
    return [name for name in COHORTS if name in present]


def _axis_floor(lowest: float) -> float:
    """Where a recall axis begins: a round figure below everything, so that small moves are seen."""
    return max(0.0, int((lowest - 0.02) * 10) / 10)


def _spoken(probe: ProbeRun) -> str:
    parts = []
    for name, recall in probe.result.cohorts.items():
        ours = percent(recall.ours["R@10"])
        parts.append(f"{COHORT_WORDS[name]} {ours}, exact search {percent(recall.exact['R@10'])}")
    return "; ".join(parts)


def _spoken_generation(
    number: int, cohorts: Sequence[str], last: Mapping[tuple[str, int], CohortRecall]
) -> str:
    parts = []
    for name in cohorts:
        if (name, number) in last:
            ours = percent(last[name, number].ours["R@10"])
            parts.append(f"{ours} {COHORT_WORDS[name]}")
    return f"generation {number}: {', '.join(parts)}"
