"""A corpus benchmark takes what people have: few manifests, no test captions, rows that are bad."""

import json
from pathlib import Path
from typing import Any

import pytest

from ops.bench.corpus_manifests import read_corpus
from schemas.errors import UsageError


def manifest(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    """A manifest of rows, each with its own id and path where it names none."""
    lines = []
    for number, row in enumerate(rows):
        own = {"image_id": f"{name}/{number}", "path": f"{name}-{number}.png"}
        lines.append(json.dumps(own | row))
        (folder / f"{name}-{number}.png").touch()
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


TOLD = {"captions": ["a red boat"], "test_captions": ["boat, red"]}
ASKED = {"test_captions": ["boat, red"]}


def test_the_first_is_trained_the_second_arrives_the_third_shifts(tmp_path: Path) -> None:
    corpus = read_corpus(
        [
            manifest(tmp_path, "train", TOLD, TOLD, ASKED),
            manifest(tmp_path, "stream", TOLD, ASKED),
            manifest(tmp_path, "shift", TOLD, ASKED, ASKED),
        ]
    )
    assert corpus.name == tmp_path.name
    assert [entry.image_id for entry in corpus.train] == ["train/0", "train/1"]
    # What arrives later is asked for, and never learnt from.
    assert [entry.captions for entry in corpus.stream] == [(), ()]
    assert [entry.image_id for entry in corpus.told] == ["shift/0"]
    assert [entry.image_id for entry in corpus.untold] == ["shift/1", "shift/2"]
    assert corpus.notes == ()


def test_without_test_captions_the_captions_are_asked(tmp_path: Path) -> None:
    told = {"captions": ["a red boat"]}
    corpus = read_corpus(
        [
            manifest(tmp_path, "train", told),
            manifest(tmp_path, "stream", told),
            manifest(tmp_path, "shift", told, told, told),
        ]
    )
    assert corpus.stream[0].queries == ("a red boat",)
    # Every second image of the shift keeps its captions to itself.
    assert [entry.image_id for entry in corpus.told] == ["shift/0", "shift/2"]
    assert corpus.untold[0].captions == ()
    assert corpus.untold[0].queries == ("a red boat",)
    assert len(corpus.notes) == 2


def test_one_manifest_is_divided_by_its_splits_or_by_ids(tmp_path: Path) -> None:
    splits = ("train", "val", "shift", "shift")
    rows = [TOLD | {"split": split} for split in splits]
    divided = read_corpus([manifest(tmp_path, "all", *rows)])
    parts = (divided.train, divided.stream, divided.told, divided.untold)
    assert [len(part) for part in parts] == [1, 1, 1, 1]

    plain = read_corpus([manifest(tmp_path, "plain", *[TOLD] * 40)])
    assert len(plain.train) + len(plain.stream) == 40
    assert 2 <= len(plain.stream) <= 16
    assert "are kept from training" in plain.notes[0]
    assert plain == read_corpus([tmp_path / "plain.jsonl"])


@pytest.mark.parametrize(
    ("train", "stream", "words"),
    [
        ([TOLD], [{}], "nothing can be asked for"),
        ([TOLD | {"image_id": "a"}], [ASKED | {"image_id": "a"}], "'a' twice"),
        ([TOLD | {"captions": "no list"}], [ASKED], "train.jsonl, line 1: captions must be"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    tmp_path: Path, train: list[dict[str, Any]], stream: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        read_corpus([manifest(tmp_path, "train", *train), manifest(tmp_path, "stream", *stream)])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_images_without_captions_are_learnt_only_where_none_has_any(tmp_path: Path) -> None:
    later = manifest(tmp_path, "stream", ASKED)
    told = read_corpus([manifest(tmp_path, "some", TOLD, ASKED), later])
    assert [entry.captions for entry in told.train] == [("a red boat",)]
    assert not any("captions" in note for note in told.notes)
    untold = read_corpus([manifest(tmp_path, "none", ASKED, ASKED), later])
    assert [entry.captions for entry in untold.train] == [(), ()]
    assert "no trained image has captions" in untold.notes[0]


def test_pictures_that_are_elsewhere_are_missed_before_anything_is_trained(tmp_path: Path) -> None:
    train = manifest(tmp_path, "train", TOLD)
    away = manifest(tmp_path, "away", ASKED)
    (tmp_path / "away-0.png").unlink()
    with pytest.raises(UsageError, match=r"none of the 1 pictures of .*away.jsonl exists"):
        read_corpus([train, away])


def test_no_manifest_or_too_many_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 4"):
        read_corpus([tmp_path] * 4)
