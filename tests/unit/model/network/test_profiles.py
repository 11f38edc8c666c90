"""Profiles: the paper's numbers, by name."""

import pytest

from model.network.profiles import PROFILES, profile
from schemas.errors import UsageError


@pytest.mark.parametrize("name", ["qwen-3b", "qwen-7b"])
def test_the_qwen_profiles_are_the_papers(name: str) -> None:
    paper = profile(name)
    assert paper.shape.codes == (64, 32, 16, 32)
    assert paper.encoder == "jinaai/jina-embeddings-v4"
    assert paper.teacher == "jinaai/jina-reranker-m0"
    assert [stage.name for stage in paper.stages] == ["memorize", "comprehend", "align"]


def test_an_unknown_profile_is_refused_with_the_allowed_names() -> None:
    with pytest.raises(UsageError, match=", ".join(PROFILES)):
        profile("huge")
