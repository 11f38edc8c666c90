"""`sigma train`: options that contradict each other are refused before anything starts."""

import pytest

from ops.cli.main import parser
from ops.cli.train import check
from schemas.errors import UsageError


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], "name what to train on"),
        (["--manifest", "m", "--from-store"], "exclude each other"),
        (["--manifest", "m", "--refresh"], "exclude each other"),
        (["--from-store", "--recluster"], "exclude each other"),
        (["--refresh", "--adapt", "never"], "base weights"),
        (["--recluster", "--base", "b"], "base weights"),
        (["--recluster", "--stage", "align"], "runs no stage"),
    ],
)
def test_contradictions_are_refused_in_one_line(arguments: list[str], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        check(parser().parse_args(["train", *arguments]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--manifest", "m"],
        ["--from-store"],
        ["--refresh"],
        ["--recluster"],
        ["--refresh", "--recluster", "--stage", "memorize"],
        ["--resume"],
    ],
)
def test_what_belongs_together_is_accepted(arguments: list[str]) -> None:
    check(parser().parse_args(["train", *arguments]))
