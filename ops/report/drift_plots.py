"""The drift report's plots: the monitors now and over time, code histograms then and now, and how full the leaves are."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ops.report import ink
from ops.report.documents import DriftReport
from ops.report.figures import Histogram, Look, Reading, perplexity
from ops.report.ink import Plot, Sheet
from ops.report.words import figure as worded
from ops.report.words import monitor_words, percent
from workers.repository.alarms import Alarm

_POINTS = 120
"""Points of one line: more cannot be told apart on a page."""

_BARS = 64
"""Codes of a level that are drawn; neighbours share a bar beyond that."""

_MONITORS = 24
"""Monitors drawn over time, those nearest to their limit first."""

_SHOWN_RATIO = 3.0
"""Effects beyond so many limits are drawn up to here, with their figure beside them."""


def drift_plots(report: DriftReport) -> list[Plot]:
    """All of them that there are figures for."""
    found = []
    if report.newest is not None and report.newest.readings:
        found.append(_now(report.newest))
    if report.looks and any(one.readings for one in report.looks):
        found.append(_over_time(report))
    if report.newest is not None and report.newest.histograms:
        found.append(_histograms(report.newest))
    if any(one.leaf for one in report.looks):
        found.append(_leaves(report))
    return found


def thinned(
    looks: Sequence[Look], monitor: str, since: datetime, until: datetime
) -> list[list[tuple[datetime, Reading]]]:
    """Lines of a monitor, one for each stretch of one generation, of at most `_POINTS` readings in all and one more each.

    Of several looks that stand at one place, the one nearest to its limit is drawn: no alarm is lost.
    """
    width = max((until - since) / _POINTS, timedelta(seconds=1))
    lines: list[dict[int, tuple[datetime, Reading]]] = []
    generation: int | None = None
    for look in looks:
        for one in look.readings:
            if one.monitor == monitor:
                if look.generation != generation:
                    lines.append({})
                    generation = look.generation
                kept, bucket = lines[-1], int((look.at - since) / width)
                if bucket not in kept or (one.alarm, one.ratio) > (
                    kept[bucket][1].alarm,
                    kept[bucket][1].ratio,
                ):
                    kept[bucket] = (look.at, one)
    return [[kept[bucket] for bucket in sorted(kept)] for kept in lines]


def folded(shares: Sequence[float], most: int = _BARS) -> list[float]:
    """A histogram of at most `most` bars: neighbouring codes added up."""
    each = -(-len(shares) // most)
    return [sum(shares[start : start + each]) for start in range(0, len(shares), each)]


def _now(look: Look) -> Plot:
    readings = sorted(look.readings, key=lambda one: one.ratio)

    def draw(sheet: Sheet) -> Figure:
        figure = sheet.figure(27 * len(readings) + 52)
        axes = figure.subplots()
        for row, one in enumerate(readings):
            colour = ink.BAD if one.alarm else ink.OURS
            length = min(one.ratio, _SHOWN_RATIO)
            axes.barh(
                [row],
                [length],
                height=0.56,
                color=colour,
                label="alarm" if one.alarm else "within its limits",
            )
            name = f"{worded(one.effect)} of {worded(one.limit)}{'  alarm' if one.alarm else ''}"
            axes.annotate(
                name,
                (length, row),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
                color=ink.MUTED,
            )
        axes.axvline(1, color=ink.LIMIT, linewidth=1.6, linestyle=(0, (4, 2)), label="limit")
        axes.set_yticks(range(len(readings)), [monitor_words(one.monitor) for one in readings])
        axes.tick_params(axis="y", labelcolor=ink.TEXT)
        axes.set_ylim(-0.6, len(readings) - 0.4)
        axes.set_xlim(
            0,
            max(
                1.45,
                min(max(one.ratio for one in readings), _SHOWN_RATIO)
                * (1.3 if sheet.wide else 1.6),
            ),
        )
        axes.set_xlabel("effect, in units of its limit")
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        ink.legend(figure, axes, ("within its limits", "alarm", "limit"))
        return figure

    spoken = "; ".join(
        f"{monitor_words(one.monitor)} {worded(one.effect)} of {worded(one.limit)}"
        for one in reversed(readings)
    )
    return ink.plot(
        "drift-now",
        "How near each monitor is to its limit",
        f"Bar chart of the effect of each monitor as a share of its limit. {spoken}.",
        f"The look of {look.at:%-d %B %Y %H:%M} UTC at {look.images:,} images. A bar beyond the dashed line alone is no alarm: its p-value "
        "must be small too, so that a small sample cannot raise one. Long bars of the codes and the embedding together mean that new "
        "kinds of images arrive; the score and confidence bars say whether the model still knows what to do with them.",
        draw,
    )


def _over_time(report: DriftReport) -> Plot:
    since, until = (
        max(report.timeline.since, report.looks[0].at - timedelta(hours=1)),
        report.timeline.until,
    )
    newest = {one.monitor: one.ratio for look in report.looks for one in look.readings}
    names = sorted(newest, key=lambda name: -newest[name])[:_MONITORS]
    found = {name: thinned(report.looks, name, since, until) for name in names}

    def draw(sheet: Sheet) -> Figure:
        across = sheet.columns
        down = -(-len(names) // across)
        figure = sheet.figure(down * 128 + 34)
        grid = figure.subplots(down, across, squeeze=False)
        for spare in grid.flat[len(names) :]:
            spare.set_visible(False)
        for name, axes in zip(names, grid.flat, strict=False):
            _monitor(axes, found[name])
            axes.set_title(monitor_words(name))
            ink.time_axis(axes, since, until)
            _alarms(axes, [one for one in report.timeline.alarms if one.monitor == name], until)
            ink.switch_lines(axes, [(one.at, f"G{one.generation}") for one in report.switches])
        ink.legend(figure, grid.flat[0], ("effect", "limit", "an alarm"))
        return figure

    alarming = [
        monitor_words(name)
        for name in names
        if any(one.alarm for line in found[name] for _, one in line)
    ]
    return ink.plot(
        "drift-time",
        "Each monitor over time",
        f"Line charts of the effect of {len(names)} monitors with their limits. "
        + (
            f"Beyond their limits at some time: {', '.join(alarming)}."
            if alarming
            else "None was an alarm in this time."
        ),
        "The line is the effect, the dashes its limit, dots are looks that were an alarm, shaded stretches are times with an open alarm, "
        "dotted lines mark switches. A slow rise towards the limit is a shift that gathers; a step is a new source of images or a fault. "
        "After a switch the reference is new and the effect should fall.",
        draw,
    )


def _monitor(axes: Axes, lines: Sequence[Sequence[tuple[datetime, Reading]]]) -> None:
    for found in lines:
        times, readings = [ink.moment(at) for at, _ in found], [one for _, one in found]
        marks = ink.marks_if_few(len(found))
        axes.plot(
            times,
            [one.limit for one in readings],
            color=ink.LIMIT,
            linewidth=1.4,
            linestyle=(0, (4, 2)),
            label="limit",
            **marks,
        )
        axes.plot(times, [one.effect for one in readings], color=ink.OURS, label="effect", **marks)
        beyond = [
            (time, one.effect) for time, one in zip(times, readings, strict=True) if one.alarm
        ]
        axes.plot(
            [at for at, _ in beyond],
            [effect for _, effect in beyond],
            "o",
            color=ink.BAD,
            markersize=4,
            label="an alarm",
        )
    shown = [value for found in lines for _, one in found for value in (one.effect, one.limit)]
    axes.set_ylim(min(0.0, *shown), max(1e-9, *shown) * 1.15)
    axes.yaxis.set_major_locator(ink.few_ticks())


def _alarms(axes: Axes, alarms: Sequence[Alarm], until: datetime) -> None:
    for one in alarms:
        axes.axvspan(
            ink.moment(one.raised_at),
            ink.moment(one.cleared_at or until),
            color=ink.BAD,
            alpha=0.12,
            linewidth=0,
        )


def _histograms(look: Look) -> Plot:
    found = look.histograms

    def draw(sheet: Sheet) -> Figure:
        figure = sheet.figure((2 if sheet.wide else len(found)) * 138 + 34)
        grid = (
            figure.subplots(2, 2, squeeze=False)
            if sheet.wide
            else figure.subplots(len(found), 1, squeeze=False)
        )
        for spare in grid.flat[len(found) :]:
            spare.set_visible(False)
        for (name, one), axes in zip(found.items(), grid.flat, strict=False):
            _codes(axes, name, one)
        ink.legend(figure, grid.flat[0], ("now", "then"))
        return figure

    spoken = "; ".join(
        f"{name}: {percent(one.moved)} of the images would have to change code"
        for name, one in found.items()
    )
    uses = ", ".join(
        f"{name} {perplexity(one.then):.1f} then and {perplexity(one.now):.1f} now"
        for name, one in found.items()
    )
    return ink.plot(
        "codes",
        "Codes then and now",
        f"Histograms of the codes of each level, in the reference and now. {spoken}.",
        "How often each code is given: bars are the newest images, outlines what the generation learned from. The figure beside a level is "
        f"the share of images that would have to change their code for both to agree. Codes in use: {uses}. A few bars that tower over "
        "their outlines are a new topic; many empty ones mean that the codebook no longer fits and re-clustering will pay.",
        draw,
    )


def _codes(axes: Axes, name: str, one: Histogram) -> None:
    then, now = folded(one.then), folded(one.now)
    at = range(len(now))
    each = -(-len(one.now) // _BARS)
    axes.bar(at, now, width=0.82, color=ink.OURS, label="now")
    axes.stairs(
        then,
        [position - 0.5 for position in range(len(then) + 1)],
        color=ink.THEN,
        linewidth=1.5,
        label="then",
    )
    axes.set_title(f"{name}", pad=8)
    said = f"{percent(one.moved)} moved, {len(one.now)} codes{f', {each} to a bar' if each > 1 else ''}"
    inside: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(said, (1, 1), xytext=(0, 8), ha="right", fontsize=9.5, color=ink.MUTED, **inside)
    axes.set_xlim(-0.7, len(now) - 0.3)
    axes.xaxis.set_major_locator(ink.few_ticks(whole=True))
    axes.yaxis.set_major_locator(ink.few_ticks())
    ink.percent_axis(axes)


def _leaves(report: DriftReport) -> Plot:
    looks = [one for one in report.looks if one.leaf]
    since, until = (
        max(report.timeline.since, looks[0].at - timedelta(hours=1)),
        report.timeline.until,
    )
    step = -(-len(looks) // _POINTS)
    shown = looks[::-1][::step][::-1]
    panels = [
        ("Gini of the leaf loads", lambda one: one.leaf.get("gini")),
        ("Images in a leaf, p99", lambda one: one.leaf.get("p99")),
    ]
    panels += (
        [("Images in nearly full leaves", lambda one: one.suffix_pressure)]
        if any(one.suffix_pressure is not None for one in shown)
        else []
    )

    def draw(sheet: Sheet) -> Figure:
        figure = sheet.figure(136 if sheet.wide else 118 * len(panels))
        grid = (
            figure.subplots(1, len(panels), squeeze=False)
            if sheet.wide
            else figure.subplots(len(panels), 1, squeeze=False)
        )
        for (title, value), axes in zip(panels, grid.flat, strict=True):
            points = [(ink.moment(one.at), value(one)) for one in shown if value(one) is not None]
            alone = ink.marks_if_few(len(points))
            axes.plot(
                [at for at, _ in points], [found for _, found in points], color=ink.OURS, **alone
            )
            axes.set_title(title)
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(ink.few_ticks())
            ink.time_axis(axes, since, until, ticks=4)
            ink.switch_lines(axes, [(one.at, f"G{one.generation}") for one in report.switches])
        return figure

    last = shown[-1]
    spoken = ", ".join(f"{name} {worded(value)}" for name, value in last.leaf.items())
    pressure = (
        f", suffix pressure {worded(last.suffix_pressure)}"
        if last.suffix_pressure is not None
        else ""
    )
    return ink.plot(
        "leaves",
        "How full the leaves are",
        f"Line charts of the leaf loads over time. Newest: {spoken}{pressure}.",
        "A rising Gini or p99 means that arrivals crowd into few leaves: queries that reach them rank more candidates and get slower. "
        "Images whose leaf is full spill to their second-best one. Re-clustering spreads them: `sigma jobs run recluster`.",
        draw,
    )
