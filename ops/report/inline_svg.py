"""An SVG file of matplotlib as an element that fits into a page with others of its kind.

Text stays text: it can be searched, read aloud and printed.
"""

import re
from xml.etree import ElementTree

from ops.report.colours import CSS_VARIABLES
from ops.report.formatting import one_line

_SVG_NAMESPACE = "http://www.w3.org/2000/svg"
_SVG = f"{{{_SVG_NAMESPACE}}}"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"

# Elements that the page replaces: its own stylesheet and labels apply.
_REMOVED_ELEMENTS = (f"{_SVG}metadata", f"{_SVG}style", f"{_SVG}title")

# The size comes from the stylesheet; the `viewBox` keeps the proportions.
_REMOVED_ROOT_ATTRIBUTES = ("width", "height", "version")

# Attributes in which decimals are shortened and `url(#…)` references are renamed.
_NUMERIC_ATTRIBUTES = frozenset(
    ("clip-path", "d", "transform", "style", "x", "y", "width", "height", "viewBox")
)

# For a font declaration without a size in px, which matplotlib does not write today.
_FALLBACK_FONT_SIZE_PX = 10

_REFERENCE = re.compile(r"#([A-Za-z0-9_]+)")
_LONG_DECIMAL = re.compile(r"(\d+\.\d{2})\d+")
_FONT_SIZE_PX = re.compile(r"(\d+(?:\.\d+)?)px")
_BOLD = re.compile(r"(bold|700)\b")
_SPACE_BETWEEN_ELEMENTS = re.compile(r">\s+<")

# Characters that XML 1.0 forbids: matplotlib copies them from labels, the parser refuses them.
_NOT_IN_XML = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ufffe\\uffff]")


def inline_svg(svg: str, name: str) -> str:
    """Turn an SVG file into an element for a page.

    The element has no style of its own, its ids begin with `name` and are therefore unique on the
    page, and its colours are CSS variables.

    Args:
        svg: text of an SVG file, as matplotlib writes it.
        name: prefix of the ids; unique on the page.
    """
    root = ElementTree.fromstring(_NOT_IN_XML.sub("", svg))
    _remove_elements(root)
    referenced = _referenced_ids(root)
    for element in root.iter():
        _tidy(element, referenced, name)
    for attribute in _REMOVED_ROOT_ATTRIBUTES:
        root.attrib.pop(attribute, None)
    # Without this, every element would get the prefix `ns0:`.
    ElementTree.register_namespace("", _SVG_NAMESPACE)
    written = ElementTree.tostring(root, encoding="unicode")
    return _SPACE_BETWEEN_ELEMENTS.sub("><", written)


def _remove_elements(root: ElementTree.Element) -> None:
    for parent in root.iter():
        # A copy of the children: the list shrinks meanwhile.
        for child in list(parent):
            if child.tag in _REMOVED_ELEMENTS:
                parent.remove(child)


def _referenced_ids(root: ElementTree.Element) -> set[str]:
    """Ids that another element points to. All others are dropped, they only cost space."""
    referenced: set[str] = set()
    for element in root.iter():
        for value in element.attrib.values():
            referenced.update(_REFERENCE.findall(value))
    return referenced


def _tidy(element: ElementTree.Element, referenced: set[str], name: str) -> None:
    """Rename ids and references, shorten numbers, and replace colours and fonts, in place."""
    attributes = element.attrib
    # matplotlib names every group, but only clip paths and markers are referred to.
    identity = attributes.pop("id", None)
    if identity in referenced:
        attributes["id"] = f"{name}-{identity}"
    if _XLINK_HREF in attributes:
        attributes["href"] = attributes.pop(_XLINK_HREF).replace("#", f"#{name}-")
    for key in _NUMERIC_ATTRIBUTES & attributes.keys():
        renamed = attributes[key].replace("url(#", f"url(#{name}-")
        attributes[key] = _LONG_DECIMAL.sub(r"\1", renamed)
    if "d" in attributes:
        # matplotlib breaks paths into lines.
        attributes["d"] = " ".join(attributes["d"].split())
    if "style" in attributes:
        attributes["style"] = _page_style(attributes["style"])
    if element.tag == f"{_SVG}text":
        element.text = one_line(element.text or "")


def _page_style(style: str) -> str:
    """A style with the page's colours. Of fonts only size and weight stay: the page has its own."""
    declarations: list[str] = []
    for declaration in style.split(";"):
        key, _, value = declaration.partition(":")
        key = key.strip()
        value = value.strip()
        if key in ("font", "font-size"):
            declarations += _font_declarations(value)
        elif value in CSS_VARIABLES:
            declarations.append(f"{key}:var({CSS_VARIABLES[value]})")
        elif key and key != "font-family":
            declarations.append(f"{key}:{value}")
    return ";".join(declarations)


def _font_declarations(value: str) -> list[str]:
    size = _FONT_SIZE_PX.search(value)
    declarations = [f"font-size:{size[1] if size else _FALLBACK_FONT_SIZE_PX}px"]
    if _BOLD.match(value):
        declarations.append("font-weight:650")
    return declarations
