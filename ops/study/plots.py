"""Plots of a study as SVG files: recall session by session, the cost, and what was forgotten."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ops.study.streams import STREAM_KINDS
from ops.study.study_runs import Measure, PolicyRun
from schemas.records import DoubleArray

# The line of exact dense search, beside those of the policies.
_DENSE = "exact dense"

# Policies in the order of legends. Okabe and Ito's palette: colour-blind readers can tell them
# apart.
_COLOURS = {
    "never": "#999999",
    "recluster": "#E69F00",
    "periodic": "#0072B2",
    "drift": "#009E73",
    "full": "#D55E00",
}

_LABELS = {
    "never": "never retrain",
    "recluster": "re-cluster only",
    "periodic": "periodic refresh",
    "drift": "refresh on drift",
    "full": "full retraining",
}

_BLACK = "#000000"

# Width of the bars of one stream together; streams are 1 apart.
_GROUP_WIDTH = 0.8


def draw_plots(runs: Sequence[PolicyRun], folder: Path) -> None:
    """Write `new.svg`, `at-arrival.svg`, `old.svg` and `cost.svg`."""
    style = matplotlib.rc_context(
        {
            # The same figures give the same bytes.
            "svg.hashsalt": "sigma",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    with style:
        new = _plot_recall(runs, "new", "R@10 of the session's new images, after upkeep")
        _save(new, folder / "new.svg")
        at_arrival = _plot_recall(runs, "at_arrival", "R@10 of new images at arrival, untrained")
        _save(at_arrival, folder / "at-arrival.svg")
        _save(_plot_recall(runs, "old", "R@10 of older images"), folder / "old.svg")
        _save(_plot_cost(runs), folder / "cost.svg")


def _plot_recall(runs: Sequence[PolicyRun], measure: Measure, title: str) -> Figure:
    """Recall over the sessions, one panel for each stream."""
    streams = _streams_of(runs)
    figure = _new_figure(4.2 * len(streams), 3.4)
    panels = figure.subplots(1, len(streams), sharey=True, squeeze=False)[0]
    for axes, stream in zip(panels, streams, strict=True):
        _draw_stream(axes, [run for run in runs if run.stream == stream], measure)
        axes.set(title=stream, xlabel="session", ylim=(0, 102))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("per cent")
    figure.suptitle(title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, frameon=False)
    # Room for the legend below the panels.
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    return figure


def _draw_stream(axes: Axes, runs: Sequence[PolicyRun], measure: Measure) -> None:
    """A line for each policy and for exact dense search, over the share of later scenes."""
    for policy in _COLOURS:
        members = [run for run in runs if run.policy == policy]
        if members:
            _draw_policy(axes, policy, _percentages(members, measure))
    dense = _percentages(runs, "dense_old" if measure == "old" else "dense_new")
    sessions = np.arange(1, dense.shape[1] + 1)
    axes.plot(sessions, dense.mean(0), color=_BLACK, label=_DENSE, linewidth=1.8, linestyle=":")
    shares = [100 * session.later_share for session in runs[0].sessions]
    axes.fill_between(
        sessions, shares, color=_BLACK, alpha=0.07, linewidth=0, label="share of later scenes, %"
    )


def _draw_policy(axes: Axes, policy: str, percentages: DoubleArray) -> None:
    """The mean over seeds of (runs, sessions) percentages, with a band of one deviation."""
    colour = _COLOURS[policy]
    sessions = np.arange(1, percentages.shape[1] + 1)
    mean = percentages.mean(0)
    deviation = percentages.std(0)
    axes.plot(sessions, mean, color=colour, label=_LABELS[policy], linewidth=1.8, linestyle="-")
    axes.fill_between(
        sessions, mean - deviation, mean + deviation, color=colour, alpha=0.12, linewidth=0
    )


def _percentages(runs: Sequence[PolicyRun], measure: Measure) -> DoubleArray:
    """(runs, sessions) R@10 in per cent."""
    rows = []
    for run in runs:
        rows.append([100 * recall for recall in run.recall(measure)])
    return np.array(rows)


def _plot_cost(runs: Sequence[PolicyRun]) -> Figure:
    """CPU seconds and backward transfer, a bar for each policy in a group for each stream."""
    streams = _streams_of(runs)
    policies = [policy for policy in _LABELS if any(run.policy == policy for run in runs)]
    width = _GROUP_WIDTH / max(1, len(policies))
    figure = _new_figure(10, 3.6)
    cost_axes, transfer_axes = figure.subplots(1, 2)
    for place, policy in enumerate(policies):
        # Bars of a group lie side by side, centred on the stream's place.
        offset = (place - (len(policies) - 1) / 2) * width
        positions = np.arange(len(streams)) + offset
        costs = []
        transfers = []
        for stream in streams:
            members = [run for run in runs if run.stream == stream and run.policy == policy]
            costs.append(_mean_cost(members))
            transfers.append(100 * _mean_transfer(members))
        colour = _COLOURS[policy]
        cost_axes.bar(positions, costs, width, color=colour, label=_LABELS[policy])
        transfer_axes.bar(positions, transfers, width, color=colour)
    cost_axes.set(title="CPU seconds of upkeep, all sessions", yscale="symlog")
    transfer_axes.set(title="R@10 of an image since its own session, points")
    transfer_axes.axhline(0, color=_BLACK, linewidth=0.8)
    for axes in (cost_axes, transfer_axes):
        axes.set_xticks(range(len(streams)), streams)
    handles, labels = cost_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=5, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1), w_pad=3)
    return figure


def _streams_of(runs: Sequence[PolicyRun]) -> list[str]:
    """The kinds of stream that have runs."""
    present = {run.stream for run in runs}
    return [kind for kind in STREAM_KINDS if kind in present]


def _mean_cost(runs: Sequence[PolicyRun]) -> float:
    """CPU seconds, 0 where a policy has no run on a stream."""
    return float(np.mean([run.cpu_s for run in runs])) if runs else 0.0


def _mean_transfer(runs: Sequence[PolicyRun]) -> float:
    """Backward transfer, 0 where a policy has no run on a stream."""
    return float(np.mean([run.backward_transfer.ours for run in runs])) if runs else 0.0


def _new_figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in))
    # The SVG canvas measures texts as the file will; the default one measures pixels.
    FigureCanvasSVG(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    # Without a date, so that files differ only when figures do.
    figure.savefig(path, metadata={"Date": None})
