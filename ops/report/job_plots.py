"""The job history as a plot: one line a job, one mark a run."""

from collections.abc import Sequence
from datetime import timedelta

from matplotlib.figure import Figure

from ops.report import ink
from ops.report.ink import Plot, Sheet
from ops.report.timeline import Timeline
from ops.report.words import count, plain
from workers.repository.job_runs import JobRun

_MARKS = {
    "done": ("|", ink.GOOD, 8),
    "running": ("o", ink.OURS, 6),
    "skipped": ("s", ink.THEN, 5),
    "failed": ("X", ink.BAD, 8),
}
_PLACES = 160
"""Marks of one kind on one line: more would cover each other."""

_JOBS = 16


def job_plot(happened: Timeline) -> Plot | None:
    """The runs of all jobs; None when there were none."""
    if not happened.runs:
        return None
    names = sorted({one.job for one in happened.runs})[:_JOBS]
    since, until = (
        max(happened.since, happened.runs[0].started_at - timedelta(hours=1)),
        happened.until,
    )

    def draw(sheet: Sheet) -> Figure:
        figure = sheet.figure(30 * len(names) + 64)
        axes = figure.subplots()
        for row, name in enumerate(reversed(names)):
            for outcome, (mark, colour, size) in _MARKS.items():
                found = _spread(
                    [one for one in happened.runs if one.job == name and one.outcome == outcome],
                    happened,
                )
                if found:
                    axes.plot(
                        found,
                        [row] * len(found),
                        mark,
                        color=colour,
                        markersize=size,
                        label=outcome,
                        linestyle="none",
                    )
        axes.set_yticks(range(len(names)), [plain(name, 24) for name in reversed(names)])
        axes.tick_params(axis="y", labelcolor=ink.TEXT)
        axes.set_ylim(-0.6, len(names) - 0.4)
        ink.time_axis(axes, since, until)
        ink.legend(figure, axes, tuple(_MARKS))
        return figure

    totals = ", ".join(
        f"{sum(one.outcome == name for one in happened.runs):,} {name}" for name in _MARKS
    )
    failed = sum(one.outcome == "failed" for one in happened.runs)
    return ink.plot(
        "jobs",
        "Job history",
        f"Marks along time, one line a job: {totals}.",
        f"Every run of every job since {since:%-d %B}: {totals}. "
        + (
            f"The reasons of {count(failed, 'failure')} stand in the table below; a gap without marks is a time without a scheduler."
            if failed
            else "Nothing failed. A gap without marks is a time without a scheduler."
        ),
        draw,
    )


def _spread(runs: Sequence[JobRun], happened: Timeline) -> list[float]:
    """Times of runs, one for each place on the line."""
    width = max((happened.until - happened.since) / _PLACES, timedelta(seconds=1))
    places = {
        int((one.started_at - happened.since) / width): ink.moment(one.started_at) for one in runs
    }
    return sorted(places.values())
