"""The plots of the drift report: monitors now and over time, code histograms, and leaf loads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ops.report import colours
from ops.report.documents import DriftReport
from ops.report.formatting import format_number, percent
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
from ops.report.recorded_runs import DriftCheck, perplexity
from ops.report.words import monitor_words
from schemas.job_results import CodeShares, MonitorReading
from workers.repository.alarms import Alarm

# Points of one line: more cannot be told apart on a page.
_MAX_POINTS = 120

# Bars of a code histogram: neighbouring codes share a bar beyond that.
_MAX_BARS = 64

# Monitors drawn over time, those nearest to their limit first.
_MAX_MONITORS = 24

# Longest bar, in multiples of the limit. A larger effect has its figure beside the bar.
_MAX_BAR_RATIO = 3.0

# Least length of the axis, in multiples of the limit: figures fit beside the line of the limit.
_MIN_AXIS_RATIO = 1.45


@dataclass(frozen=True, slots=True)
class _LeafPanel:
    """One figure of the leaves over time."""

    title: str
    value: Callable[[DriftCheck], float | None]


_LEAF_PANELS = (
    _LeafPanel("Gini of the leaf loads", lambda check: check.result.leaf.gini),
    _LeafPanel("Images in a leaf, p99", lambda check: check.result.leaf.p99),
)
_PRESSURE_PANEL = _LeafPanel(
    "Images in nearly full leaves", lambda check: check.result.suffix_pressure
)


def drift_plots(report: DriftReport) -> list[Plot]:
    """Draw those plots that there are figures for."""
    plots = []
    if report.newest is not None:
        plots.append(_now(report.newest))
    if report.checks:
        plots.append(_over_time(report))
    if report.newest is not None and report.newest.result.histograms:
        plots.append(_histograms(report.newest.result.histograms))
    # Early versions recorded no leaf loads.
    with_leaves = [check for check in report.checks if check.result.leaf.to_json()]
    if with_leaves:
        plots.append(_leaves(report, with_leaves))
    return plots


def monitor_lines(
    checks: Sequence[DriftCheck], monitor: str, since: datetime, until: datetime
) -> list[list[tuple[datetime, MonitorReading]]]:
    """The lines of one monitor, one for each stretch of one generation.

    There are at most `_MAX_POINTS` readings in all, and one more for each switch. Of several
    readings in one place, the one nearest to its limit is kept, so no alarm is lost.
    """
    width = max((until - since) / _MAX_POINTS, timedelta(seconds=1))
    lines: list[dict[int, tuple[datetime, MonitorReading]]] = []
    generation: int | None = None
    for check in checks:
        for reading in check.result.monitors:
            if reading.monitor != monitor:
                continue
            if check.generation != generation:
                lines.append({})
                generation = check.generation
            line = lines[-1]
            # Readings of one place would be drawn over each other.
            place = int((check.at - since) / width)
            if place not in line or _severity(reading) > _severity(line[place][1]):
                line[place] = (check.at, reading)
    return [[line[place] for place in sorted(line)] for line in lines]


def _severity(reading: MonitorReading) -> tuple[bool, float]:
    return reading.alarm, reading.ratio


def fold_codes(shares: Sequence[float], max_bars: int = _MAX_BARS) -> list[float]:
    """A histogram of at most `max_bars` bars: the shares of neighbouring codes added up."""
    codes_per_bar = _codes_per_bar(len(shares), max_bars)
    bars = []
    for start in range(0, len(shares), codes_per_bar):
        bars.append(sum(shares[start : start + codes_per_bar]))
    return bars


def _codes_per_bar(codes: int, max_bars: int = _MAX_BARS) -> int:
    return -(-codes // max_bars)


def _now(check: DriftCheck) -> Plot:
    # The first row of a plot is at the bottom: the monitor nearest to its limit comes last.
    readings = sorted(check.result.monitors, key=lambda reading: reading.ratio)
    longest = min(readings[-1].ratio, _MAX_BAR_RATIO)

    def draw(canvas: Canvas) -> Figure:
        figure = canvas.figure(27 * len(readings) + 52)
        axes = figure.subplots()
        for row, reading in enumerate(readings):
            _draw_bar(axes, row, reading)
        axes.axvline(1, color=colours.LIMIT, linewidth=1.6, linestyle=DASHES, label="limit")
        names = [monitor_words(reading.monitor) for reading in readings]
        axes.set_yticks(range(len(readings)), names)
        axes.tick_params(axis="y", labelcolor=colours.TEXT)
        axes.set_ylim(-0.6, len(readings) - 0.4)
        # Room for the figures beside the longest bar.
        room = 1.3 if canvas.wide else 1.6
        axes.set_xlim(0, max(_MIN_AXIS_RATIO, longest * room))
        axes.set_xlabel("effect, in units of its limit")
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        legend(figure, axes, ("within its limits", "alarm", "limit"))
        return figure

    spoken = "; ".join(map(_spoken_reading, reversed(readings)))
    return make_plot(
        "drift-now",
        "How near each monitor is to its limit",
        f"Bar chart of the effect of each monitor as a share of its limit. {spoken}.",
        f"The drift check of {check.at:%-d %B %Y %H:%M} UTC on {check.result.images:,} images. A "
        "bar beyond the dashed line alone is no alarm: its p-value must be small too, so that a "
        "small sample cannot raise one. Long bars of the codes and the embedding together mean "
        "that new kinds of images arrive; the score and confidence bars say whether the model "
        "still handles them well.",
        draw,
    )


def _draw_bar(axes: Axes, row: int, reading: MonitorReading) -> None:
    length = min(reading.ratio, _MAX_BAR_RATIO)
    figures = f"{format_number(reading.effect)} of {format_number(reading.effect_limit)}"
    axes.barh(
        [row],
        [length],
        height=0.56,
        color=colours.BAD if reading.alarm else colours.OURS,
        label="alarm" if reading.alarm else "within its limits",
    )
    axes.annotate(
        f"{figures}  alarm" if reading.alarm else figures,
        (length, row),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=9.5,
        color=colours.MUTED,
    )


def _spoken_reading(reading: MonitorReading) -> str:
    effect = f"{format_number(reading.effect)} of {format_number(reading.effect_limit)}"
    return f"{monitor_words(reading.monitor)} {effect}"


def _over_time(report: DriftReport) -> Plot:
    since, until = _time_span(report, report.checks)
    names = _monitors_by_ratio(report.checks)[:_MAX_MONITORS]
    lines = {name: monitor_lines(report.checks, name, since, until) for name in names}
    switches = _named_switches(report)

    def draw(canvas: Canvas) -> Figure:
        figure, panels = canvas.panels(len(names), 128)
        for name, axes in zip(names, panels, strict=True):
            _draw_monitor(axes, lines[name])
            axes.set_title(monitor_words(name))
            time_axis(axes, since, until)
            _shade_alarms(axes, name, report.timeline.alarms, until)
            switch_lines(axes, switches)
        legend(figure, panels[0], ("effect", "limit", "an alarm"))
        return figure

    return make_plot(
        "drift-time",
        "Each monitor over time",
        f"Line charts of the effect of {len(names)} monitors with their limits. "
        f"{_spoken_alarms(lines)}",
        "The line is the effect, the dashes its limit, dots are drift checks with an alarm, shaded "
        "stretches are times with an open alarm, dotted lines mark switches. A slow rise towards "
        "the limit is a gradual shift; a step is a new source of images or a fault. After a switch "
        "the reference is new and the effect should fall.",
        draw,
    )


def _monitors_by_ratio(checks: Iterable[DriftCheck]) -> list[str]:
    """Names of all monitors, those nearest to their limit in their newest reading first."""
    newest: dict[str, float] = {}
    for check in checks:
        for reading in check.result.monitors:
            newest[reading.monitor] = reading.ratio
    return sorted(newest, key=lambda name: -newest[name])


def _draw_monitor(axes: Axes, lines: Sequence[Sequence[tuple[datetime, MonitorReading]]]) -> None:
    lowest = 0.0
    # Above 0, so that the axis has a height where everything is 0.
    highest = 1e-9
    for line in lines:
        times = [plot_time(at) for at, _ in line]
        effects = [reading.effect for _, reading in line]
        limits = [reading.effect_limit for _, reading in line]
        marks = marks_if_few(len(line))
        axes.plot(
            times,
            limits,
            color=colours.LIMIT,
            linewidth=1.4,
            linestyle=DASHES,
            label="limit",
            **marks,
        )
        axes.plot(times, effects, color=colours.OURS, label="effect", **marks)
        _draw_alarm_dots(axes, line)
        lowest = min(lowest, *effects, *limits)
        highest = max(highest, *effects, *limits)
    axes.set_ylim(lowest, highest * 1.15)
    axes.yaxis.set_major_locator(few_ticks())


def _draw_alarm_dots(axes: Axes, line: Sequence[tuple[datetime, MonitorReading]]) -> None:
    times = []
    effects = []
    for at, reading in line:
        if reading.alarm:
            times.append(plot_time(at))
            effects.append(reading.effect)
    # Drawn even when there are none: the legend takes its marks from the first panel.
    axes.plot(
        times,
        effects,
        "o",
        color=colours.BAD,
        markersize=4,
        label="an alarm",
    )


def _shade_alarms(axes: Axes, monitor: str, alarms: Iterable[Alarm], until: datetime) -> None:
    for alarm in alarms:
        if alarm.monitor == monitor:
            begin = plot_time(alarm.raised_at)
            end = plot_time(alarm.cleared_at or until)
            axes.axvspan(begin, end, color=colours.BAD, alpha=0.12, linewidth=0)


def _spoken_alarms(
    lines: Mapping[str, Sequence[Sequence[tuple[datetime, MonitorReading]]]],
) -> str:
    alarming = []
    for name, parts in lines.items():
        if any(reading.alarm for line in parts for _, reading in line):
            alarming.append(monitor_words(name))
    if not alarming:
        return "None was an alarm in this time."
    return f"Beyond their limits at some time: {', '.join(alarming)}."


def _histograms(histograms: Mapping[str, CodeShares]) -> Plot:
    def draw(canvas: Canvas) -> Figure:
        # Four levels in two rows; a row of the database may have recorded fewer.
        figure, panels = canvas.panels(len(histograms), 138, columns=2)
        for (level, histogram), axes in zip(histograms.items(), panels, strict=True):
            _draw_codes(axes, level, histogram)
        legend(figure, panels[0], ("now", "reference"))
        return figure

    moved = []
    codes_in_use = []
    for level, histogram in histograms.items():
        share = percent(histogram.moved)
        moved.append(f"{level}: {share} of the images would have to change code")
        then = perplexity(histogram.then)
        now = perplexity(histogram.now)
        codes_in_use.append(f"{level} {then:.1f} and {now:.1f}")
    return make_plot(
        "codes",
        "Codes in the reference and now",
        f"Histograms of the codes of each level, in the reference and now. {'; '.join(moved)}.",
        "How often each code is given: bars are the newest images, outlines the reference. The "
        "figure beside a level is the share of images that would have to change their code for "
        f"both to agree. Codes in use, in the reference and now: {', '.join(codes_in_use)}. A few "
        "bars far above their outlines are a new topic; many empty ones mean that the codebook no "
        "longer fits and that re-clustering will help.",
        draw,
    )


def _draw_codes(axes: Axes, level: str, histogram: CodeShares) -> None:
    codes = len(histogram.now)
    now = fold_codes(histogram.now)
    then = fold_codes(histogram.then)
    # Bars are centred at whole numbers, so an outline has its edges between them.
    edges = [bar - 0.5 for bar in range(len(then) + 1)]
    axes.bar(range(len(now)), now, width=0.82, color=colours.OURS, label="now")
    axes.stairs(then, edges, color=colours.REFERENCE, linewidth=1.5, label="reference")
    axes.set_title(level, pad=8)
    note = f"{percent(histogram.moved)} moved, {codes} codes"
    if _codes_per_bar(codes) > 1:
        note += f", {_codes_per_bar(codes)} to a bar"
    annotate_at(axes, note, (1, 1), (0, 8), ha="right", fontsize=9.5)
    axes.set_xlim(-0.7, len(now) - 0.3)
    axes.xaxis.set_major_locator(few_ticks(whole=True))
    axes.yaxis.set_major_locator(few_ticks())
    percent_axis(axes)


def _leaves(report: DriftReport, checks: Sequence[DriftCheck]) -> Plot:
    """`checks` are those that recorded leaf loads, oldest first."""
    since, until = _time_span(report, checks)
    shown = _thinned(checks)
    panels = list(_LEAF_PANELS)
    if any(check.result.suffix_pressure is not None for check in shown):
        panels.append(_PRESSURE_PANEL)
    switches = _named_switches(report)

    def draw(canvas: Canvas) -> Figure:
        if canvas.wide:
            figure = canvas.figure(136)
            grid = figure.subplots(1, len(panels), squeeze=False)
        else:
            figure = canvas.figure(118 * len(panels))
            grid = figure.subplots(len(panels), 1, squeeze=False)
        for panel, axes in zip(panels, grid.flat, strict=True):
            _draw_leaf_panel(axes, panel, shown)
            time_axis(axes, since, until)
            switch_lines(axes, switches)
        return figure

    return make_plot(
        "leaves",
        "How full the leaves are",
        f"Line charts of the leaf loads over time. Newest: {_spoken_leaves(shown[-1])}.",
        "A rising Gini or p99 means that arrivals crowd into few leaves: queries that reach them "
        "rank more candidates and get slower. Images whose leaf is full spill to their next best "
        "one. Re-clustering spreads them: `sigma jobs run recluster`.",
        draw,
    )


def _thinned(checks: Sequence[DriftCheck]) -> list[DriftCheck]:
    """At most `_MAX_POINTS` checks, evenly spread; the newest one is always kept."""
    step = -(-len(checks) // _MAX_POINTS)
    newest_first = checks[::-1][::step]
    return list(reversed(newest_first))


def _draw_leaf_panel(axes: Axes, panel: _LeafPanel, checks: Iterable[DriftCheck]) -> None:
    times = []
    values = []
    for check in checks:
        value = panel.value(check)
        if value is not None:
            times.append(plot_time(check.at))
            values.append(value)
    axes.plot(times, values, color=colours.OURS, **marks_if_few(len(times)))
    axes.set_title(panel.title)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(few_ticks())


def _spoken_leaves(check: DriftCheck) -> str:
    loads = check.result.leaf
    named = {
        "gini": loads.gini,
        "p99": loads.p99,
        "max": loads.max,
        "suffix pressure": check.result.suffix_pressure,
    }
    parts = []
    for name, value in named.items():
        if value is not None:
            parts.append(f"{name} {format_number(value)}")
    return ", ".join(parts)


def _time_span(report: DriftReport, checks: Sequence[DriftCheck]) -> tuple[datetime, datetime]:
    """What a time axis shows. A new installation begins at its left edge, not after empty weeks."""
    first = checks[0].at - timedelta(hours=1)
    return max(report.timeline.since, first), report.timeline.until


def _named_switches(report: DriftReport) -> list[tuple[datetime, str]]:
    return [(switch.at, f"G{switch.generation}") for switch in report.switches]
