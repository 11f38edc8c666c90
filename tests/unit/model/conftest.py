"""A very small model of the real class for the tests of this folder: random weights, seeded."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from model.network.backbone import fresh_backbone
from model.network.base import Base
from model.network.encoder import TwoTower
from model.network.parts import ModelParts, parts_from_base
from model.network.profiles import Profile, Stage, TinySize, profile
from model.network.sigma import SigmaModel
from model.network.teacher import CrossHead
from model.network.tokenizer import train_tokenizer
from schemas.identifiers import IdentifierShape
from schemas.records import ByteArray

SMALL = TinySize(
    hidden=40,
    layers=2,
    heads=2,
    kv_heads=1,
    feed_forward=64,
    vision_hidden=32,
    vision_depth=1,
    vision_heads=2,
    vision_feed_forward=32,
    vocabulary=400,
)
TEXTS = (
    "a small red circle",
    "two blue squares on navy",
    "eine grüne Scheibe",
    "a large star at the top left",
)

WIDTH = 24
"""Of the encoder's embeddings."""

MAX_TOKENS = 24
"""Of a text."""


def small_profile() -> Profile:
    """The tiny profile with a small shape and short stages."""
    stages = (
        Stage("memorize", epochs=2, learning_rate=2e-3, batch=8, vector_views=500),
        Stage("comprehend", epochs=2, learning_rate=2e-3, batch=8, replay=0.25),
        Stage(
            "align",
            epochs=2,
            learning_rate=2e-3,
            batch=8,
            soft_label_weight=0.1,
            mismatched=0.5,
            vector_views=1000,
        ),
    )
    return replace(
        profile("tiny").with_stages(stages),
        shape=IdentifierShape(codes=(4, 3, 3, 2), suffixes=8),
        embedding_width=WIDTH,
        tiny=SMALL,
        max_text_tokens=MAX_TOKENS,
    )


def small_base(seed: int = 0) -> Base:
    """A base with random weights."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(TEXTS * 5, SMALL.vocabulary)
    return Base(
        size=SMALL,
        tokenizer=tokenizer,
        towers=TwoTower(len(tokenizer), WIDTH).eval(),
        cross=CrossHead(width=WIDTH).eval(),
        backbone=fresh_backbone(SMALL, tokenizer, seed).eval(),
        limit=MAX_TOKENS,
        about={},
    )


def forget_identifiers(sigma: SigmaModel) -> None:
    """Make a model's identifiers all alike to it, as if it had never learnt them apart."""
    embedding = sigma.backbone.get_input_embeddings().weight
    kinds = [*sigma.levels, *map(chain.from_iterable, sigma.prompts.joint)]
    with torch.no_grad():
        for kind in kinds:
            tokens = list(kind)
            embedding[tokens] = embedding[tokens[0]].clone()


def pictures(count: int, seed: int = 0, side: int = 56) -> list[ByteArray]:
    """Random pictures."""
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 255, (count, side, side, 3), dtype=np.uint8))


@pytest.fixture
def parts() -> ModelParts:
    """A model, its encoder and its teacher."""
    return parts_from_base(small_base(), small_profile())
