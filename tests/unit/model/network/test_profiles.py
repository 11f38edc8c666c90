"""Profiles: the paper's numbers by name, and every number in a file that can be read back."""

import json
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from model.network import profile_document as documents
from model.network.profile_document import (
    profile_document,
    profile_toml,
    read_profile,
    recorded_profile,
)
from model.network.profiles import PROFILES, Profile, Stage, TinySize, profile
from schemas.errors import UsageError


@pytest.mark.parametrize("name", ["qwen-3b", "qwen-7b"])
def test_the_qwen_profiles_are_the_papers(name: str) -> None:
    paper = profile(name)
    assert paper.shape.codes == (64, 32, 16, 32)
    # The paper's jina-embeddings-v4, with the adapter that the paper uses in its weights.
    assert paper.encoder == "jinaai/jina-embeddings-v4-vllm-retrieval"
    assert paper.teacher == "jinaai/jina-reranker-m0"
    assert [stage.name for stage in paper.stages] == ["memorize", "comprehend", "align"]
    assert not paper.trust_remote_code


def test_an_unknown_profile_is_refused_with_the_allowed_names() -> None:
    with pytest.raises(UsageError, match=", ".join(PROFILES)):
        profile("huge")
    with pytest.raises(UsageError, match=r"or a file that ends in \.toml, got 'huge'"):
        read_profile("huge")


def written(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", PROFILES)
def test_a_printed_profile_is_read_back_as_the_same_one(tmp_path: Path, name: str) -> None:
    printed = profile_toml(PROFILES[name])
    assert read_profile(written(tmp_path, printed)) == PROFILES[name]
    # And as it travels: in the JSON of a checkpoint and of the database.
    stored = json.loads(json.dumps(profile_document(PROFILES[name])))
    assert recorded_profile(name, stored) == PROFILES[name]


def test_no_number_of_a_profile_is_left_out_of_its_file() -> None:
    document = tomllib.loads(profile_toml(PROFILES["tiny"]))
    for kind, table in (
        (TinySize, document["tiny"]),
        (Stage, document["refresh"]["align"] | {"name": ""}),
    ):
        assert {field.name for field in fields(kind)} == set(table)
    without_none = {
        field.name for field in fields(Profile) if getattr(PROFILES["tiny"], field.name) is not None
    }
    assert without_none == set(document)


def test_every_number_can_be_changed_and_survives_the_way_to_a_file_and_back(
    tmp_path: Path,
) -> None:
    def changed(value: Any, name: str) -> Any:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value / 2 if isinstance(value, float) else value + 1
        return value

    base = PROFILES["qwen-3b"]
    stages = []
    for stage in base.stages:
        changes = {
            field.name: changed(getattr(stage, field.name), field.name) for field in fields(Stage)
        }
        stages.append(replace(stage, **changes))
    changes = {
        field.name: changed(getattr(base, field.name), field.name) for field in fields(Profile)
    }
    other = replace(
        base, **changes | {"name": "mine", "model": '/models/ä "b"\\c', "min_pixels": 99}
    ).with_stages(tuple(stages))
    assert other != base
    assert read_profile(written(tmp_path, profile_toml(other))) == other


def test_a_file_may_start_from_a_built_in_profile_and_change_one_number(tmp_path: Path) -> None:
    file = written(
        tmp_path, 'base = "qwen-3b"\nmodel = "/models/mine"\n[stages.align]\nbatch = 12\n'
    )
    mine = read_profile(file)
    base = PROFILES["qwen-3b"]
    align = replace(base.stage("align"), batch=12)
    assert mine == replace(base, name="mine", model="/models/mine").with_stages((align,))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('base = "huge"', "base must be one of tiny, small, qwen-3b, qwen-7b, got 'huge'"),
        ('base = "tiny"\nmodell = "x"', "modell is no key of a profile, allowed are name, shape"),
        (
            'base = "tiny"\n[stages.align]\nbatches = 3',
            r"stages\.align\.batches is no key of a profile, allowed are epochs, learning_rate",
        ),
        (
            'base = "tiny"\n[stages.align]\nbatch = 0',
            r"stages\.align\.batch must be a whole number from 1 to 1,048,576, got 0",
        ),
        (
            'base = "tiny"\n[refresh.align]\nlearning_rate = 3',
            r"refresh\.align\.learning_rate must be a number from 0 to 1, got 3",
        ),
        (
            'base = "tiny"\n[refresh.align]\nlearning_rate = nan',
            r"learning_rate must be a number from 0 to 1, got nan",
        ),
        ('base = "tiny"\n[stages.alig]\nbatch = 3', "stages must be tables memorize, comp.*'alig'"),
        ('base = "tiny"\nmax_text_tokens = "96"', "must be a whole number, got '96'"),
        ('base = "tiny"\nmax_text_tokens = true', "must be a whole number, got True"),
        ('base = "tiny"\njoint_tokens = 1', "joint_tokens must be true or false, got 1"),
        ('base = "tiny"\nshape = 4', "shape must be a table, got 4"),
        ('base = "tiny"\n[shape]\ncodes = [4, 4]', r"shape\.codes must be a list of 4, got \[4,"),
        (
            'base = "tiny"\n[shape]\ncodes = [1048576, 1048576, 1048576, 4]',
            "fewer than 2",
        ),
        ('base = "tiny"\n[tiny]\nheads = 7', r"tiny\.hidden must be a multiple of 14"),
        ('base = "tiny"\nmodel = "a/b"', "either model.* got both"),
        ('base = "qwen-3b"\nencoder = ""', "encoder must be a text that is not empty"),
        ('base = "qwen-3b"\nmin_pixels = 150529', "min_pixels must be at most max_pixels, 150528"),
        ('base = "qwen-3b"\nname = "a b"', "name must be letters, .* got 'a b'"),
        ('model = "a/b"', 'shape must be given.* base = "qwen-3b"'),
        ("name = ", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        read_profile(written(tmp_path, text))
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml cannot be read"):
        read_profile("nowhere.toml")


def test_a_field_that_is_added_to_a_profile_is_read_and_written_without_a_line_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True, slots=True)
    class Later(Profile):
        accumulation: int = 1
        attention: str | None = None

    base = {field.name: getattr(PROFILES["qwen-3b"], field.name) for field in fields(Profile)}
    later = Later(**base, accumulation=4, attention="sdpa")
    monkeypatch.setattr(documents, "Profile", Later)
    assert read_profile(written(tmp_path, profile_toml(later))) == later
    with pytest.raises(UsageError, match="accumulation must be a whole number, got 'x'"):
        read_profile(written(tmp_path, profile_toml(later).replace("= 4", '= "x"')))


def test_a_recorded_profile_of_another_version_is_read_as_far_as_it_is_known() -> None:
    document = profile_document(PROFILES["small"])
    # One that a later version has, and one that an earlier version had not.
    document["stages"]["align"]["momentum"] = 0.5
    document["colour"] = "red"
    del document["guidance"]
    assert recorded_profile("small", document) == replace(PROFILES["small"], guidance=0.0)
    # Before numbers were recorded there were built-in profiles only.
    assert recorded_profile("tiny", None) == PROFILES["tiny"]
    # A name of somebody's file.
    mine = replace(PROFILES["tiny"], name="mine", wins=0.7)
    assert recorded_profile("mine", profile_document(mine)) == mine
