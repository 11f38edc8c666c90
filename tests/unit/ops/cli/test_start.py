"""The start of `sigma`: one sentence where it does not run."""

import os
import sys

import pytest

from ops.cli import start


@pytest.mark.parametrize(
    ("platform", "name"), [("darwin", "macOS"), ("win32", "Windows"), ("sunos5", "sunos5")]
)
def test_another_system_gets_one_sentence(
    platform: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert start.main(["--version"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"sigma: sigma runs on Linux, got {name}; ")
    assert err.count("\n") == 1


def test_processes_that_it_starts_leave_out_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Put back to what it was before afterwards.
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    with pytest.raises(SystemExit) as ended:
        start.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("sigma ")
    assert os.environ["PYTHONSAFEPATH"] == "1"
