"""Rows of identifier tokens are drawn as asked, and no other row changes."""

import pytest
import torch

from model.network.base import SHIPPED, Base
from model.network.parts import parts_from_base
from model.training.trainee import own_rows, word_tables
from ops.study.new_rows import BEGINNINGS, redraw, table
from ops.study.study_config import study_profile
from ops.study.study_table import Figures


@pytest.mark.parametrize(("mean", "spread"), BEGINNINGS.values())
def test_new_rows_have_the_mean_and_the_spread_that_are_asked_for(
    mean: float, spread: float
) -> None:
    sigma = parts_from_base(Base.load(SHIPPED), study_profile()).sigma
    (words,) = word_tables(sigma)
    own = own_rows(sigma)
    known = torch.ones(len(words), dtype=torch.bool)
    known[own] = False
    before = words.detach().clone()
    redraw(sigma, mean, spread)
    assert torch.equal(words[known], before[known])
    apart = words[own] - mean * before[known].mean(0)
    torch.testing.assert_close(
        apart.std(0).mean(), spread * before[known].std(0).mean(), rtol=0.1, atol=0
    )
    assert apart.mean(0).abs().mean() < 0.2 * apart.std(0).mean()


def test_the_table_has_the_means_of_the_seeds_in_percent() -> None:
    figures = ("five seen R@1", "five unseen R@10", "seen R@1", "seen R@10", "unseen R@1")
    runs: list[dict[str, Figures]] = [
        {name: dict.fromkeys((*figures, "unseen R@10", "candidates"), value) for name in BEGINNINGS}
        for value in (0.25, 0.75)
    ]
    lines = table(runs).splitlines()
    assert len(lines) == 2 + len(BEGINNINGS)
    assert lines[2].count(" 50.0 ") == 6
