"""`sigma keys new`: a key for its owner, an entry for the operator."""

import json

import pytest

from ops.cli.main import main
from schemas.access_settings import AccessSettings
from schemas.settings import Settings
from workers.query.key_ring import KeyRing


def test_the_printed_entry_lets_the_printed_key_in(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["keys", "new", "web", "--scope", "metrics", "--rate", "2.5", "--json"]
    assert main(arguments) == 0
    made = json.loads(capsys.readouterr().out)
    access: AccessSettings = Settings.from_environment({"SIGMA_API_KEYS": made["entry"]}).access
    found = KeyRing.open(access).find(made["key"].encode())
    assert found is not None
    assert (found.name, found.scope, found.rate) == ("web", "metrics", 2.5)
    assert made["key"] not in made["entry"]


def test_people_get_both_and_are_told_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "web"]) == 0
    text = capsys.readouterr().out
    assert "Authorization: Bearer" in text
    assert "SIGMA_API_KEYS" in text
    assert "web:read:" in text


@pytest.mark.parametrize(
    "arguments", [["a b"], ["web", "--rate", "0"], ["web", "--rate", "fast"], [""], ["x" * 65]]
)
def test_a_name_or_rate_that_no_entry_can_have_is_one_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "new", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
