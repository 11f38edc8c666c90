"""The hub: what is said when weights of others are not to be had."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.network.hub import loading, open_snapshot
from model.network.parts import pretrained_model
from model.network.profiles import profile
from model.network.tokenizer import load_tokenizer
from schemas.errors import RefuseToStartError, RetryLaterError, UsageError
from tests import vl_checkpoints


def test_a_hub_that_is_not_within_reach_is_one_sentence_that_names_what_was_wanted() -> None:
    said = "Can't load 'someone/model'. If you were trying to load it\nfrom the hub, make sure"
    with pytest.raises(RetryLaterError) as caught, loading("someone/model"):
        raise OSError(said)
    sentence = str(caught.value)
    assert "someone/model cannot be loaded from the hub (Can't load 'someone/model')" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{")
    with pytest.raises(RefuseToStartError, match="complete folder"):
        load_tokenizer(tmp_path)


COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""Of a repository that this file makes up."""


def hub_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a hub cache, with no way to the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "hub"))
    return root / "hub"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot in a hub cache with one repository, `owner/qwen`."""
    repository = hub_cache(tmp_path, monkeypatch) / "models--owner--qwen"
    snapshot = vl_checkpoints.qwen(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("name", ["owner/qwen", "owner/qwen@main", f"owner/qwen@{COMMIT}"])
def test_a_hub_name_is_pinned_to_the_commit_that_it_stood_for(cache: Path, name: str) -> None:
    snapshot = open_snapshot(name, "model")
    assert (snapshot.folder, snapshot.source) == (cache, f"owner/qwen@{COMMIT}")
    # What is recorded asks for the same files, even when the branch has moved on.
    (cache.parents[1] / "refs" / "main").write_text("f" * 40)
    assert open_snapshot(snapshot.source, "model").folder == cache
    with pytest.raises(RetryLaterError, match="owner/qwen@main cannot be loaded from the hub"):
        open_snapshot("owner/qwen@main", "model")


def test_a_model_records_the_commit_of_its_weights(cache: Path) -> None:
    sigma = pretrained_model(replace(profile("qwen-3b"), model="owner/qwen"))
    assert sigma.profile.model == f"owner/qwen@{COMMIT}"


def test_what_is_neither_a_folder_nor_a_name_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"the model must be a folder, or .* got 'qwen'; see docs"):
        open_snapshot("qwen", "model")
