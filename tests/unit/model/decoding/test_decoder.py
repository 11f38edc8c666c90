"""Incremental decoding and constrained beams, against the full model and exhaustive counting."""

import itertools

import numpy as np
import pytest
import torch

from model.decoding.beam import NEVER, Beams, search_identifiers, search_leaves
from model.decoding.decoder import Decoder
from model.network.inputs import VisualTokens
from model.network.parts import ModelParts
from model.retrieval.trie import ALTERNATE, Trie
from schemas.identifiers import LEVELS
from tests.unit.model.conftest import TEXTS, pictures

TOLERANCE = 2e-4
"""Of a log-probability, in nats: float32 sums in another order."""


def full_log_probabilities(
    decoder: Decoder, prompt: list[int], image: VisualTokens | None
) -> dict[int, float]:
    """Log-probability of every leaf, each scored by one pass of the whole model over its row."""
    sigma = decoder.sigma
    shape = sigma.profile.shape
    identifiers = list(itertools.product(*(range(count) for count in shape.codes)))
    rows = [prompt + sigma.prompts.identifier(codes) for codes in identifiers]
    images = None
    if image is not None:
        images = VisualTokens(image.states.repeat(len(rows), 1), image.grid.repeat(len(rows), 1))
    logits = full_logits(decoder, rows, images)[:, len(prompt) - 1 : -1]
    scores = {}
    for row, codes in enumerate(identifiers):
        total = torch.zeros(())
        for level, code in enumerate(codes):
            total += torch.log_softmax(logits[row, level, sigma.levels[level]], -1)[code]
        scores[shape.pack(codes)] = float(total)
    return scores


def full_logits(
    decoder: Decoder, rows: list[list[int]], images: VisualTokens | None
) -> torch.Tensor:
    """(B, T, V) float32 of one pass of the whole model over B rows of equal length."""
    sigma = decoder.sigma
    with torch.inference_mode():
        inputs = sigma.embed(rows, images)
        hidden = decoder.language_model(
            inputs_embeds=inputs.embeddings,
            attention_mask=inputs.mask.long(),
            position_ids=inputs.positions,
            use_cache=False,
        ).last_hidden_state
        logits: torch.Tensor = sigma.backbone.lm_head(hidden).float()
    return logits


def scores_by_leaf(beams: Beams, row: int) -> dict[int, float]:
    """The beams of one prompt that exist."""
    leaves = beams.leaves[row].tolist()
    scores = beams.scores[row].tolist()
    pairs = zip(leaves, scores, strict=True)
    return {leaf: score for leaf, score in pairs if score > NEVER}


def trie_of(parts: ModelParts, count: int, seed: int) -> Trie:
    """Images under random leaves."""
    shape = parts.sigma.profile.shape
    trie = Trie(shape)
    leaves = np.random.default_rng(seed).integers(0, shape.leaves, count)
    suffixes = np.arange(count) % shape.suffixes
    trie.insert(leaves, np.arange(count), np.zeros(count, np.float32), suffixes)
    return trie


@pytest.mark.parametrize("text", TEXTS)
def test_a_beam_over_everything_equals_the_full_model(parts: ModelParts, text: str) -> None:
    decoder = Decoder(parts.sigma)
    shape = parts.sigma.profile.shape
    beams = search_leaves(decoder, decoder.read_texts([text]), shape, shape.leaves, None)
    expected = full_log_probabilities(decoder, parts.sigma.prompts.query_prompt(text), None)
    found = scores_by_leaf(beams, 0)
    assert sorted(beams.leaves[0].tolist()) == list(range(shape.leaves))
    assert found == pytest.approx(expected, abs=TOLERANCE)


def test_an_image_prompt_decodes_as_the_full_model_does(parts: ModelParts) -> None:
    sigma = parts.sigma
    decoder = Decoder(sigma)
    shape = sigma.profile.shape
    patches = sigma.preprocessor(pictures(1))
    beams = search_leaves(decoder, decoder.read_images(patches), shape, shape.leaves, None)
    prompt = sigma.prompts.image_prompt(patches.token_counts(sigma.merge)[0])
    with torch.inference_mode():
        image = sigma.encode_images(patches)
    expected = full_log_probabilities(decoder, prompt, image)
    assert scores_by_leaf(beams, 0) == pytest.approx(expected, abs=TOLERANCE)


def test_a_query_gets_the_same_answer_alone_and_in_a_batch(parts: ModelParts) -> None:
    decoder = Decoder(parts.sigma)
    shape = parts.sigma.profile.shape
    together = search_leaves(decoder, decoder.read_texts(TEXTS), shape, 5, None)
    for row, text in enumerate(TEXTS):
        alone = search_leaves(decoder, decoder.read_texts([text]), shape, 5, None)
        assert together.leaves[row].tolist() == alone.leaves[0].tolist()
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=TOLERANCE)


@pytest.mark.parametrize("count", [1, 2, 9, 60])
def test_only_leaves_of_the_trie_are_reached_and_all_of_them_when_the_beam_is_wide(
    parts: ModelParts, count: int
) -> None:
    decoder = Decoder(parts.sigma)
    trie = trie_of(parts, count, seed=count)
    occupied = np.flatnonzero(trie.branches.load)
    beams = search_leaves(decoder, decoder.read_texts(TEXTS), trie.shape, 200, trie.branches)
    for row in range(len(TEXTS)):
        exists = beams.scores[row] > NEVER
        assert sorted(beams.leaves[row][exists].tolist()) == occupied.tolist()


def test_an_empty_trie_gives_no_beam(parts: ModelParts) -> None:
    decoder = Decoder(parts.sigma)
    trie = Trie(parts.sigma.profile.shape)
    prompt = decoder.read_texts(["anything"])
    beams = search_leaves(decoder, prompt, trie.shape, 5, trie.branches)
    assert not (beams.scores > NEVER).any()
    assert search_identifiers(decoder, prompt, trie, 5) == [[]]


def test_deletes_and_inserts_show_in_the_next_search(parts: ModelParts) -> None:
    decoder = Decoder(parts.sigma)
    trie = trie_of(parts, 30, seed=1)
    prompt = decoder.read_texts(["a star"])
    best = int(search_leaves(decoder, prompt, trie.shape, 5, trie.branches).leaves[0, 0])
    trie.delete(trie.reached(np.array([best])).slots.tolist())
    after = search_leaves(decoder, prompt, trie.shape, 200, trie.branches)
    assert best not in scores_by_leaf(after, 0)
    trie.insert(np.array([best]), np.array([99]), np.zeros(1, np.float32), np.array([ALTERNATE]))
    again = search_leaves(decoder, prompt, trie.shape, 200, trie.branches)
    assert best in scores_by_leaf(again, 0)


def test_the_papers_mode_decodes_all_five_tokens_over_primaries_only(parts: ModelParts) -> None:
    decoder = Decoder(parts.sigma)
    trie = trie_of(parts, 12, seed=2)
    trie.insert(np.array([0]), np.array([50]), np.zeros(1, np.float32), np.array([ALTERNATE]))
    identifiers = search_identifiers(decoder, decoder.read_texts(["a star"]), trie, 100)[0]
    scores = [identifier.score for identifier in identifiers]
    assert {identifier.slot for identifier in identifiers} == slots_with_a_suffix(trie)
    assert scores == sorted(scores, reverse=True)
    for identifier in identifiers:
        assert trie.suffixes(identifier.leaf)[identifier.suffix] == identifier.slot


@pytest.mark.parametrize("count", [1, 3, 12, 60])
def test_the_papers_mode_scores_forced_codes_too_as_equation_14_says(
    parts: ModelParts, count: int
) -> None:
    sigma = parts.sigma
    decoder = Decoder(sigma)
    trie = trie_of(parts, count, seed=count)
    text = "a star"
    identifiers = search_identifiers(decoder, decoder.read_texts([text]), trie, 200)[0]
    of_leaves = full_log_probabilities(decoder, sigma.prompts.query_prompt(text), None)
    assert len(identifiers) == len(slots_with_a_suffix(trie, count))
    for identifier in identifiers:
        codes = sigma.profile.shape.unpack(identifier.leaf)
        expected = of_leaves[identifier.leaf] + suffix_log_probability(
            decoder, text, codes, identifier.suffix
        )
        assert identifier.score == pytest.approx(expected, abs=TOLERANCE)


def suffix_log_probability(
    decoder: Decoder, text: str, codes: tuple[int, ...], suffix: int
) -> float:
    """Of id5 behind a query and four codes, by one pass of the whole model."""
    sigma = decoder.sigma
    row = sigma.prompts.query_prompt(text) + sigma.prompts.identifier(codes)
    logits = full_logits(decoder, [row], None)[0, -1]
    return float(torch.log_softmax(logits[sigma.levels[LEVELS]], -1)[suffix])


def slots_with_a_suffix(trie: Trie, images: int = 12) -> set[int]:
    """Slots of primaries; where (leaf, suffix) collided in the random filling, only one is left."""
    slots: set[int] = set()
    for leaf in range(trie.shape.leaves):
        slots.update(trie.suffixes(leaf).values())
    assert slots <= set(range(images))
    return slots
