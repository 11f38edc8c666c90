"""`sigma profiles`: what is printed is what `sigma train --profile` takes."""

import json
import re
from pathlib import Path

import pytest

from model.network.profile_document import read_profile
from model.network.profiles import PROFILES
from ops.cli.main import main
from tests.doc_blocks import blocks


def test_a_shown_profile_can_be_fed_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, expected in PROFILES.items():
        assert main(["profiles", "show", name]) == 0
        file = tmp_path / f"{name}.toml"
        file.write_text(capsys.readouterr().out, encoding="utf-8")
        assert read_profile(str(file)) == expected
        # A file of one's own is shown whole.
        assert main(["profiles", "show", str(file)]) == 0
        assert capsys.readouterr().out == file.read_text(encoding="utf-8")


def test_the_list_names_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles", "list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == list(PROFILES)
    assert main(["profiles", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["profiles"]
    assert [each["name"] for each in listed] == list(PROFILES)
    assert listed[0]["stages"]["align"]["batch"] == 64


def test_the_page_about_models_shows_commands_and_a_profile_that_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = re.findall(r"^\$ sigma (.*)$", *blocks("docs/models.md", "console"), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main(command.split()) == 0
        assert "qwen-3b" in capsys.readouterr().out
    (document,) = blocks("docs/models.md", "toml")
    file = tmp_path / "mine.toml"
    file.write_text(document, encoding="utf-8")
    mine = read_profile(str(file))
    assert (mine.name, mine.model, mine.shape.codes) == ("photos", "/models/qwen", (32, 16, 8, 4))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show"], "name a profile to show: tiny, small"),
        (["show", "huge"], "profile must be one of tiny, small"),
        (["list", "tiny"], "list takes no name"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["profiles", *arguments]) == 2
    assert sentence in capsys.readouterr().err
