"""HTML that is safe by construction: whatever is not already `Html` is text, and text is escaped."""

import html
from collections.abc import Iterable

from ops.report.words import plain

_VOID = ("img", "meta", "link", "br")
_MOST_LETTERS = 2000


class Html(str):
    """Markup that this module made, or a drawing of ours. Never made from what a database holds."""

    __slots__ = ()


def text(found: object) -> Html:
    """Text of any origin, escaped, on one line; nothing in it can change the direction or the structure of the page."""
    return Html(html.escape(plain(found, _MOST_LETTERS), quote=True))


def tag(name: str, /, *children: object, **attributes: str | None) -> Html:
    """An element. Children that are not `Html` are escaped. `class_` and `for_` lose their underscore, others become hyphens."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(plain(value, 1 << 20) if key != "src" else value, quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    opened = f"<{name}{written}>"
    return Html(opened if name in _VOID else f"{opened}{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Children one after another."""
    return Html("".join(child if isinstance(child, Html) else text(child) for child in children))


def prose(written: str) -> Html:
    """A sentence of ours in which what stands between backticks is code."""
    parts = written.split("`")
    return join(
        tag("code", part) if at % 2 else Html(html.escape(part, quote=True))
        for at, part in enumerate(parts)
    )


def table(title: str, heads: Iterable[str], rows: Iterable[Iterable[object]], empty: str) -> Html:
    """A table that scrolls by itself when the screen is narrow; the sentence `empty` where there is nothing to list."""
    body = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    if not body:
        return tag("p", empty, class_="empty")
    head = tag("tr", *(tag("th", name, scope="col") for name in heads))
    made = tag("table", tag("caption", title), tag("thead", head), tag("tbody", *body))
    return tag("div", made, class_="scroll", role="region", aria_label=title, tabindex="0")
