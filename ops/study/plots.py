"""Plots of a study as SVG files: recall as the sessions go by, what it cost, and what was forgotten."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

matplotlib.use("svg")
# The same figures give the same bytes.
matplotlib.rcParams |= {
    "svg.hashsalt": "sigma",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

COLOURS = {
    "never": "#999999",
    "recluster": "#E69F00",
    "periodic": "#0072B2",
    "drift": "#009E73",
    "full": "#D55E00",
    "exact dense": "#000000",
}
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
LABELS = {
    "never": "never retrain",
    "recluster": "re-cluster only",
    "periodic": "periodic refresh",
    "drift": "refresh on drift",
    "full": "full retraining",
}

Run = dict[str, Any]


def plots(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write all plots; returns the files."""
    streams = [
        name
        for name in ("stationary", "gradual", "abrupt")
        if any(run["stream"] == name for run in runs)
    ]
    return [
        _over_sessions(
            runs,
            streams,
            "new",
            "R@10 of the session's new images, after upkeep",
            folder / "new.svg",
        ),
        _over_sessions(
            runs,
            streams,
            "at_arrival",
            "R@10 of new images at arrival, untrained",
            folder / "at-arrival.svg",
        ),
        _over_sessions(runs, streams, "old", "R@10 of older images", folder / "old.svg"),
        _bars(runs, streams, folder / "cost.svg"),
    ]


def _over_sessions(
    runs: Sequence[Run], streams: Sequence[str], measure: str, title: str, path: Path
) -> Path:
    figure, axes = pyplot.subplots(
        1, len(streams), figsize=(4.2 * len(streams), 3.4), sharey=True, squeeze=False
    )
    for axis, stream in zip(axes[0], streams, strict=True):
        dense = "dense_old" if measure == "old" else "dense_new"
        for policy, colour in COLOURS.items():
            members = [
                run
                for run in runs
                if run["stream"] == stream and (policy == "exact dense" or run["policy"] == policy)
            ]
            if members:
                values = np.array(
                    [
                        [
                            100 * one[dense if policy == "exact dense" else measure]["R@10"]
                            for one in run["sessions"]
                        ]
                        for run in members
                    ]
                )
                _line(axis, values, LABELS.get(policy, policy), colour, policy == "exact dense")
        shares = [
            100 * one["later_share"]
            for one in next(run for run in runs if run["stream"] == stream)["sessions"]
        ]
        axis.fill_between(
            range(1, len(shares) + 1),
            shares,
            color="#000000",
            alpha=0.07,
            linewidth=0,
            label="share of later scenes, %",
        )
        axis.set(title=stream, xlabel="session", ylim=(0, 102))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0][0].set_ylabel("per cent")
    figure.suptitle(title)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False
    )
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    return _saved(figure, path)


def _line(axis: Any, values: Any, label: str, colour: str, dotted: bool) -> None:
    x, mean, spread = np.arange(1, values.shape[1] + 1), values.mean(0), values.std(0)
    axis.plot(x, mean, color=colour, label=label, linewidth=1.8, linestyle=":" if dotted else "-")
    if not dotted:
        axis.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)


def _bars(runs: Sequence[Run], streams: Sequence[str], path: Path) -> Path:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    policies = [policy for policy in LABELS if any(run["policy"] == policy for run in runs)]
    width = 0.8 / max(1, len(policies))
    for at, policy in enumerate(policies):
        members = [
            [run for run in runs if run["stream"] == stream and run["policy"] == policy]
            for stream in streams
        ]
        x = np.arange(len(streams)) + (at - (len(policies) - 1) / 2) * width
        cost = [
            float(np.mean([sum(one["cpu_s"] for one in run["sessions"]) for run in group]))
            if group
            else 0.0
            for group in members
        ]
        lost = [
            100 * float(np.mean([run["backward_transfer"]["ours"] for run in group]))
            if group
            else 0.0
            for group in members
        ]
        left.bar(x, cost, width, color=COLOURS[policy], label=LABELS[policy])
        right.bar(x, lost, width, color=COLOURS[policy])
    left.set(title="CPU seconds of upkeep, all sessions", yscale="symlog")
    right.set(title="R@10 of an image since its own session, points")
    right.axhline(0, color="#000000", linewidth=0.8)
    for axis in (left, right):
        axis.set_xticks(range(len(streams)), streams)
    figure.legend(*left.get_legend_handles_labels(), loc="lower center", ncol=5, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1), w_pad=3)
    return _saved(figure, path)


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
