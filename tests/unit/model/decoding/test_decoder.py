"""Incremental decoding and constrained beams, against the full model and against counting everything."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from model.decoding.beam import NEVER, search_identifiers, search_leaves
from model.decoding.decoder import Decoder, Prompt
from model.network.checkpoint import ModelParts
from model.retrieval.trie import ALTERNATE, Trie
from tests.unit.model.conftest import TEXTS, pictures

TOLERANCE = 2e-4


def full_log_probabilities(
    decoder: Decoder, prompt: list[int], seen: Tensor | None, grid: Tensor | None
) -> dict[int, float]:
    """Log-probability of every leaf, each scored by one pass of the whole model over the whole sequence."""
    sigma, shape = decoder.sigma, decoder.sigma.profile.shape
    codes = list(itertools.product(*(range(count) for count in shape.codes)))
    rows = [prompt + sigma.prompts.identifier(one) for one in codes]
    with torch.inference_mode():
        repeated = None if seen is None else seen.repeat(len(rows), 1)
        grids = None if grid is None else grid.repeat(len(rows), 1)
        _, mask, embeds, positions = sigma.embed(rows, repeated, grids)
        hidden = decoder.text(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        logits = sigma.backbone.lm_head(hidden[:, len(prompt) - 1 : -1]).float()
    scores = {}
    for row, one in enumerate(codes):
        parts = [
            torch.log_softmax(logits[row, level, sigma.levels[level]], -1)[code]
            for level, code in enumerate(one)
        ]
        scores[shape.pack(one)] = float(torch.stack(parts).sum())
    return scores


@pytest.mark.parametrize("text", TEXTS)
def test_a_beam_over_everything_equals_the_full_model(parts: ModelParts, text: str) -> None:
    decoder = Decoder(parts.sigma)
    shape = parts.sigma.profile.shape
    found = search_leaves(decoder, decoder.read_texts([text]), shape, shape.leaves, None)
    wanted = full_log_probabilities(decoder, parts.sigma.prompts.query_prompt(text), None, None)
    assert sorted(found.leaves[0].tolist()) == list(range(shape.leaves))
    for leaf, score in zip(found.leaves[0].tolist(), found.scores[0].tolist(), strict=True):
        assert score == pytest.approx(wanted[leaf], abs=TOLERANCE)


def test_an_image_prompt_decodes_as_the_full_model_does(parts: ModelParts) -> None:
    decoder = Decoder(parts.sigma)
    shape = parts.sigma.profile.shape
    given = parts.sigma.inputs(pictures(1))
    found = search_leaves(decoder, decoder.read_images(given), shape, shape.leaves, None)
    prompt = parts.sigma.prompts.image_prompt(given.tokens(parts.sigma.merge)[0])
    with torch.inference_mode():
        seen = parts.sigma.see(given)
    wanted = full_log_probabilities(decoder, prompt, seen, given.grid)
    for leaf, score in zip(found.leaves[0].tolist(), found.scores[0].tolist(), strict=True):
        assert score == pytest.approx(wanted[leaf], abs=TOLERANCE)


def test_a_query_gets_the_same_answer_alone_and_in_a_batch(parts: ModelParts) -> None:
    decoder = Decoder(parts.sigma)
    shape = parts.sigma.profile.shape
    together = search_leaves(decoder, decoder.read_texts(TEXTS), shape, 5, None)
    for row, text in enumerate(TEXTS):
        alone = search_leaves(decoder, decoder.read_texts([text]), shape, 5, None)
        assert together.leaves[row].tolist() == alone.leaves[0].tolist()
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=TOLERANCE)


def filled(parts: ModelParts, count: int, seed: int) -> Trie:
    shape = parts.sigma.profile.shape
    trie = Trie(shape)
    leaves = np.random.default_rng(seed).integers(0, shape.leaves, count)
    suffixes = np.arange(count) % shape.suffixes
    trie.insert(leaves, np.arange(count), np.zeros(count, np.float32), suffixes)
    return trie


@pytest.mark.parametrize("count", [1, 2, 9, 60])
def test_only_leaves_of_the_trie_are_reached_and_all_of_them_when_the_beam_is_wide(
    parts: ModelParts, count: int
) -> None:
    decoder = Decoder(parts.sigma)
    trie = filled(parts, count, seed=count)
    occupied = np.flatnonzero(trie.branches.load)
    found = search_leaves(decoder, decoder.read_texts(TEXTS), trie.shape, 200, trie.branches)
    for row in range(len(TEXTS)):
        real = found.scores[row] > NEVER
        assert sorted(found.leaves[row][real].tolist()) == occupied.tolist()


def test_an_empty_trie_gives_no_beam(parts: ModelParts) -> None:
    decoder = Decoder(parts.sigma)
    trie = Trie(parts.sigma.profile.shape)
    found = search_leaves(decoder, decoder.read_texts(["anything"]), trie.shape, 5, trie.branches)
    assert not (found.scores > NEVER).any()
    assert search_identifiers(decoder, decoder.read_texts(["anything"]), trie, 5) == [[]]


def test_deletes_and_inserts_show_in_the_next_search(parts: ModelParts) -> None:
    decoder = Decoder(parts.sigma)
    trie = filled(parts, 30, seed=1)
    prompt: Prompt = decoder.read_texts(["a star"])
    best = int(search_leaves(decoder, prompt, trie.shape, 5, trie.branches).leaves[0, 0])
    trie.delete(trie.reached(np.array([best])).slots.tolist())
    after = search_leaves(decoder, prompt, trie.shape, 200, trie.branches)
    assert best not in after.leaves[0][after.scores[0] > NEVER].tolist()
    trie.insert(np.array([best]), np.array([99]), np.zeros(1, np.float32), np.array([ALTERNATE]))
    again = search_leaves(decoder, prompt, trie.shape, 200, trie.branches)
    assert best in again.leaves[0][again.scores[0] > NEVER].tolist()


def test_the_papers_mode_decodes_all_five_tokens_over_primaries_only(parts: ModelParts) -> None:
    decoder = Decoder(parts.sigma)
    trie = filled(parts, 12, seed=2)
    trie.insert(np.array([0]), np.array([50]), np.zeros(1, np.float32), np.array([ALTERNATE]))
    found = search_identifiers(decoder, decoder.read_texts(["a star"]), trie, 100)[0]
    assert {one.slot for one in found} == set(range(12)) - _hidden(trie)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(trie.suffixes(one.leaf)[one.suffix] == one.slot for one in found)


def _hidden(trie: Trie) -> set[int]:
    """Slots whose (leaf, suffix) collided in the random filling."""
    shown = {slot for leaf in range(trie.shape.leaves) for slot in trie.suffixes(leaf).values()}
    return set(range(12)) - shown
