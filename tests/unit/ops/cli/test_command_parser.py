"""Options may stand anywhere among the arguments of a command."""

import tomllib
from pathlib import Path

import pytest

from ops.cli.main import parser

FILES = [Path("a.jsonl"), Path("b.jsonl")]


@pytest.mark.parametrize(
    "line",
    [
        "bench corpus a.jsonl b.jsonl --profile small --seed 3",
        "bench corpus --profile small --seed 3 a.jsonl b.jsonl",
        "bench --profile small corpus a.jsonl --seed 3 b.jsonl",
    ],
)
def test_options_before_between_and_behind_manifests(line: str) -> None:
    parsed = parser().parse_args(line.split())
    assert (parsed.what, parsed.manifests) == ("corpus", FILES)
    assert (parsed.profile, parsed.seed) == ("small", 3)


def test_what_is_missing_or_unknown_is_still_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("query", "bench nothing", "bench corpus --unknown"):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args(line.split())
        assert ended.value.code == 2
    assert "the following arguments are required: TEXT" in capsys.readouterr().err
    parsed = parser().parse_args(["dead-letters", "show", "--limit", "3", "0:7"])
    assert (parsed.action, parsed.place, parsed.limit) == ("show", "0:7", 3)


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["--version"])
    assert ended.value.code == 0
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out.strip() == f"sigma {project['version']}"
