"""What the plot modules draw with: a canvas of two widths, one style, axes and legends.

Each plot is drawn twice, for a desktop and for a phone; the page shows one of them.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.dates import HOURLY, MONTHLY, AutoDateLocator, DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ops.report.colours import GRID, MUTED, TEXT
from ops.report.inline_svg import inline_svg

# Width of a plot for a desktop and for paper, in points.
_WIDE_PT = 680

# Width of a plot for a phone, in points: the text keeps its size there.
_NARROW_PT = 316

# matplotlib counts in inches, SVG in points.
_POINTS_PER_INCH = 72

# Height of the legend above the panels, in points.
LEGEND_PT = 34

# Limits and baselines: they differ from our lines in more than colour, for every eye and print.
DASHES = (0, (4, 2))

# Switches between generations.
_DOTS = (0, (1, 2))

# A line of fewer points gets marks: without them, one point would be invisible.
_FEW_POINTS = 3

# Least distance of two names on a time axis, as a share of it: closer ones would overlap.
_NAME_GAP = 0.12

# A name that begins beyond this share of the axis would leave the panel.
_LAST_NAME_AT = 0.93

# Settings of matplotlib for all plots. Texts come from the database: none is read as a formula.
_RC_PARAMETERS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sigma",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": TEXT,
    "axes.titlepad": 8,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "figure.facecolor": "none",
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.1,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.color": TEXT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.labelcolor": TEXT,
}


@dataclass(frozen=True, slots=True)
class Canvas:
    """What a plot is drawn on: `wide` for a desktop, otherwise narrow for a phone."""

    wide: bool

    def figure(self, height_pt: float) -> Figure:
        """Make an empty figure of this width and a height in points."""
        width_pt = _WIDE_PT if self.wide else _NARROW_PT
        return Figure(
            figsize=(width_pt / _POINTS_PER_INCH, height_pt / _POINTS_PER_INCH),
            dpi=_POINTS_PER_INCH,
            layout="constrained",
        )

    def panels(
        self, count: int, height_pt: float, *, columns: int = 3, share_y: bool = False
    ) -> tuple[Figure, list[Axes]]:
        """Make `count` panels of one height, with room for a legend above them.

        Args:
            count: number of panels.
            height_pt: height of each panel, in points.
            columns: most panels in a row of a wide canvas; a narrow one has a single column.
            share_y: whether all panels have the same y axis.
        """
        columns_used = min(columns, count) if self.wide else 1
        rows = -(-count // columns_used)
        figure = self.figure(rows * height_pt + LEGEND_PT)
        grid = figure.subplots(rows, columns_used, sharey=share_y, squeeze=False)
        # Places left over in the last row.
        for unused in grid.flat[count:]:
            unused.set_visible(False)
        return figure, list(grid.flat[:count])


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of a page, drawn for both widths.

    `label` describes the plot to readers who cannot see it, `caption` says what to make of it.
    `wide` and `narrow` are SVG elements.
    """

    name: str
    title: str
    label: str
    caption: str
    wide: str
    narrow: str


def make_plot(
    name: str, title: str, label: str, caption: str, draw: Callable[[Canvas], Figure]
) -> Plot:
    """Draw a plot for both widths. `name` is a short word, unique on its page: a prefix of ids."""
    wide = _svg(draw, Canvas(wide=True), f"{name}-w")
    narrow = _svg(draw, Canvas(wide=False), f"{name}-n")
    return Plot(name, title, label, caption, wide, narrow)


def percent_axis(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """Label an axis of shares in per cent."""
    axis: Axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value * 100, 1):g}%"))


def legend(figure: Figure, axes: Axes, labels: Sequence[str]) -> None:
    """Add one legend above all panels, with those of `labels` that `axes` has, in this order."""
    handles, names = axes.get_legend_handles_labels()
    # Lines of the same label share a legend entry.
    handle_of = dict(zip(names, handles, strict=True))
    shown = [label for label in labels if label in handle_of]
    figure.legend(
        [handle_of[label] for label in shown],
        shown,
        loc="outside upper left",
        ncols=len(shown),
        borderpad=0,
        columnspacing=1.4,
    )


def time_axis(axes: Axes, since: datetime, until: datetime) -> None:
    """Show time in UTC from `since` to `until`, with few and short labels."""
    locator = AutoDateLocator(minticks=2, maxticks=4)
    # Its own steps have gaps between 36 and 48 hours and between 18 and 24 months, where it warns.
    locator.intervald[HOURLY] = [1, 2, 3, 4, 6, 12, 24]
    locator.intervald[MONTHLY] = [1, 2, 3, 4, 6, 12]
    label_format = "%-d %b" if until - since > timedelta(days=2) else "%H:%M"
    axes.set_xlim(plot_time(since), plot_time(until))
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(DateFormatter(label_format, tz=UTC))


def plot_time(at: datetime) -> float:
    """A time as matplotlib counts it: days since 1970, in UTC."""
    return float(date2num(at))


def marks_if_few(points: int) -> dict[str, Any]:
    """Line options that add marks to a line of one or two points, which would be invisible."""
    return {"marker": "o", "markersize": 3.5} if points < _FEW_POINTS else {}


def few_ticks(*, whole: bool = False) -> MaxNLocator:
    """A handful of round ticks; `whole` keeps them at whole numbers."""
    return MaxNLocator(nbins=4, integer=whole, steps=[1, 2, 2.5, 5, 10])


def annotate_at(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    shift_pt: tuple[float, float],
    **options: Any,
) -> None:
    """Write a muted note into a panel.

    Args:
        axes: the panel.
        text: the note.
        place: (x, y) as shares of the panel, from 0 to 1.
        shift_pt: (x, y) distance from there, in points.
        options: text options of matplotlib.
    """
    axes.annotate(
        text,
        place,
        xytext=shift_pt,
        xycoords="axes fraction",
        textcoords="offset points",
        color=MUTED,
        **options,
    )


def switch_lines(axes: Axes, switches: Sequence[tuple[datetime, str]]) -> None:
    """Draw a thin line with a name at each switch. Call it after `time_axis`.

    A name that would overlap the one before it, or the end of the panel, is left out.
    """
    low, high = axes.get_xlim()
    last_named = -1.0
    for at, name in switches:
        position = plot_time(at)
        share = (position - low) / (high - low)
        axes.axvline(position, color=MUTED, linewidth=1, linestyle=_DOTS)
        if 0 <= share < _LAST_NAME_AT and share - last_named > _NAME_GAP:
            annotate_at(axes, name, (share, 0.0), (3, 3), va="bottom", fontsize=9)
            last_named = share


def _svg(draw: Callable[[Canvas], Figure], canvas: Canvas, name: str) -> str:
    # No date and no version of matplotlib: the same figures make the same file.
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with _plot_style():
        figure = draw(canvas)
        target = io.BytesIO()
        figure.savefig(target, format="svg", metadata=metadata)
    return inline_svg(target.getvalue().decode("utf-8"), name)


@contextmanager
def _plot_style() -> Iterator[None]:
    with mpl.rc_context(_RC_PARAMETERS), warnings.catch_warnings():
        # The page's fonts draw the letters, so letters that matplotlib's own font lacks are fine.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
