"""The code blocks of the docs, and which test runs each.

The words behind a block's language say it: ```console tests/acceptance/test_docs.py. Pages that
are shown leave them out. A block without such a word says in the paragraph beside it that it is
not run as a test, and why; `drawing` is for what is no code.
"""

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "ops").rglob("*.md")],
)

DRAWING = "drawing"

_FENCE = re.compile(r"^(?P<fence>```+|~~~+)(?P<words>.*)$")


@dataclass(frozen=True, slots=True)
class DocBlock:
    """One fenced block."""

    page: str
    """Its path in the repository."""
    line: int
    """Of its first fence, from 1 on."""
    language: str
    words: tuple[str, ...]
    """What stands behind the language."""
    code: str
    beside: str
    """The paragraphs before and after it."""

    @property
    def tests(self) -> tuple[str, ...]:
        """Files of tests that run it."""
        return tuple(word for word in self.words if word.startswith("tests/"))


def blocks_of_page(path: Path) -> list[DocBlock]:
    """All fenced blocks of a page; `ValueError` for one that does not end."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        if opening is None:
            number += 1
            continue
        end = number + 1
        while end < len(lines) and lines[end] != opening["fence"]:
            end += 1
        if end == len(lines):
            raise ValueError(f"{path.name}, line {number + 1}: the block does not end")
        language, *words = opening["words"].split() or [""]
        code = "\n".join([*lines[number + 1 : end], ""])
        beside = f"{_before(lines, number)}\n{_after(lines, end)}"
        page = path.relative_to(ROOT).as_posix()
        found.append(DocBlock(page, number + 1, language, tuple(words), code, beside))
        number = end + 1
    return found


def all_blocks() -> list[DocBlock]:
    """The blocks of all pages."""
    return [block for page in PAGES for block in blocks_of_page(page)]


def blocks(page: str, language: str) -> list[str]:
    """The code that a page gives to the test that asks: blocks marked with its file, in order."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    test = Path(frame.f_back.f_code.co_filename).resolve().relative_to(ROOT).as_posix()
    found = blocks_of_page(ROOT / page)
    code = [block.code for block in found if test in block.tests and block.language == language]
    assert code, f"{page} has no {language} block that is marked with {test}"
    return code


def _before(lines: list[str], start: int) -> str:
    end = start
    while end and not lines[end - 1].strip():
        end -= 1
    first = end
    while first and lines[first - 1].strip():
        first -= 1
    return " ".join(lines[first:end])


def _after(lines: list[str], end: int) -> str:
    first = end + 1
    while first < len(lines) and not lines[first].strip():
        first += 1
    last = first
    while last < len(lines) and lines[last].strip():
        last += 1
    return " ".join(lines[first:last])
