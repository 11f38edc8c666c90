"""Failures: whatever a user gives, one sentence on standard error and the right exit code."""

import errno
import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

import psycopg
import pytest

from ops.cli.context import emit
from ops.cli.failures import explain, one_line
from ops.cli.main import main
from ops.jobs.registry import JOBS
from schemas.errors import WorkFailedError
from workers.runtime.logs import tolerant_streams


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that nothing may be written to before the input was looked at."""
    folder = tmp_path / "home"
    monkeypatch.setenv("SIGMA_HOME", str(folder))
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that has to refuse its input; returns its sentence."""
    code = main([str(one) for one in arguments])
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("sigma: ")
    assert len(line) < 1200
    return line


GOOD = {"filename": "a.jpg", "sentences": [{"raw": "a circle"}], "split": "train"}
KARPATHY: list[Any] = [
    None,
    7,
    "a.jpg",
    [],
    {},
    *(GOOD | {"filename": name} for name in (None, 7, "", [], {}, "x" * 600, "a\0b", "a\ud800")),
    *(GOOD | {"sentences": value} for value in (7, "a circle", {"raw": "a"}, [None], [7], ["a"])),
    *(
        GOOD | {"sentences": [{"raw": "fine"}, {"raw": raw}]}
        for raw in (None, 7, 1.5, True, [], {}, "a\0b", "\udfff")
    ),
    GOOD | {"sentences": [{}]},
    *(GOOD | {"split": split} for split in (7, [], {})),
    *(GOOD | {"filepath": folder} for folder in (7, [], "a\0b")),
]


@pytest.mark.parametrize("number", range(len(KARPATHY)))
def test_a_row_of_karpathys_splits_that_is_not_one_is_named_by_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    rows = [GOOD | {"filename": f"{row}.jpg"} for row in range(3)]
    place = number % 4
    rows.insert(place, KARPATHY[number])
    manifest = tmp_path / "dataset.json"
    manifest.write_text(json.dumps({"images": rows}))
    said = refusal(capsys, "ingest", "--manifest", manifest)
    assert f"image {place + 1}: " in said


def test_a_name_that_the_disk_does_not_allow_is_a_missing_image_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "dataset.json"
    manifest.write_text(json.dumps({"images": [GOOD | {"filename": "x" * 400}]}))
    assert "got none of 1 there" in refusal(capsys, "ingest", "--manifest", manifest)


LINES: list[bytes] = [
    b"",
    b"\xef\xbb\xbf",
    b"\r\n\r\n",
    b"\x00\x01\x02\xff",
    b"\xff\xfe{\x00}\x00",
    b"{",
    b"[]",
    b"null",
    b"7",
    b'"a.jpg"',
    b"{}",
    b'{"image_id": null, "path": "a.jpg"}',
    b'{"image_id": 7, "path": "a.jpg"}',
    b'{"image_id": "a", "path": 7}',
    b'{"image_id": "a"}',
    b'{"image_id": "a", "path": "a.jpg", "captions": "one"}',
    b'{"image_id": "a", "path": "a.jpg", "captions": [null]}',
    b'{"image_id": "a", "path": "a.jpg", "captions": [7]}',
    b'{"image_id": "a", "path": "a.jpg", "split": 7}',
    b'{"image_id": "a", "path": "a.jpg", "arrived_at": "yesterday"}',
    b'{"image_id": "a", "path": "a.jpg", "arrived_at": 7}',
    b'{"image_id": "a\\ud800", "path": "a.jpg"}',
    b'{"image_id": "a", "path": "a\\u0000.jpg"}',
    b'{"image_id": "' + b"x" * 3_000_000 + b'", "path": "a.jpg"}',
    b'{"image_id": ' + b"9" * 5000 + b', "path": "a.jpg"}',
    b"[" * 200_000,
]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_broken_line_of_a_manifest_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, ending: bytes
) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(LINES[number] + ending)
    refusal(capsys, "ingest", "--manifest", manifest)
    if LINES[number].strip(b"\xef\xbb\xbf\r\n") and b"\xff" not in LINES[number]:
        good = b'{"image_id": "ok", "path": "ok.jpg"}' + ending
        manifest.write_bytes(b"\xef\xbb\xbf" + good + LINES[number] + ending)
        assert "line 2: " in refusal(capsys, "ingest", "--manifest", manifest)


@pytest.mark.parametrize("seed", range(20))
def test_a_manifest_with_letters_turned_is_read_or_refused_but_never_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    rng = random.Random(seed)
    text = bytearray(json.dumps({"images": [GOOD, GOOD | {"filename": "b.jpg"}]}).encode())
    for _ in range(rng.randrange(1, 6)):
        text[rng.randrange(len(text))] = rng.randrange(256)
    manifest = tmp_path / "m.json"
    manifest.write_bytes(bytes(text))
    # None of its images is there, so no manifest of these can be taken.
    refusal(capsys, "ingest", "--manifest", manifest)


@pytest.mark.parametrize("name", ["missing.jsonl", "x" * 300, "file/below", "/dev/zero"])
def test_a_manifest_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "file").write_text("")
    refusal(capsys, "ingest", "--manifest", tmp_path / name)


@pytest.mark.parametrize(
    "arguments",
    [
        ("init",),
        ("status",),
        ("query", "a circle"),
        ("up",),
        ("up", "--foreground"),
        ("delete", "a"),
    ],
)
def test_a_home_that_is_a_file_or_below_one_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for link, target in (("link", "file"), ("dangling", "nowhere/else"), ("loop", "loop")):
        (tmp_path / link).symlink_to(tmp_path / target)
    places = [file, file / "below" / "home", tmp_path / "link", tmp_path / "loop" / "home"]
    for place in [*places, tmp_path / ("x" * 300), Path("/dev/null/home")]:
        monkeypatch.setenv("SIGMA_HOME", str(place))
        assert "SIGMA_HOME" in refusal(capsys, *arguments)


def misspelt(seed: int) -> str:
    """The name of a job with a letter left out, doubled, swapped, in capitals, or strange."""
    rng = random.Random(seed)
    name = rng.choice(sorted(JOBS))
    place = rng.randrange(1, len(name))
    before, letter, after = name[:place], name[place], name[place + 1 :]
    forms = [before + after, before + letter * 2 + after, f"{letter}{before}{after}", name.upper()]
    forms += [f"{name} ", name.replace(letter, "\u202e"), f"{before}\n{after}", name * 300]
    return forms[seed % len(forms)]


@pytest.mark.parametrize(
    "name",
    ["nosuch", "recall_probe", "Retrain", "", "\x1b[31m", *(misspelt(seed) for seed in range(24))],
)
def test_a_misspelt_job_is_refused_with_the_names_that_exist(
    home: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    said = refusal(capsys, "jobs", "run", name)
    assert "recall-probe, " in said
    assert "\x1b" not in said
    assert not home.exists()


@pytest.mark.parametrize("arguments", [("corpus", "--images", "1"), ("report", "recall")])
def test_a_place_that_cannot_be_written_to_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    code = main([*arguments, "--out", str(tmp_path / "file" / "below")])
    *_, line = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("sigma: ")
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 2, "/a/b"),
        (OSError(errno.EROFS, "Read-only file system", "/a"), 2, "Read-only"),
        (OSError(errno.ENOSPC, "No space left on device", "/a"), 1, "No space left"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left"),
        (psycopg.errors.DiskFull("could not extend file"), 1, "database"),
        (psycopg.errors.InsufficientPrivilege("permission denied"), 1, "database"),
        (MemoryError(), 1, "memory"),
        (KeyboardInterrupt(), 1, "interrupted"),
        (WorkFailedError("it broke"), 1, "it broke"),
        (ZeroDivisionError("division by zero"), 1, "SIGMA_LOG_LEVEL=debug"),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: BaseException, code: int, words: str) -> None:
    sentence, exit_code = explain(error)
    assert exit_code == code
    assert words in sentence


def test_a_traceback_is_for_those_who_ask_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGMA_LOG_LEVEL", "debug")
    assert main(["ingest", "--manifest", str(tmp_path / "missing")]) == 2
    *trace, line = capsys.readouterr().err.splitlines()
    assert trace[0].startswith("Traceback") or "Traceback" in "\n".join(trace)
    assert line.startswith("sigma: ")


def test_a_message_is_one_line_without_what_a_terminal_would_act_on() -> None:
    assert one_line("a\nb\x1b[2Jc\u202ed") == "a b [2Jc d"
    assert len(one_line("x" * 10_000)) < 1100


class _Terminal(io.TextIOWrapper):
    """A terminal of some encoding, and what it was sent."""

    def __init__(self, encoding: str) -> None:
        self.sent = io.BytesIO()
        super().__init__(self.sent, encoding=encoding, errors="strict")

    def text(self) -> str:
        self.flush()
        return self.sent.getvalue().decode(self.encoding)


LETTERS = ("é", "…", "图片", "🟥", "\udc80", "Ω→", "٣", "\u2028", "a\u0301", "€")


@pytest.fixture
def terminals(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[_Terminal]]:
    made: list[_Terminal] = []
    yield made
    for terminal in made:
        terminal.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "iso8859-15", "utf-8"])
@pytest.mark.parametrize("letters", LETTERS)
def test_no_letter_is_too_much_for_a_terminal_and_json_stays_json(
    monkeypatch: pytest.MonkeyPatch, terminals: list[_Terminal], encoding: str, letters: str
) -> None:
    out, err = _Terminal(encoding), _Terminal(encoding)
    terminals += [out, err]
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with tolerant_streams():
        emit({"caption": letters}, True, "")
        assert json.loads(out.text()) == {"caption": letters}
        emit({}, False, letters)
        print(letters, file=sys.stderr)
    assert len(err.text()) > 1


class _Full(io.StringIO):
    """A disk without room."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_answer_that_cannot_be_written_is_failed_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", _Full())
    with pytest.raises(WorkFailedError, match="No space left"):
        emit({}, True, "")


def test_an_error_that_cannot_be_told_still_has_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", cast(TextIO, _Full()))
    assert main(["ingest", "--manifest", str(tmp_path / "missing")]) == 2
