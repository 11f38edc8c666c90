"""Captioners of the real classes, small and random, from folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.network.captioner import VisionLanguageCaptioner, first_sentence
from schemas.errors import RefuseToStartError, UsageError
from schemas.records import ByteArray
from tests.captioner_checkpoints import blip, talking_qwen
from tests.vl_checkpoints import qwen


def photos(count: int) -> list[ByteArray]:
    """Pictures of several sizes and colours."""
    rng = np.random.default_rng(0)
    sizes = [(60, 90), (120, 80), (64, 64), (100, 40)]
    shapes = [sizes[number % len(sizes)] for number in range(count)]
    pictures: list[ByteArray] = []
    for shape in shapes:
        colour = rng.integers(0, 200, 3)
        noise = rng.integers(0, 50, (*shape, 3))
        pictures.append((colour + noise).astype(np.uint8))
    return pictures


@pytest.mark.parametrize("checkpoint", [talking_qwen, blip])
def test_each_picture_gets_a_sentence_of_its_own_the_same_alone_and_among_others(
    tmp_path: Path, checkpoint: Callable[[Path], Path]
) -> None:
    captioner = VisionLanguageCaptioner.load(str(checkpoint(tmp_path / "model")))
    pictures = photos(4)
    together = captioner.caption(pictures)
    assert together == [captioner.caption([picture])[0] for picture in pictures]
    assert len(set(together)) > 1
    assert all(0 < len(caption) <= 300 for caption in together)
    for caption in together:
        assert "Describe" not in caption
        assert "assistant" not in caption
    assert captioner.source == str(tmp_path / "model")


def test_only_the_first_sentence_is_kept() -> None:
    assert first_sentence("  A dog on a beach. The sky is blue.") == "A dog on a beach."
    assert first_sentence("two cats\n\nin a box") == "two cats"
    assert first_sentence("v1.5 of a sign") == "v1.5 of a sign"
    assert first_sentence(" \n ") == ""
    assert len(first_sentence("dog " * 200)) == 300


def test_what_is_no_captioner_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="captioner must be a folder"):
        VisionLanguageCaptioner.load("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefuseToStartError, match="must hold a model"):
        VisionLanguageCaptioner.load(str(tmp_path / "empty"))
    silent = qwen(tmp_path / "silent")
    (silent / "preprocessor_config.json").unlink()
    with pytest.raises(RefuseToStartError, match="silent must hold"):
        VisionLanguageCaptioner.load(str(silent))
