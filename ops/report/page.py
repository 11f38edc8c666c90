"""The page: one self-contained HTML file, without a script, without the network, light and dark, for a desk, a phone and paper."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from ops.report.html import Html, join, prose, tag
from ops.report.ink import Plot
from ops.report.timeline import Timeline
from ops.report.words import GLOSSARY, moment
from schemas.errors import WorkFailedError
from schemas.settings import MEBIBYTE

MOST_BYTES = 5 * MEBIBYTE
"""Size of a page. Plots are thinned and pictures rationed, so that a page stays far below it."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser may load or run for the page: pictures and styles in the file, nothing else."""


@dataclass(frozen=True, slots=True)
class Card:
    """A headline figure: what it is, the figure, and what to read it with. `tone` is plain, good or bad."""

    name: str
    figure: str
    note: str
    tone: str = "plain"


def page(
    kind: str,
    title: str,
    lead: str,
    happened: Timeline,
    cards: Sequence[Card],
    parts: Iterable[Html],
    again: str,
) -> str:
    """The whole file. `again` is the command that makes it again."""
    live = happened.live
    about = f"Made {moment(happened.until)} · {f'generation {live.id} is live' if live else 'no generation is live'}"
    body = tag(
        "main",
        tag(
            "header",
            tag("p", f"sigma-stream · {kind} report", class_="kicker"),
            tag("h1", title),
            tag("p", prose(lead), class_="lead"),
        ),
        tag("p", about, class_="about"),
        tag("section", *map(_card, cards), class_="cards", aria_label="Headline figures")
        if cards
        else Html(""),
        *parts,
        _glossary(),
        tag(
            "footer",
            tag("p", "Make this page again: ", tag("code", again)),
            tag("p", "The same as JSON: ", tag("code", _as_json(again))),
        ),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{title} · sigma-stream"),
        tag("link", rel="icon", href="data:,"),
        tag(
            "style",
            Html(resources.files("ops.report").joinpath("page.css").read_text(encoding="utf-8")),
        ),
    )
    whole = f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"
    size = len(whole.encode("utf-8"))
    if size > MOST_BYTES:
        raise WorkFailedError(
            f"the page has {size:,} bytes, allowed are {MOST_BYTES:,}; report fewer days with --days"
        )
    return whole


def section(title: str, *children: object) -> Html:
    """A part of the page under a heading."""
    return tag("section", tag("h2", title), *children)


def plots(found: Sequence[Plot]) -> Html:
    """Plots one below the other, each with its words."""
    return join(map(_plot, found))


def notices(missing: Sequence[tuple[str, str]]) -> Html:
    """What could not be shown, and the command that makes it."""
    return join(
        tag("aside", tag("p", what), tag("p", tag("code", command)), class_="notice", role="note")
        for what, command in missing
    )


def _plot(found: Plot) -> Html:
    drawings = join(
        tag("div", Html(svg), class_=f"drawing {name}")
        for name, svg in (("wide", found.wide), ("narrow", found.narrow))
    )
    # The caption stands outside of the figure: what is inside a role of img is not read aloud.
    return tag(
        "section",
        tag("h2", found.title, id=f"{found.name}-title"),
        tag("figure", drawings, id=found.name, role="img", aria_label=found.label),
        tag("p", prose(found.caption), class_="caption"),
        class_="plot",
    )


def _card(card: Card) -> Html:
    return tag(
        "div",
        tag("p", card.name, class_="name"),
        tag("p", card.figure, class_="figure"),
        tag("p", card.note, class_="note"),
        class_=f"card {card.tone}",
    )


def _glossary() -> Html:
    entries = join(
        join((tag("dt", word), tag("dd", meaning))) for word, meaning in GLOSSARY.items()
    )
    return section("Words", tag("dl", entries))


def _as_json(again: str) -> str:
    return f"{again.split(' --out')[0]} --json"
