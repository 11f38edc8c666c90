"""Stage 0: the base learns, is saved small, and is read back as it was."""

import json
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from model.network.base import ABOUT, SHIPPED, WEIGHTS, Base
from model.progress import quiet
from model.training.adapt import AdaptConfig, adapt, base_recall, pretrain_base
from model.training.contrastive import CaptionedImages
from model.training.pretrain import PretrainConfig
from ops.scenes.corpus import CorpusConfig, fingerprints, samples
from ops.scenes.scene_hints import placed_labels
from schemas.errors import RefuseToStartError
from tests.unit.model.conftest import small_base


def scenes(count: int, start: int = 0) -> CaptionedImages:
    """Rendered scenes with their captions, as the backbone sees them."""
    drawn = list(samples(CorpusConfig(count, seed=9, start=start, side_px=56)))
    pixels = np.stack([sample.pixels(56) for sample in drawn])
    return CaptionedImages(pixels, [sample.captions for sample in drawn])


def test_adapting_teaches_the_encoder_what_it_did_not_know() -> None:
    base = small_base()
    data = scenes(96)
    before = base_recall(base, data, 0)
    after = adapt(base, data, AdaptConfig(contrastive_views=96 * 25, pretrain_views=96), quiet)
    assert base_recall(after, data, 0) > before + 0.2
    assert after.about["adapted"]["images"] == 96


class WatchedBar:
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def update(self, n: int, **figures: float) -> None:
        self.losses.append(figures["loss"])


def test_the_vision_tower_learns_labels_before_the_rest_learns() -> None:
    base = small_base()
    drawn = list(samples(CorpusConfig(64, seed=9, side_px=56)))
    pixels = np.stack([sample.pixels(56) for sample in drawn])
    data = CaptionedImages(pixels, [sample.captions for sample in drawn])
    labels = placed_labels([sample.scene for sample in drawn])
    language = deepcopy(base.backbone.model.language_model.state_dict())
    bars: dict[str, WatchedBar] = {}

    def watched(label: str, total: int) -> AbstractContextManager[WatchedBar]:
        if label != "vision":
            for name, weight in base.backbone.model.language_model.state_dict().items():
                assert torch.equal(weight, language[name]), name
        bars[label] = WatchedBar()
        return nullcontext(bars[label])

    config = PretrainConfig(vision_epochs=12, epochs=1, batch=32)
    pretrain_base(base, data, config, watched, labels)
    assert list(bars) == ["vision", "vision and language"]
    # Twelve epochs of two batches; a guess of all labels costs about 50.
    assert len(bars["vision"].losses) == 24
    assert bars["vision"].losses[0] > 40
    assert bars["vision"].losses[-1] < 35


def test_a_saved_base_is_read_back_as_it_was_up_to_half_precision(tmp_path: Path) -> None:
    base = small_base()
    base.save(tmp_path)
    loaded = Base.load(tmp_path)
    texts = ["a red circle", "ein Stern"]
    np.testing.assert_allclose(
        loaded.encoder.embed_texts(texts), base.encoder.embed_texts(texts), atol=5e-3
    )


def test_a_base_with_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    small_base().save(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no")
    with pytest.raises(RefuseToStartError, match="cannot be read"):
        Base.load(tmp_path)
    (tmp_path / ABOUT).unlink()
    with pytest.raises(RefuseToStartError, match="sigma base"):
        Base.load(tmp_path)


def test_the_shipped_base_is_small_and_knows_scenes_it_never_saw() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 8_000_000
    assert base_recall(Base.load(SHIPPED), scenes(300, start=5_000), 0) >= 0.95


def test_the_shipped_base_shares_no_scene_with_any_corpus() -> None:
    corpus = json.loads((SHIPPED / ABOUT).read_text())["corpus"]
    seen = fingerprints(CorpusConfig(**corpus))
    for seed in range(3):
        assert not seen & fingerprints(CorpusConfig(3_500, seed=seed))
