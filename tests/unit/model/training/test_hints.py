"""Hints: exchanged captions count as wrong ones, and labels teach the grid what is where."""

from math import log

import numpy as np
import pytest
import torch

from model.network.encoder import TwoTower
from model.training.contrastive import CaptionedImages, ContrastiveConfig, train_two_tower
from model.training.hints import PLACE_WEIGHT, HintedLoss, Hints, PlacedLabels, TokenHints
from ops.scenes.corpus import CorpusConfig, samples
from ops.scenes.scene import Scene, SceneObject
from ops.scenes.scene_hints import placed_labels, scene_hints
from ops.scenes.vocabulary import COLOURS, GROUNDS, SHAPES
from tests.unit.model.conftest import small_base

# Cross-entropy of a guess among 9 shapes, 11 colours, 3 sizes and 4 fills.
GUESS = log(9 * 11 * 3 * 4)

# One place, in the middle.
CENTRE = ((0.5, 0.5),)

# And of a guess whether each of three words is true.
WORDS = np.array([[True, False, False], [False, True, True]])
LABEL_GUESS = PLACE_WEIGHT * GUESS + log(2) * 3


def hinted(labels: PlacedLabels) -> HintedLoss:
    """A loss whose labels are guessed."""
    torch.manual_seed(0)
    loss = HintedLoss(TwoTower(64, 16), labels).eval()
    for head in (loss.head, loss.word_head):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    return loss


def one_image() -> tuple[PlacedLabels, torch.Tensor]:
    labels = PlacedLabels(CENTRE, (9, 11, 3, 4), np.array([[[5, 9, 2, 3]]], np.int64), WORDS[:1])
    return labels, torch.rand(1, 3, 56, 56) * 2 - 1


def test_an_exchanged_caption_that_is_as_near_as_the_own_costs_a_coin_toss() -> None:
    labels, pixels = one_image()
    tokens = torch.tensor([[3, 4, 5], [3, 4, 5]])
    rows = np.zeros(1, np.int64)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    loss = hinted(labels)(pixels, tokens, mask, rows).detach()
    # Half of it is the side of the texts, which an only image cannot get wrong.
    assert float(loss) == pytest.approx(log(2) / 2 + LABEL_GUESS, rel=1e-5)


def test_an_exchanged_caption_costs_less_the_farther_it_lies() -> None:
    labels, pixels = one_image()
    module = hinted(labels)
    mask = torch.ones(2, 3, dtype=torch.bool)
    costs: list[float] = []
    with torch.no_grad():
        for exchanged in range(6, 16):
            tokens = torch.tensor([[3, 4, 5], [exchanged] * 3])
            _, image = module.towers.image(pixels)
            _, texts = module.towers.text(tokens, mask)
            margin = float(module.towers.scale * image[0] @ (texts[0] - texts[1]))
            loss = float(module(pixels, tokens, mask, np.zeros(1, np.int64)))
            costs.append(loss - LABEL_GUESS)
            assert costs[-1] == pytest.approx(np.log1p(np.exp(-margin)) / 2, abs=1e-4)
    assert max(costs) - min(costs) > 0.1


def test_labels_are_those_of_the_batch_in_its_order() -> None:
    values = np.array([[[1, 1, 1, 1]], [[5, 9, 2, 3]]], np.int64)
    module = hinted(PlacedLabels(CENTRE, (9, 11, 3, 4), values, WORDS))
    with torch.no_grad():
        # Sure of what the second image shows.
        for column in (5, 9 + 9, 9 + 11 + 2, 9 + 11 + 3 + 3):
            module.head.bias[column] = 50.0
        module.word_head.bias.copy_(torch.tensor([-50.0, 50.0, 50.0]))
    tokens = torch.tensor([[3, 4], [3, 4]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    pixels = torch.zeros(1, 3, 56, 56)
    right = float(module(pixels, tokens, mask, np.array([1])).detach())
    wrong = float(module(pixels, tokens, mask, np.array([0])).detach())
    assert right == pytest.approx(log(2) / 2, abs=1e-4)
    assert wrong == pytest.approx(log(2) / 2 + PLACE_WEIGHT * 4 * 50 + 3 * 50, rel=1e-3)


@pytest.mark.parametrize(
    ("place", "tokens"),
    [
        ((0.5, 0.5), [5, 6, 9, 10]),
        ((0.25, 0.25), [0, 1, 4, 5]),
        ((0.75, 0.25), [2, 3, 6, 7]),
        ((0.25, 0.75), [8, 9, 12, 13]),
        ((0.0, 1.0), [8, 9, 12, 13]),
    ],
)
def test_what_is_at_a_place_is_read_from_the_four_tokens_around_it(
    place: tuple[float, float], tokens: list[int]
) -> None:
    labels = PlacedLabels((place,), (9, 11, 3, 4), np.zeros((1, 1, 4), np.int64), WORDS[:1])
    hints = TokenHints(labels, side=4, hidden=8)
    seen = torch.zeros(1, 16, 8, requires_grad=True)
    logits = hints.head(seen[:, hints.around].flatten(2))
    logits.sum().backward()
    assert seen.grad is not None
    assert np.flatnonzero(seen.grad[0].abs().sum(1).numpy()).tolist() == tokens


def test_tokens_that_are_sure_of_the_right_labels_cost_nothing() -> None:
    values = np.array([[[1, 1, 1, 1]], [[5, 9, 2, 3]]], np.int64)
    hints = TokenHints(PlacedLabels(CENTRE, (9, 11, 3, 4), values, WORDS), side=4, hidden=8)
    for head in (hints.head, hints.word_head):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    tokens = torch.rand(1, 16, 8)
    with torch.no_grad():
        assert float(hints(tokens, np.array([1]))) == pytest.approx(LABEL_GUESS, rel=1e-5)
        for column in (5, 9 + 9, 9 + 11 + 2, 9 + 11 + 3 + 3):
            hints.head.bias[column] = 50.0
        hints.word_head.bias.copy_(torch.tensor([-50.0, 50.0, 50.0]))
        assert float(hints(tokens, np.array([1]))) == pytest.approx(0, abs=1e-4)
        wrong = float(hints(tokens, np.array([0])))
    assert wrong == pytest.approx(PLACE_WEIGHT * 4 * 50 + 3 * 50, rel=1e-3)


def test_words_of_a_scene_are_its_ground_shapes_and_colours() -> None:
    red_ring = SceneObject("ring", "red", "small", "solid", "centre")
    blue_ring = SceneObject("ring", "blue", "large", "solid", "top left")
    labels = placed_labels([Scene("navy", "plain", (red_ring, blue_ring))])
    known = (*SHAPES, *COLOURS, *GROUNDS)
    true = {known[column] for column in np.flatnonzero(labels.words[0]).tolist()}
    assert true == {"ring", "red", "blue", "navy"}


def test_towers_learn_from_hints() -> None:
    drawn = list(samples(CorpusConfig(64, seed=9, side_px=56)))
    data = CaptionedImages(
        np.stack([sample.pixels(56) for sample in drawn]), [sample.captions for sample in drawn]
    )
    hints = scene_hints([sample.scene for sample in drawn])
    asked: list[str] = []

    def exchange(caption: str, rng: np.random.Generator) -> str:
        asked.append(caption)
        return hints.exchange(caption, rng)

    base = small_base()
    config = ContrastiveConfig(epochs=12, batch=32, learning_rate=2e-3, shift_px=0)
    watched = Hints(hints.labels, exchange)
    loss = train_two_tower(base.towers, base.tokenizer, data, config, hints=watched)
    assert len(asked) == 12 * 64
    # A guess costs 45 and more; knowing how often a place is empty and a word true about half.
    guess = PLACE_WEIGHT * GUESS + log(2) * hints.labels.words.shape[1]
    assert loss < guess / 2.5
