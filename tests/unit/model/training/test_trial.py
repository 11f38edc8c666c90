"""The trial tells corpora that the tiny profile learns from those that it cannot."""

import json
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from model.network.base import SHIPPED, Base
from model.network.resize import resize
from model.progress import quiet
from model.training.contrastive import CaptionedImages
from model.training.trial import AdaptationTrial, TrialConfig, try_adaptation
from tests.landscapes import write_landscapes

IMAGES = 104


def landscapes(folder: Path) -> tuple[CaptionedImages, list[str]]:
    """Pictures, captions and one held-out caption of each."""
    manifest = write_landscapes(folder, IMAGES, 5, seed=1)
    pixels, captions, queries = [], [], []
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        picture = np.asarray(Image.open(folder / row["path"]).convert("RGB"))
        pixels.append(resize(picture, 56))
        captions.append(tuple(row["captions"]))
        queries.append(row["test_captions"][0])
    return CaptionedImages(np.stack(pixels), captions), queries


def test_landscapes_are_learnt_and_names_that_occur_once_are_not(tmp_path: Path) -> None:
    base = Base.load(SHIPPED)
    before = torch.get_rng_state()
    weights = [value.clone() for value in base.towers.parameters()]
    data, queries = landscapes(tmp_path / "land")
    learnt = try_adaptation(base, data, queries, TrialConfig(rounds=3, views=800), quiet)
    assert learnt is not None
    assert learnt.is_promising

    chance = Random(4)
    names = ["".join(chance.choices("abcdefghijklmnop", k=9)) for _ in range(IMAGES)]
    named = CaptionedImages(data.pixels, [(name,) for name in names])
    short = TrialConfig(rounds=2, views=300)
    unknown = try_adaptation(base, named, names, short, quiet)
    assert unknown is not None
    assert not unknown.is_promising
    assert unknown.views == 600
    # What is trained afterwards is the same as without a trial.
    assert torch.equal(before, torch.get_rng_state())
    for then, now in zip(weights, base.towers.parameters(), strict=True):
        assert torch.equal(then, now)


def test_few_images_are_not_tried() -> None:
    few = CaptionedImages(np.zeros((20, 56, 56, 3), np.uint8), [("a",)] * 20)
    assert try_adaptation(Base.load(SHIPPED), few, ["a"] * 20, TrialConfig(), quiet) is None


def test_few_held_out_pictures_are_granted_their_error() -> None:
    assert not AdaptationTrial(order=0.70, held_out=200, views=8000).is_promising
    assert AdaptationTrial(order=0.70, held_out=30, views=8000).is_promising
