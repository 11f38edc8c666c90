"""The job history as a plot: one line for each job, one mark for each run."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ops.report import colours
from ops.report.formatting import format_count, one_line
from ops.report.plotting import Canvas, Plot, legend, make_plot, plot_time, time_axis
from ops.report.timeline import Timeline
from workers.repository.job_runs import JobRun

# Shape, colour and size in points of the mark of each outcome. Failures are drawn last, on top.
_MARKS = {
    "done": ("|", colours.GOOD, 8),
    "running": ("o", colours.OURS, 6),
    "skipped": ("s", colours.REFERENCE, 5),
    "failed": ("X", colours.BAD, 8),
}

# Marks of one outcome on one line: more would cover each other.
_MAX_MARKS = 160

# Lines of the plot, in the order of the alphabet.
_MAX_JOBS = 16

# Height of a line, in points.
_LINE_PT = 30

# Height of the legend and the time axis, in points.
_FRAME_PT = 64


def job_plot(timeline: Timeline) -> Plot | None:
    """Draw the runs of all jobs; None when there were none."""
    if not timeline.runs:
        return None
    jobs = sorted({run.job for run in timeline.runs})[:_MAX_JOBS]
    # A new installation begins at the left edge instead of behind weeks of nothing.
    since = max(timeline.since, timeline.runs[0].started_at - timedelta(hours=1))

    def draw(canvas: Canvas) -> Figure:
        figure = canvas.figure(_LINE_PT * len(jobs) + _FRAME_PT)
        axes = figure.subplots()
        for line, job in enumerate(reversed(jobs)):
            _draw_line(axes, line, job, timeline)
        axes.set_yticks(range(len(jobs)), [one_line(job, 24) for job in reversed(jobs)])
        axes.tick_params(axis="y", labelcolor=colours.TEXT)
        axes.set_ylim(-0.6, len(jobs) - 0.4)
        time_axis(axes, since, timeline.until)
        legend(figure, axes, tuple(_MARKS))
        return figure

    totals = _totals(timeline.runs)
    return make_plot(
        "jobs",
        "Job history",
        f"Marks along time, one line for each job: {totals}.",
        f"Every run of every job since {since:%-d %B}: {totals}. {_advice(timeline.runs)}",
        draw,
    )


def _draw_line(axes: Axes, line: int, job: str, timeline: Timeline) -> None:
    for outcome, (shape, colour, size) in _MARKS.items():
        runs = [run for run in timeline.runs if run.job == job and run.outcome == outcome]
        if runs:
            times = _spread(runs, timeline.since, timeline.until)
            axes.plot(
                times,
                [line] * len(times),
                shape,
                color=colour,
                markersize=size,
                label=outcome,
                linestyle="none",
            )


def _spread(runs: Sequence[JobRun], since: datetime, until: datetime) -> list[float]:
    """Times to mark, in days since 1970: one run, the last one, for each place on the line."""
    width = max((until - since) / _MAX_MARKS, timedelta(seconds=1))
    places: dict[int, float] = {}
    for run in runs:
        places[int((run.started_at - since) / width)] = plot_time(run.started_at)
    return sorted(places.values())


def _totals(runs: Sequence[JobRun]) -> str:
    return ", ".join(f"{_count(runs, outcome):,} {outcome}" for outcome in _MARKS)


def _advice(runs: Sequence[JobRun]) -> str:
    failed = _count(runs, "failed")
    gaps = "gap without marks is a time without a scheduler."
    if not failed:
        return f"Nothing failed. A {gaps}"
    reasons = "reason" if failed == 1 else "reasons"
    failures = format_count(failed, "failure")
    return f"The {reasons} of {failures} can be read in the table below; a {gaps}"


def _count(runs: Sequence[JobRun], outcome: str) -> int:
    return sum(run.outcome == outcome for run in runs)
