"""HTML that is safe by construction: what is not already `Html` is text, and text is escaped."""

import html
from collections.abc import Iterable

from ops.report.formatting import one_line

# Elements that have no children and no end tag.
_VOID_ELEMENTS = ("img", "meta", "link", "br")

# Characters of one text; a longer one is cut.
_MAX_TEXT_LENGTH = 2000

# Characters of one attribute. `src` has no limit: it holds a whole picture as a data URI.
_MAX_ATTRIBUTE_LENGTH = 1 << 20


class Html(str):
    """Markup made by this module or by matplotlib. Never made from what a database holds."""

    __slots__ = ()


def text(value: object) -> Html:
    """Escape a text of any origin.

    The result is one line, and nothing in it changes the direction or the structure of the page.
    """
    return _escaped(one_line(value, _MAX_TEXT_LENGTH))


def tag(name: str, /, *children: object, **attributes: str | None) -> Html:
    """Make an element.

    Args:
        name: of the element.
        children: elements, and texts that are escaped.
        attributes: those that are None are left out. A trailing underscore is dropped (`class_`),
            other underscores become hyphens (`aria_label`).
    """
    written = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None
    )
    if name in _VOID_ELEMENTS:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Put children one after another; texts among them are escaped."""
    return Html("".join(child if isinstance(child, Html) else text(child) for child in children))


def prose(written: str) -> Html:
    """Make a sentence of this package's own; what is between backticks becomes code."""
    parts: list[Html] = []
    for index, part in enumerate(written.split("`")):
        is_code = index % 2 == 1
        parts.append(tag("code", part) if is_code else _escaped(part))
    return join(parts)


def table(
    title: str, headings: Iterable[str], rows: Iterable[Iterable[object]], empty: str
) -> Html:
    """Make a table that scrolls by itself on a narrow screen; without rows, write `empty`."""
    body = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    if not body:
        return tag("p", empty, class_="empty")
    # scope tells screen readers what a heading belongs to.
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    element = tag("table", tag("caption", title), tag("thead", head), tag("tbody", *body))
    # tabindex: a region that scrolls must be reachable by keyboard.
    return tag("div", element, class_="scroll", role="region", aria_label=title, tabindex="0")


def _attribute(key: str, value: str) -> str:
    name = key.rstrip("_").replace("_", "-")
    shown = value if key == "src" else one_line(value, _MAX_ATTRIBUTE_LENGTH)
    return f' {name}="{_escaped(shown)}"'


def _escaped(line: str) -> Html:
    return Html(html.escape(line, quote=True))
