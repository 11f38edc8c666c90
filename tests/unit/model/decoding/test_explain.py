"""Explanations: what sets an identifier apart is said, and its suffix changes nothing."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
import torch

from model.decoding.decoder import Decoder, Prompts
from model.decoding.explain import explain_all, guided_tokens
from model.network.parts import ModelParts
from model.network.sigma import SigmaModel


class NotingDecoder(Decoder):
    """A decoder that remembers which tokens it has read in prompts."""

    def __init__(self, sigma: SigmaModel) -> None:
        super().__init__(sigma)
        self.seen: set[int] = set()

    def read_rows(self, rows: Sequence[Sequence[int]]) -> Prompts:
        self.seen |= set(chain.from_iterable(rows))
        return super().read_rows(rows)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_an_explanation_comes_from_the_codes_and_not_from_the_suffix(
    parts: ModelParts, guidance: float
) -> None:
    parts.sigma.profile = replace(parts.sigma.profile, guidance=guidance)
    decoder = NotingDecoder(parts.sigma)
    identifiers = [[1, 2, 0, 1, 0], [1, 2, 0, 1, 7], [1, 2, 0, 1], [3, 0, 1, 0], [1], []]
    captions = explain_all(decoder, identifiers)
    assert captions[0] == captions[1] == captions[2]
    assert not decoder.seen & set(parts.sigma.levels[-1])
    # Each as alone: rows of one batch do not touch.
    for codes, caption in zip(identifiers, captions, strict=True):
        assert explain_all(decoder, [codes]) == [caption]


def test_what_an_identifier_makes_likelier_is_said_before_what_is_always_likely() -> None:
    own = torch.tensor([[0.5, 0.4, 0.0999, 0.0001]]).log()
    prior = torch.tensor([[0.7, 0.1, 0.1999, 0.0001]]).log()
    both = torch.cat([own, prior])
    assert guided_tokens(own, 0.0).tolist() == [0]
    assert guided_tokens(both, 1.0).tolist() == [1]


def test_a_token_that_is_implausible_by_itself_is_never_said() -> None:
    own = torch.tensor([[0.96, 0.03, 0.01]]).log()
    prior = torch.tensor([[0.9, 0.0999, 0.0001]]).log()
    assert guided_tokens(torch.cat([own, prior]), 5.0).tolist() == [0]
    # Nor is one of an identifier, which captions must not have.
    forbidden = torch.tensor([[0.0, float("-inf")], [0.0, float("-inf")]])
    assert guided_tokens(forbidden, 1.0).tolist() == [0]
