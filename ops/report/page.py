"""The page: one self-contained HTML file for a desktop, a phone and paper, in light and dark mode.

It has no script and loads nothing from the network.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from ops.report.formatting import format_time
from ops.report.html import Html, join, prose, tag
from ops.report.plotting import Plot
from ops.report.timeline import Timeline
from ops.report.words import GLOSSARY
from schemas.errors import WorkFailedError
from schemas.settings import MEBIBYTE

# Size of a page. Plots are thinned and pictures limited, so that a page stays far below it.
MAX_PAGE_BYTES = 5 * MEBIBYTE

# What a browser may load or run for the page: pictures and styles in the file, nothing else.
CONTENT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, slots=True)
class Card:
    """A headline figure with its name and a note. `tone` is plain, good or bad."""

    name: str
    figure: str
    note: str
    tone: str = "plain"


@dataclass(frozen=True, slots=True)
class PageText:
    """The words of a page: which report it is, its title, and its verdict in a few sentences."""

    kind: str
    title: str
    verdict: str
    command: str
    """The command that makes the page again."""


def render_page(
    words: PageText, timeline: Timeline, cards: Sequence[Card], sections: Iterable[Html]
) -> str:
    """Write the whole file.

    Raises:
        WorkFailedError: the page would be larger than `MAX_PAGE_BYTES`.
    """
    body = tag(
        "main",
        _header(words),
        tag("p", _made(timeline), class_="about"),
        _headline_figures(cards),
        *sections,
        _glossary(),
        _footer(words.command),
    )
    document = tag("html", _head(words.title), tag("body", body), lang="en")
    file = f"<!doctype html>\n{document}\n"
    # In bytes: most characters of a page have one, but not all.
    size = len(file.encode("utf-8"))
    if size > MAX_PAGE_BYTES:
        raise WorkFailedError(
            f"the page must have at most {MAX_PAGE_BYTES:,} bytes, it has {size:,}; "
            "report fewer days with --days"
        )
    return file


def section(title: str, *children: object) -> Html:
    """Make a part of the page under a heading."""
    return tag("section", tag("h2", title), *children)


def plot_sections(plots: Iterable[Plot]) -> Html:
    """Show plots one below the other, each with its title and caption."""
    return join(_plot_section(plot) for plot in plots)


def notices(missing: Iterable[tuple[str, str]]) -> Html:
    """Say what could not be shown, each with the command that makes it."""
    return join(
        tag("aside", tag("p", what), tag("p", tag("code", command)), class_="notice", role="note")
        for what, command in missing
    )


def mark(word: str, tone: str) -> Html:
    """A small framed word. `tone` is plain, good or bad."""
    return tag("span", word, class_=f"mark {tone}")


def _head(title: str) -> Html:
    stylesheet = resources.files("ops.report").joinpath("page.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=CONTENT_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{title} · sigma-stream"),
        # An empty icon: without it, browsers ask the server for /favicon.ico.
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(stylesheet)),
    )


def _header(words: PageText) -> Html:
    return tag(
        "header",
        tag("p", f"sigma-stream · {words.kind} report", class_="kicker"),
        tag("h1", words.title),
        tag("p", prose(words.verdict), class_="lead"),
    )


def _made(timeline: Timeline) -> str:
    live = timeline.live
    state = "no generation is live" if live is None else f"generation {live.id} is live"
    return f"Made {format_time(timeline.until)} · {state}"


def _headline_figures(cards: Sequence[Card]) -> Html:
    if not cards:
        return Html("")
    return tag("section", *map(_card, cards), class_="cards", aria_label="Headline figures")


def _card(card: Card) -> Html:
    return tag(
        "div",
        tag("p", card.name, class_="name"),
        tag("p", card.figure, class_="figure"),
        tag("p", card.note, class_="note"),
        class_=f"card {card.tone}",
    )


def _plot_section(plot: Plot) -> Html:
    wide = tag("div", Html(plot.wide), class_="drawing wide")
    narrow = tag("div", Html(plot.narrow), class_="drawing narrow")
    # The caption is outside of the figure: screen readers skip what is inside a role of img.
    return tag(
        "section",
        tag("h2", plot.title, id=f"{plot.name}-title"),
        tag("figure", wide, narrow, id=plot.name, role="img", aria_label=plot.label),
        tag("p", prose(plot.caption), class_="caption"),
        class_="plot",
    )


def _glossary() -> Html:
    entries: list[Html] = []
    for word, meaning in GLOSSARY.items():
        entries += [tag("dt", word), tag("dd", meaning)]
    return section("Words", tag("dl", *entries))


def _footer(command: str) -> Html:
    without_file, _, _ = command.partition(" --out")
    return tag(
        "footer",
        tag("p", "Make this page again: ", tag("code", command)),
        tag("p", "The same as JSON: ", tag("code", f"{without_file} --json")),
    )
