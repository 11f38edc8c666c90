"""What the command line prints steers no terminal, whoever wrote it."""

import json
import unicodedata

import pytest

from ops.cli.context import emit
from ops.cli.main import main
from ops.cli.terminal import terminal_json, terminal_line, terminal_text

HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x7f\x08\x08\x08",
    "a\rb",
    "\u202egpj.exe",
    "\u2066hidden\u2069",
    "\u2028\u2029",
    "\0",
    "half \ud83d",
    "\U000e0001\U000e0041",
    "\ufeff\u200b",
]


def steering(text: str) -> list[str]:
    return [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs")]


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_printed_as_escapes(text: str) -> None:
    assert steering(terminal_text(f"a {text}")) == []
    shown = terminal_json({"caption": text, text: 1})
    assert steering(shown) == []
    assert json.loads(shown) == {"caption": text, text: 1}
    terminal_text(text).encode("utf-8")


@pytest.mark.parametrize(
    "text", ["plain", "two\nlines\tand a tab", "café 红 🌵", "👩\u200d🚀", "no\u00a0break"]
)
def test_everything_else_is_printed_as_it_is(text: str) -> None:
    assert terminal_text(text) == text
    assert json.loads(terminal_json([text])) == [text]


def test_a_line_end_in_a_caption_begins_no_line() -> None:
    assert terminal_line("a\n  1  0.9  forged") == "a\\n  1  0.9  forged"


def test_answers_and_errors_of_the_command_line_are_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    emit({"a": "\x9b"}, False, "\x1b[2J")
    emit({"a": "\x9b"}, True, "")
    assert main(["query", "half \ud83d"]) == 2
    assert main(["query", "\u200b\x1b"]) == 2
    printed = capsys.readouterr()
    assert steering((printed.out + printed.err).replace("\n", "")) == []
