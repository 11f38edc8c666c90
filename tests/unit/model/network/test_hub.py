"""The hub: what is said when weights of others are not to be had."""

from pathlib import Path

import pytest

from model.network.hub import loading
from model.network.tokenizer import load_tokenizer
from schemas.errors import RefuseToStartError, RetryLaterError


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
