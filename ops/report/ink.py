"""Ink: matplotlib figures as inline SVG whose colours are the page's own, so that one drawing serves light, dark and paper.

Text stays text: it can be searched, read aloud and printed. Each plot is drawn twice, for a desk and for a phone; the page shows one.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ops.report.words import plain

# Stand-ins that nothing else draws with; the stylesheet says what each looks like.
OURS, EXACT, LIMIT, THEN, NOW, GOOD, BAD = (
    "#010203",
    "#020304",
    "#030405",
    "#040506",
    "#050607",
    "#060708",
    "#070809",
)
TEXT, MUTED, GRID, PAPER = "#08090a", "#090a0b", "#0a0b0c", "#0b0c0d"
_VARIABLES = {
    OURS: "--ours",
    EXACT: "--exact",
    LIMIT: "--limit",
    THEN: "--then",
    NOW: "--ours",
    GOOD: "--good",
    BAD: "--bad",
    TEXT: "--text",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--card",
}
_WIDE_PT, _NARROW_PT = 680, 316
_DOTS_PER_INCH = 72
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_LONG_NUMBER = re.compile(r"(\d+\.\d{2})\d+")
_NUMBERS = {"clip-path", "d", "transform", "style", "x", "y", "width", "height", "viewBox"}
_NOT_XML = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ufffe\\uffff]")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)px")

STYLE: dict[Any, Any] = {
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
class Sheet:
    """What a drawing is made on: how wide, and how many panels stand side by side."""

    wide: bool

    @property
    def columns(self) -> int:
        """Panels in a row."""
        return 3 if self.wide else 1

    def figure(self, height_pt: float) -> Figure:
        """An empty figure of this width."""
        width = _WIDE_PT if self.wide else _NARROW_PT
        return Figure(
            figsize=(width / _DOTS_PER_INCH, height_pt / _DOTS_PER_INCH),
            dpi=_DOTS_PER_INCH,
            layout="constrained",
        )

    def panels(
        self, count: int, height_pt: float, *, columns: int | None = None
    ) -> tuple[Figure, list[Axes]]:
        """`count` panels of one height with common axes; places left over stay empty."""
        across = min(columns or self.columns, count) if self.wide else 1
        down = -(-count // across)
        figure = self.figure(down * height_pt + 34)
        grid = figure.subplots(down, across, sharex=False, sharey=True, squeeze=False)
        for spare in grid.flat[count:]:
            spare.set_visible(False)
        return figure, list(grid.flat[:count])


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of a page. `label` says what it shows to those who cannot see it, `caption` what to make of it."""

    name: str
    title: str
    label: str
    caption: str
    wide: str
    narrow: str


def plot(name: str, title: str, label: str, caption: str, draw: Callable[[Sheet], Figure]) -> Plot:
    """Draw it for both widths. `name` is unique on its page: a small word."""
    wide, narrow = (
        _drawn(draw, Sheet(width), f"{name}-{'w' if width else 'n'}") for width in (True, False)
    )
    return Plot(name, title, label, caption, wide, narrow)


@contextmanager
def styled() -> Iterator[None]:
    """The one style of all plots."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # The page's fonts draw the letters, so it does not matter which ones matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def percent_axis(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """Shares as per cent."""
    (axes.yaxis if which == "y" else axes.xaxis).set_major_formatter(
        FuncFormatter(lambda value, _: f"{round(value * 100, 1):g}%")
    )


def legend(figure: Figure, axes: Axes, labels: Sequence[str]) -> None:
    """One legend for all panels, above them, with these labels of one panel in this order."""
    found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    shown = [label for label in labels if label in found]
    figure.legend(
        [found[label] for label in shown],
        shown,
        loc="outside upper left",
        ncols=len(shown),
        borderpad=0,
        columnspacing=1.4,
    )


def time_axis(axes: Axes, since: datetime, until: datetime, ticks: int = 4) -> None:
    """Time in UTC from `since` to `until`, with few and short labels."""
    axes.set_xlim(moment(since), moment(until))
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=2, maxticks=ticks))
    axes.xaxis.set_major_formatter(
        DateFormatter("%-d %b" if until - since > timedelta(days=2) else "%H:%M", tz=UTC)
    )


def moment(at: datetime) -> float:
    """A time as matplotlib counts it: days, in UTC."""
    return float(date2num(at))


def marks_if_few(points: int) -> dict[str, Any]:
    """Marks on a line of one or two points, which could not be seen without."""
    return {"marker": "o", "markersize": 3.5} if points < 3 else {}


def few_ticks(*, whole: bool = False) -> MaxNLocator:
    """A handful of round ticks; `whole` keeps them at whole numbers."""
    return MaxNLocator(nbins=4, integer=whole, steps=[1, 2, 2.5, 5, 10])


def switch_lines(axes: Axes, found: Sequence[tuple[datetime, str]]) -> None:
    """A thin line with a name at each switch; names that would stand too close are left out. Call after `time_axis`."""
    low, high = axes.get_xlim()
    last = -1.0
    for at, name in found:
        share = (moment(at) - low) / (high - low)
        axes.axvline(moment(at), color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        if 0 <= share < 0.93 and share - last > 0.12:
            inside: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
            axes.annotate(
                name, (share, 0.0), xytext=(3, 3), va="bottom", fontsize=9, color=MUTED, **inside
            )
            last = share


def _drawn(draw: Callable[[Sheet], Figure], sheet: Sheet, name: str) -> str:
    with styled():
        figure = draw(sheet)
        target = io.BytesIO()
        figure.savefig(
            target,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return inline(target.getvalue().decode("utf-8"), name)


def inline(svg: str, name: str) -> str:
    """An SVG file as an element for a page: no style of its own, ids that are unique on the page, colours by variable."""
    root = ElementTree.fromstring(_NOT_XML.sub("", svg))
    for parent in root.iter():
        for child in [
            one for one in parent if one.tag in (f"{_SVG}metadata", f"{_SVG}style", f"{_SVG}title")
        ]:
            parent.remove(child)
    used = set(
        re.findall(
            r"#([A-Za-z0-9_]+)", " ".join(" ".join(one.attrib.values()) for one in root.iter())
        )
    )
    for one in root.iter():
        _tidy(one, used, name)
    for gone in ("width", "height", "version"):
        root.attrib.pop(gone, None)
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r">\s+<", "><", text)


def _tidy(element: ElementTree.Element, used: set[str], name: str) -> None:
    own = element.attrib
    identity = own.pop("id", None)
    if identity in used:
        own["id"] = f"{name}-{identity}"
    if _LINK in own:
        own["href"] = own.pop(_LINK).replace("#", f"#{name}-")
    for key in _NUMBERS & own.keys():
        own[key] = _LONG_NUMBER.sub(r"\1", own[key].replace("url(#", f"url(#{name}-"))
    if "d" in own:
        own["d"] = " ".join(own["d"].split())
    if "style" in own:
        own["style"] = _styled(own["style"])
    if element.tag == f"{_SVG}text":
        element.text = plain(element.text or "")


def _styled(style: str) -> str:
    """A style with the page's colours and without fonts of its own: only their size and weight stay."""
    kept = []
    for part in style.split(";"):
        key, _, value = (piece.strip() for piece in part.partition(":"))
        if key in ("font", "font-size"):
            size = _SIZE.search(value)
            kept += [f"font-size:{size[1] if size else 10}px"] + (
                ["font-weight:650"] if re.match(r"(bold|700)\b", value) else []
            )
        elif key and key != "font-family":
            kept.append(f"{key}:{f'var({_VARIABLES[value]})' if value in _VARIABLES else value}")
    return ";".join(kept)
